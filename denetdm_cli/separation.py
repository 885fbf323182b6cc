"""Whether the branches of stage 1 went separate ways, told without bias labels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from denetdm_cli.data.batches import Batches
from denetdm_cli.models.experts import ProductOfExperts

Signs = dict[str, Any]

_SAMPLE = 1000
_SAMPLE_SEED = 0
_REMEDY = (
    "Try a shallower --set model.shallow.depth=..., a deeper --set model.deep.depth=... (or other networks), or "
    "another --seed; after few epochs, or where images were learnt by heart, train longer or on more images first"
)
_BRANCHES = ("shallow", "deep")

# What the thresholds are for is said in `warnings`; they leave Colored MNIST as published, at 0.5 and 1 %, unwarned.
_FEW_ANSWERS = 0.1
_LITTLE_SHARE = 0.02
_HARDLY_DIFFERENT = 0.02
_CLEARLY_MORE = 0.1
_BARELY_ABOVE_CHANCE = 0.05
_LARGE_PART = 0.6
_CLEARLY_LESS = 0.15


def sample(batches: Batches) -> Tensor:
    """Positions (S,) int64 of the images that the signs are measured on: at most 1,000, always the same."""
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(_SAMPLE_SEED))
    return order[:_SAMPLE].sort().values.to(batches.device)


@torch.inference_mode()
def signs(model: ProductOfExperts, batches: Batches, index: Tensor) -> Signs:
    """What can be said of the branches from images and class labels alone, in evaluation mode; S images, C classes.

    Args:
        model: its mode is restored.
        batches: where the images are taken from, without augmentation.
        index: (S,) int64, which.
    Returns:
        `accuracy` by predictor and `chance`, 1/C; `disagreement`: share of images that the two branches give different
        classes; and by branch `entropy`: mean entropy of a prediction, and `answers`: entropy of the classes predicted
        over all images (and of the true ones as `labels`), 0 for a constant answer, both in units of log C;
        `dead_units`: share of the features that never change; `logit_share`: share of the variance of the product's
        logits that is the branch's (they add up to 1, and one can be negative).
    """
    was_training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {name: [] for name in ("y", *_BRANCHES)}
    for some in torch.split(index, batches.at_once):
        batch = batches.take(some)
        parts["y"].append(batch.y)
        for name in _BRANCHES:
            parts[name].append(getattr(model, name)(batch.x))
    model.train(was_training)
    y = torch.cat(parts["y"]).cpu()
    features = {name: torch.cat(parts[name]).cpu().double() for name in _BRANCHES}
    head = (model.head.weight.cpu().double(), model.head.bias.cpu().double())
    logits = {name: torch.nn.functional.linear(part, *head) for name, part in features.items()}
    logits["product"] = logits["shallow"] + logits["deep"] - head[1]
    predicted = {name: part.argmax(dim=1) for name, part in logits.items()}
    classes = len(head[1])
    return {
        "accuracy": {name: _share(part == y) for name, part in predicted.items()},
        "chance": 1 / classes,
        "disagreement": _share(predicted["shallow"] != predicted["deep"]),
        "entropy": {name: _entropy(logits[name].softmax(dim=1), classes).mean().item() for name in _BRANCHES},
        "answers": {name: _answers(given, classes) for name, given in (*predicted.items(), ("labels", y))},
        "dead_units": {name: _share(features[name].std(dim=0, correction=0) < 1e-6) for name in _BRANCHES},
        "logit_share": {name: _explained(logits[name], logits["product"]) for name in _BRANCHES},
    }


def warnings(train: Signs, evaluation: Signs) -> list[str]:
    """In plain words, what went wrong and the remedy; empty where the branches separated.

    Args:
        train: the signs on training images.
        evaluation: the signs on images of the evaluation split.
    """
    for name in _BRANCHES:
        if (
            train["answers"][name] < _FEW_ANSWERS * train["answers"]["labels"]
            or train["logit_share"][name] < _LITTLE_SHARE
        ):
            return [_dead(name, train)]
    if evaluation["disagreement"] < _HARDLY_DIFFERENT and train["disagreement"] < _HARDLY_DIFFERENT:
        return [
            f"the branches did not separate: they give different classes for only {evaluation['disagreement']:.1%} of "
            "the evaluation images. Either nothing misleads in this data, or both learnt the same. Try a shallower "
            "--set model.shallow.depth=... or a deeper --set model.deep.depth=... (or other networks)"
        ]
    found = []
    fall = {name: before - evaluation["accuracy"][name] for name, before in train["accuracy"].items()}
    above = {name: evaluation["accuracy"][name] - evaluation["chance"] for name in _BRANCHES}
    if fall["shallow"] > fall["deep"] + _CLEARLY_MORE:
        found.append(
            "the branches separated the wrong way round: from training to evaluation images the shallow branch falls "
            f"from {_change(train, evaluation, 'shallow')} accuracy and the deep one only from "
            f"{_change(train, evaluation, 'deep')}, so it is the shallow one that leans on the bias. " + _REMEDY
        )
    elif fall["product"] > _CLEARLY_MORE and (
        above["shallow"] < _BARELY_ABOVE_CHANCE or above["deep"] > _LARGE_PART * above["shallow"]
    ):
        found.append(
            "the branches did not separate: from training to evaluation images the shallow branch falls from "
            f"{_change(train, evaluation, 'shallow')} accuracy and the deep one from "
            f"{_change(train, evaluation, 'deep')}, so the shallow one has no more of the signal. " + _REMEDY
        )
    elif train["accuracy"]["deep"] < train["accuracy"]["product"] - _CLEARLY_LESS:
        found.append(
            "the branches separated only in part: the deep branch alone is right on "
            f"{train['accuracy']['deep']:.0%} of the training images, both together on "
            f"{train['accuracy']['product']:.0%}, so the shallow one carries some of what the deep one should. Try "
            "more --epochs, another --seed, or another --set train_poe.learning_rate=..."
        )
    return found


def _dead(name: str, train: Mapping[str, Any]) -> str:
    other = "shallow" if name == "deep" else "deep"
    return (
        f"the {name} branch is dead: it has {round(train['logit_share'][name], 3) + 0.0:.1%} of the product's logits, "
        f"{train['dead_units'][name]:.0%} of its units never change, and alone it is right on "
        f"{train['accuracy'][name]:.0%} of the training images. The {other} branch has learnt everything, the bias "
        f"included. Try another --seed, a lower --set train_poe.learning_rate=... or weight_decay, or another "
        f"--set model.{name}.depth=... (or another network)"
    )


def _change(train: Signs, evaluation: Signs, name: str) -> str:
    return f"{train['accuracy'][name]:.0%} to {evaluation['accuracy'][name]:.0%}"


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()


def _entropy(probabilities: Tensor, classes: int) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=-1) / torch.tensor(float(max(classes, 2))).log()
    return entropy


def _answers(predicted: Tensor, classes: int) -> float:
    return _entropy(torch.bincount(predicted, minlength=classes).double() / len(predicted), classes).item()


def _explained(part: Tensor, whole: Tensor) -> float:
    part, whole = part - part.mean(dim=0), whole - whole.mean(dim=0)
    total = whole.square().sum().item()
    return (part * whole).sum().item() / total if total > 0 else 0.0

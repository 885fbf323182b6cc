"""Whether the branches of stage 1 separate, without bias labels."""

from typing import Any

import torch
from torch import Tensor

from denetdm_cli.data.batches import Batches
from denetdm_cli.methods.denetdm.models import ProductOfExperts
from denetdm_cli.models.convnets import CifarResNet
from denetdm_cli.models.mlp import MLP

Signs = dict[str, Any]

_SAMPLE = 1000
_SAMPLE_SEED = 0
_BRANCHES = ("shallow", "deep")

# What the thresholds are for is said in `warnings`; they leave Colored MNIST as published, at 0.5 and 1 %, unwarned.
_FEW_ANSWERS = 0.1
_LITTLE_SHARE = 0.02
_HARDLY_DIFFERENT = 0.02
_CLEARLY_MORE = 0.1
_BARELY_ABOVE_CHANCE = 0.05
_LARGE_PART = 0.6
_CLEARLY_LESS = 0.15


Samples = dict[str, tuple[Batches, Tensor]]
"""By name, `train` and `evaluation`, a split and positions (S,) int64 in it."""


def samples(**splits: Batches) -> Samples:
    """At most 1,000 images of each split, always the same."""
    return {name: (batches, _sample(batches)) for name, batches in splits.items()}


def measure(model: ProductOfExperts, of: Samples) -> Signs:
    """`signs` by split, and `warnings` in words."""
    found = {name: signs(model, batches, index) for name, (batches, index) in of.items()}
    return {**found, "warnings": warnings(found["train"], found["evaluation"])}


def _sample(batches: Batches) -> Tensor:
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
        `accuracy` by predictor, `chance`, 1/C, and `images`, S; `disagreement`: share of images that the two branches
        give different classes; and by branch `entropy`: mean entropy of a prediction, and `answers`: entropy of the
        classes predicted over all images (and of the true ones as `labels`), 0 for a constant answer, both in units of
        log C;
        `dead_units`: share of the features that never change; `logit_share`: share of the variance of the product's
        logits that is the branch's (they add up to 1, and one can be negative); `free_depth`: whether its depth can be
        set to any number, so that a remedy may name that key.
    """
    was_training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {name: [] for name in ("y", *_BRANCHES)}
    for some in torch.split(index, batches.eval_batch_size):
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
        "images": len(index),
        "disagreement": _share(predicted["shallow"] != predicted["deep"]),
        "entropy": {name: _entropy(logits[name].softmax(dim=1), classes).mean().item() for name in _BRANCHES},
        "answers": {name: _answers(given, classes) for name, given in (*predicted.items(), ("labels", y))},
        "dead_units": {name: _share(features[name].std(dim=0, correction=0) < 1e-6) for name in _BRANCHES},
        "logit_share": {name: _explained(logits[name], logits["product"]) for name in _BRANCHES},
        "free_depth": {name: isinstance(getattr(model, name), MLP | CifarResNet) for name in _BRANCHES},
    }


def warnings(train: Signs, evaluation: Signs) -> list[str]:
    """In plain words, what went wrong and the remedy; empty where the branches separated.

    Args:
        train: the signs on training images.
        evaluation: the signs on images of the evaluation split.
    """
    if idle := [name for name in _BRANCHES if _fault(name, train)]:
        return [_idle(idle, train)]
    if not _learnt(train):
        return [
            f"the branches have nothing to separate yet. {_outcome(train)}. Try more --epochs, another --seed, or "
            "another --set train_poe.learning_rate=..."
        ]
    if evaluation["disagreement"] < _HARDLY_DIFFERENT and train["disagreement"] < _HARDLY_DIFFERENT:
        return [
            f"the branches did not separate: they give different classes for only {evaluation['disagreement']:.1%} of "
            "the evaluation images. Either nothing misleads in this data, or both learnt the same. Try "
            f"{_network('shallow', train, 'a shallower')} or {_network('deep', train, 'a deeper')}"
        ]
    found = []
    fall = {name: before - evaluation["accuracy"][name] for name, before in train["accuracy"].items()}
    above = {name: evaluation["accuracy"][name] - evaluation["chance"] for name in _BRANCHES}
    # On few images a fall may be chance; this is at least two standard errors of how much one falls more than another.
    clearly_more = max(_CLEARLY_MORE, 2 / evaluation["images"] ** 0.5)
    if fall["shallow"] > max(fall["deep"], 0) + clearly_more:
        found.append(
            "the branches separated the wrong way round: from training to evaluation images the shallow branch falls "
            f"from {_change(train, evaluation, 'shallow')} accuracy and the deep one goes from "
            f"{_change(train, evaluation, 'deep')}, so it is the shallow one that leans on the bias. {_remedy(train)}"
        )
    elif fall["product"] > clearly_more and (
        above["shallow"] < _BARELY_ABOVE_CHANCE or above["deep"] > _LARGE_PART * above["shallow"]
    ):
        found.append(
            "the branches did not separate: from training to evaluation images the shallow branch goes from "
            f"{_change(train, evaluation, 'shallow')} accuracy and the deep one from "
            f"{_change(train, evaluation, 'deep')}, so the shallow one has not much more of the signal. "
            f"{_remedy(train)}"
        )
    elif train["accuracy"]["deep"] < train["accuracy"]["product"] - _CLEARLY_LESS:
        found.append(
            "the branches separated only in part: the deep branch alone is right on "
            f"{train['accuracy']['deep']:.0%} of the training images, both together on "
            f"{train['accuracy']['product']:.0%}, so the shallow one carries some of what the deep one should. Try "
            "more --epochs, another --seed, or another --set train_poe.learning_rate=..."
        )
    return found


def _fault(name: str, train: Signs) -> str:
    """What keeps a branch from taking its part; empty where it takes it."""
    if train["logit_share"][name] < _LITTLE_SHARE:
        return "is dead" if _constant(name, train) else "is overruled"
    return "alone gives nearly every image the same class" if _constant(name, train) else ""


def _idle(idle: list[str], train: Signs) -> str:
    """The warning for branches at fault: which, how it was seen, who does their part, and what to do."""
    faults = [
        f"the {name} branch {_fault(name, train)}: it has {round(train['logit_share'][name], 3) + 0.0:.1%} of the "
        f"product's logits, {train['dead_units'][name]:.0%} of its units never change, and alone it is right on "
        f"{train['accuracy'][name]:.0%} of the training images"
        for name in idle
    ]
    other = next((name for name in _BRANCHES if name not in idle), None)
    alone = f"The {other} branch alone is right on {train['accuracy'][other]:.0%}. " if other else ""
    outcome = _outcome(train)
    if other and _learnt(train) and train["logit_share"][idle[0]] < _LITTLE_SHARE:
        outcome = f"What both give together comes from the {other} branch, the bias included"
    longer = "" if _learnt(train) else "more --epochs, "
    networks = " or ".join(_network(name, train, "another") for name in idle)
    return (
        f"{'; '.join(faults)}. {alone}{outcome}. Try {longer}another --seed, a lower --set "
        f"train_poe.learning_rate=... or train_poe.weight_decay=..., or {networks}"
    )


def _constant(name: str, train: Signs) -> bool:
    return bool(train["answers"][name] < _FEW_ANSWERS * train["answers"]["labels"])


def _learnt(train: Signs) -> bool:
    """Whether both branches together are better than a guess."""
    guess = train["chance"]
    better = train["accuracy"]["product"] > guess + min(_BARELY_ABOVE_CHANCE, guess / 2)
    return bool(better and not _constant("product", train))


def _outcome(train: Signs) -> str:
    if _constant("product", train):
        return "Both together give nearly every image the same class: hardly anything was learnt"
    found = f"Both together are right on {train['accuracy']['product']:.0%}, a guess would be on {train['chance']:.0%}"
    return found if _learnt(train) else f"{found}: hardly anything was learnt"


def _remedy(train: Signs) -> str:
    return (
        f"Try {_network('shallow', train, 'a shallower')}, {_network('deep', train, 'a deeper')}, or another --seed; "
        "after few epochs, or where images were learnt by heart, train longer or on more images first"
    )


def _network(name: str, train: Signs, which: str) -> str:
    """How to set another network of a branch, by a key that it has."""
    if train["free_depth"][name]:
        return f"{which} --set model.{name}.depth=... (or another network)"
    return f'{which} network (--set "model.{name}={{name: ...}}")'


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

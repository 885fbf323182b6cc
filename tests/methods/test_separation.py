"""The point of the method: the shallow branch learns the signal, the deep one the bias; and a word when they do not."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests_support import glyph_mnist

from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.data.batches import Batches
from denetdm_cli.data.raw.mnist import Mnist, load_mnist
from denetdm_cli.data.store import Split
from denetdm_cli.data.synthetic.colored_mnist import make_colored_mnist
from denetdm_cli.evaluation.evaluator import predict
from denetdm_cli.evaluation.metrics import Groups
from denetdm_cli.methods.denetdm.models import ProductOfExperts
from denetdm_cli.methods.denetdm.poe import TrainPoe
from denetdm_cli.methods.denetdm.separation import Signs, samples, signs, warnings
from denetdm_cli.training.trainer import Trainer

GROUPS = Groups(10, 10, tuple(range(10)))


class Trained:
    """A stage-1 model, trained on Colored MNIST made from some images, and what it says."""

    def __init__(self, mnist: Mnist, path: Path, ratio: float, epochs: int, **changes: object) -> None:
        dataset = make_colored_mnist(mnist, path, ratio=ratio, severity=4, seed=0, replace=False)
        options = {key.replace("__", "."): value for key, value in changes.items()}
        config = load_config(preset_path("coloredmnist"), (), {"train_poe.epochs": epochs, **options})
        self.train, self.evaluation = (
            Batches(dataset.splits[name], torch.device("cpu")) for name in ("train", "valid")
        )
        self.model = ProductOfExperts(config.model, self.train.shape, 10, seed=0)
        method = TrainPoe(self.model)
        list(Trainer(method, self.train, config.train_poe, seed=0).run())
        metrics = predict(self.model, method.predict, self.evaluation).metrics(GROUPS)
        self.accuracy = {name: (found["conflicting"], found["aligned"]) for name, found in metrics.items()}

    def warnings(self) -> list[str]:
        seen = [signs(self.model, *one) for one in samples(train=self.train, evaluation=self.evaluation).values()]
        return warnings(*seen)


@pytest.mark.slow
def test_branches_separate_on_noisy_shapes(tmp_path: Path) -> None:
    # 930 steps. After half of them, over three seeds: shallow 0.24 to 0.35 conflicting, deep 0.08 to 0.11.
    trained = Trained(glyph_mnist(6000, 2000), tmp_path / "set", ratio=0.02, epochs=10)
    assert trained.accuracy["shallow"][0] > 0.18
    assert trained.accuracy["deep"][0] < 0.14
    assert trained.accuracy["deep"][1] > 0.6
    assert trained.accuracy["product"][1] > 0.9
    assert trained.warnings() == []


@pytest.mark.slow
def test_branches_separate_on_real_mnist(tmp_path: Path, mnist_dir: Path) -> None:
    # 750 steps on the first 24,000 images.
    whole = load_mnist(tmp_path, mnist_dir, pytest.fail)
    mnist = Mnist(whole.train_images[:24_000], whole.train_labels[:24_000], whole.test_images, whole.test_labels)
    trained = Trained(mnist, tmp_path / "set", ratio=0.01, epochs=2)
    assert trained.accuracy["shallow"][0] > 0.33
    assert trained.accuracy["deep"][0] < 0.2
    assert trained.accuracy["deep"][1] > 0.7
    assert trained.warnings() == []


def test_a_deep_branch_that_dies_is_reported(tmp_path: Path) -> None:
    """The published settings with a deep branch of 20 layers: it gives a constant, and the shallow one learns all."""
    trained = Trained(glyph_mnist(2000, 1000), tmp_path / "set", ratio=0.02, epochs=3, model__deep__depth=20)
    (warning,) = trained.warnings()
    assert warning.startswith("the deep branch is dead: it has 0.0% of the product's logits")
    assert "What both give together comes from the shallow branch, the bias included" in warning
    assert "--set model.deep.depth=" in warning


@pytest.fixture
def untrained(tmp_path: Path) -> tuple[ProductOfExperts, Batches]:
    dataset = make_colored_mnist(glyph_mnist(300, 300), tmp_path / "set", ratio=0.1, severity=4, seed=0, replace=False)
    batches = Batches(dataset.splits["train"], torch.device("cpu"))
    return ProductOfExperts(load_config(preset_path("coloredmnist")).model, batches.shape, 10, seed=3), batches


def test_signs_beside_a_computation_by_hand(untrained: tuple[ProductOfExperts, Batches]) -> None:
    model, batches = untrained
    with torch.no_grad():
        model.deep.layers[-1].weight[:30] = 0  # type: ignore[union-attr, operator, index]
        model.deep.layers[-1].bias[:30] = -1  # type: ignore[union-attr, operator, index]
    index = torch.arange(0, 300, 7)
    found = signs(model.train(), batches, index)
    assert model.training
    images = batches.take(index)
    with torch.no_grad():
        logits = {name: part.double() for name, part in model.predict(images.x).items()}
        deep = model.deep(images.x)
    predicted = {name: part.argmax(dim=1).tolist() for name, part in logits.items()}
    n = len(index)
    for name in ("shallow", "deep", "product"):
        right = sum(p == y for p, y in zip(predicted[name], images.y.tolist(), strict=True)) / n
        assert found["accuracy"][name] == pytest.approx(right)
    different = sum(a != b for a, b in zip(predicted["shallow"], predicted["deep"], strict=True)) / n
    assert found["disagreement"] == pytest.approx(different)
    entropy = [-sum(p * math.log(p) for p in row) / math.log(10) for row in logits["deep"].softmax(dim=1).tolist()]
    assert found["entropy"]["deep"] == pytest.approx(sum(entropy) / n, abs=1e-5)
    counts = [predicted["deep"].count(label) / n for label in range(10)]
    answers = -sum(c * math.log(c) for c in counts if c) / math.log(10)
    assert found["answers"]["deep"] == pytest.approx(answers)
    assert found["dead_units"]["deep"] == pytest.approx(float((deep.std(dim=0) == 0).float().mean()))
    assert found["dead_units"]["deep"] >= 0.3
    assert sum(found["logit_share"].values()) == pytest.approx(1)
    centred = {name: part - part.mean(dim=0) for name, part in logits.items()}
    share = float((centred["deep"] * centred["product"]).sum() / (centred["product"] ** 2).sum())
    assert found["logit_share"]["deep"] == pytest.approx(share, abs=1e-5)


def test_the_sample_is_fixed_and_small() -> None:
    class Many:
        device = torch.device("cpu")

        def __len__(self) -> int:
            return 50_000

    batches: Any = Many()
    first, again = (samples(train=batches)["train"][1].tolist() for _ in range(2))
    assert len(first) == len(set(first)) == 1000
    assert first == again
    assert max(first) > 40_000


def healthy() -> tuple[Signs, Signs]:
    """As measured after three epochs of Colored MNIST at 1 %."""
    train: Signs = {
        "accuracy": {"shallow": 0.79, "deep": 0.99, "product": 0.99},
        "chance": 0.1,
        "images": 1000,
        "disagreement": 0.22,
        "entropy": {"shallow": 0.29, "deep": 0.24},
        "answers": {"shallow": 0.93, "deep": 1.0, "product": 1.0, "labels": 1.0},
        "dead_units": {"shallow": 0.09, "deep": 0.14},
        "logit_share": {"shallow": 0.58, "deep": 0.42},
        "free_depth": {"shallow": True, "deep": True},
    }
    return train, train | {"accuracy": {"shallow": 0.64, "deep": 0.10, "product": 0.37}, "disagreement": 0.85}


def test_a_branch_that_answers_as_imbalanced_labels_do_is_not_dead() -> None:
    train, evaluation = healthy()
    train["answers"] = {"shallow": 0.05, "deep": 0.06, "product": 0.06, "labels": 0.08}
    assert warnings(train, evaluation) == []


def _one_answer(train: Signs, evaluation: Signs) -> None:
    train["answers"]["shallow"] = 0.0


def _little_said(train: Signs, evaluation: Signs) -> None:
    train["logit_share"] |= {"shallow": 0.99, "deep": 0.01}


def _outvoted(train: Signs, evaluation: Signs) -> None:
    train["logit_share"] |= {"shallow": -0.2, "deep": 1.2}


def _dead(train: Signs, *names: str) -> None:
    for name in names:
        train["answers"][name] = train["logit_share"][name] = 0.0
        train["dead_units"][name], train["accuracy"][name] = 1.0, 0.1


def _dead_deep(train: Signs, evaluation: Signs) -> None:
    _dead(train, "deep")
    train["accuracy"] |= {"shallow": 0.97, "product": 0.97}


def _dead_shallow_beside_chance(train: Signs, evaluation: Signs) -> None:
    _dead(train, "shallow")
    train["accuracy"] |= {"deep": 0.12, "product": 0.12}


def _both_dead(train: Signs, evaluation: Signs) -> None:
    _dead(train, "shallow", "deep")
    train["accuracy"]["product"], train["answers"]["product"] = 0.1, 0.0


def _both_dead_on_imbalanced_labels(train: Signs, evaluation: Signs) -> None:
    _both_dead(train, evaluation)
    train["accuracy"], train["chance"] = {"shallow": 0.9, "deep": 0.9, "product": 0.9}, 0.5


def _dead_and_outvoted(train: Signs, evaluation: Signs) -> None:
    train["answers"]["shallow"] = 0.0
    train["logit_share"] |= {"shallow": 1.0, "deep": 0.0}


def _nothing_learnt(train: Signs, evaluation: Signs) -> None:
    train["accuracy"] = {"shallow": 0.11, "deep": 0.1, "product": 0.12}
    train["disagreement"] = evaluation["disagreement"] = 0.01


def _rising(train: Signs, evaluation: Signs) -> None:
    """The evaluation images are the easier ones, for the deep branch above all."""
    train["accuracy"] = {"shallow": 0.5, "deep": 0.6, "product": 0.6}
    evaluation["accuracy"] = {"shallow": 0.6, "deep": 0.9, "product": 0.9}


def _alike(train: Signs, evaluation: Signs) -> None:
    train["disagreement"] = evaluation["disagreement"] = 0.01


def _swapped(train: Signs, evaluation: Signs) -> None:
    for seen in (train, evaluation):
        accuracy = seen["accuracy"]
        accuracy["shallow"], accuracy["deep"] = accuracy["deep"], accuracy["shallow"]


def _both(train: Signs, evaluation: Signs) -> None:
    train["accuracy"] = {"shallow": 0.75, "deep": 0.87, "product": 0.99}  # Colored MNIST, 5 layers in both branches
    evaluation["accuracy"] = {"shallow": 0.28, "deep": 0.23, "product": 0.30}


def _at_chance(train: Signs, evaluation: Signs) -> None:
    evaluation["accuracy"] |= {"shallow": 0.11, "product": 0.10}


def _in_part(train: Signs, evaluation: Signs) -> None:
    train["accuracy"]["deep"] = 0.66


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_one_answer, "the shallow branch alone gives nearly every image the same class: it has 58.0% of the product's "
                      "logits, 9% of its units never change, and alone it is right on 79% of the training images. The "
                      "deep branch alone is right on 99%. Both together are right on 99%, a guess would be on 10%. Try "
                      "another --seed"),
        (_little_said, "the deep branch is overruled: it has 1.0% of the product's logits, 14% of its units never "
                       "change, and alone it is right on 99% of the training images. The shallow branch alone is right "
                       "on 79%. What both give together comes from the shallow branch, the bias included. Try another"),
        (_outvoted, "the shallow branch is overruled: it has -20.0% of the product's logits"),
        (_dead_deep, "the deep branch is dead: it has 0.0% of the product's logits, 100% of its units never change, "
                     "and alone it is right on 10% of the training images. The shallow branch alone is right on 97%. "
                     "What both give together comes from the shallow branch, the bias included. Try another --seed"),
        (_dead_shallow_beside_chance, "the shallow branch is dead: it has 0.0% of the product's logits, 100% of its "
                                      "units never change, and alone it is right on 10% of the training images. The "
                                      "deep branch alone is right on 12%. Both together are right on 12%, a guess "
                                      "would be on 10%: hardly anything was learnt. Try more --epochs, another --seed"),
        (_both_dead, "the shallow branch is dead: it has 0.0% of the product's logits, 100% of its units never change, "
                     "and alone it is right on 10% of the training images; the deep branch is dead: it has 0.0% of the "
                     "product's logits, 100% of its units never change, and alone it is right on 10% of the training "
                     "images. Both together give nearly every image the same class: hardly anything was learnt. Try "
                     "more --epochs"),
        (_both_dead_on_imbalanced_labels,
                     "the shallow branch is dead: it has 0.0% of the product's logits, 100% of its units never change, "
                     "and alone it is right on 90% of the training images; the deep branch is dead: it has 0.0% of the "
                     "product's logits, 100% of its units never change, and alone it is right on 90% of the training "
                     "images. Both together give nearly every image the same class: hardly anything was learnt. Try "
                     "more --epochs"),
        (_dead_and_outvoted, "the shallow branch alone gives nearly every image the same class: it has 100.0% of the "
                             "product's logits, 9% of its units never change, and alone it is right on 79% of the "
                             "training images; the deep branch is overruled: it has 0.0% of the product's logits, 14% "
                             "of its units never change, and alone it is right on 99% of the training images. Both "
                             "together are right on 99%, a guess would be on 10%. Try another --seed"),
        (_nothing_learnt, "the branches have nothing to separate yet. Both together are right on 12%, a guess would be "
                          "on 10%: hardly anything was learnt. Try more --epochs"),
        (_alike, "the branches did not separate: they give different classes for only 1.0% of the evaluation images"),
        (_swapped, "the branches separated the wrong way round: from training to evaluation images the shallow branch "
                   "falls from 99% to 10% accuracy and the deep one goes from 79% to 64%"),
        (_both, "the branches did not separate: from training to evaluation images the shallow branch goes from "
                "75% to 28% accuracy and the deep one from 87% to 23%, so the shallow one has not much more of the "
                "signal"),
        (_at_chance, "the branches did not separate: from training to evaluation images the shallow branch goes from "
                     "79% to 11% accuracy"),
        (_in_part, "the branches separated only in part: the deep branch alone is right on 66% of the training images"),
    ],
)  # fmt: skip
def test_each_way_to_fail_has_its_words_and_a_remedy(change: Callable[[Signs, Signs], None], says: str) -> None:
    train, evaluation = healthy()
    assert warnings(train, evaluation) == []
    change(train, evaluation)
    (warning,) = warnings(train, evaluation)
    assert warning.startswith(says)
    assert "Try " in warning
    assert "--" in warning


def test_that_the_evaluation_images_are_easier_is_no_fault() -> None:
    train, evaluation = healthy()
    _rising(train, evaluation)
    assert warnings(train, evaluation) == []


BRANCHES = ("shallow", "deep")


@pytest.mark.parametrize("change", [_swapped, _both])
def test_a_fall_on_few_images_may_be_chance(change: Callable[[Signs, Signs], None]) -> None:
    train, evaluation = healthy()
    change(train, evaluation)
    words = "from training to evaluation images"
    assert words in warnings(train, evaluation | {"images": 100})[0]
    assert not any(words in each for each in warnings(train, evaluation | {"images": 4}))


CHANGES = (_one_answer, _little_said, _dead_deep, _dead_shallow_beside_chance, _both_dead, _alike, _swapped, _both)


@pytest.mark.parametrize("change", CHANGES)
def test_a_remedy_names_only_keys_that_the_branch_has(change: Callable[[Signs, Signs], None]) -> None:
    def said(free: dict[str, bool]) -> str:
        train, evaluation = healthy()
        change(train, evaluation)
        return warnings(train | {"free_depth": free}, evaluation)[0]

    named = {name for name in BRANCHES if f"--set model.{name}.depth=" in said(dict.fromkeys(BRANCHES, True))}
    assert named
    for name in named:
        warning = said({other: other != name for other in BRANCHES})
        assert f"model.{name}.depth" not in warning
        assert f'--set "model.{name}={{name: ' in warning


@pytest.mark.parametrize(
    ("network", "free"),
    [
        ({"name": "mlp", "depth": 3, "width": 64}, True),
        ({"name": "cifar_resnet", "depth": 8}, True),
        ({"name": "cnn", "depth": 3, "width": 64}, False),
        ({"name": "resnet18", "weights": None, "width": 64}, False),
    ],
)
def test_whose_depth_is_a_free_key(network: dict[str, Any], free: bool) -> None:
    mlp = {"name": "mlp", "depth": 4, "width": 64}
    config = load_config(
        preset_path("coloredmnist"), (), {"model.shallow": mlp, "model.deep": network, "model.target": mlp}
    )
    batches = Batches(noise(4, None), torch.device("cpu"))
    model = ProductOfExperts(config.model, batches.shape, 10, seed=0)
    assert signs(model, batches, torch.arange(4))["free_depth"] == {"shallow": True, "deep": free}


def noise(count: int, bias: np.ndarray | None) -> Split:
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return Split(images, random.randint(0, 10, count).astype(np.uint8), bias)


def test_nothing_of_it_needs_a_bias_label() -> None:
    labelled, bare = (Batches(noise(30, bias), torch.device("cpu")) for bias in (np.arange(30, dtype=np.uint8), None))
    model = ProductOfExperts(load_config(preset_path("coloredmnist")).model, bare.shape, 10, seed=0)
    index = torch.arange(30)
    assert signs(model, bare, index) == signs(model, labelled, index)

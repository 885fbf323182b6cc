import hashlib
import math

import numpy as np
import pytest
import torch
from torch import nn

from denetdm_cli.data.batches import Batches
from denetdm_cli.data.store import Split
from denetdm_cli.evaluation.evaluator import divide, predict
from denetdm_cli.evaluation.metrics import Groups, group_metrics


def square(classes: int) -> Groups:
    return Groups(classes, classes, tuple(range(classes)))


def _by_hand(target: np.ndarray, bias: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    """The paper's metrics, group by group."""
    groups = {}
    for t in range(classes):
        for b in range(classes):
            hits = [p == t for t2, b2, p in zip(target, bias, predicted, strict=True) if (t2, b2) == (t, b)]
            if hits:
                groups[t, b] = sum(hits) / len(hits)
    worst = min(groups.values())
    aligned = [a for (t, b), a in groups.items() if t == b]
    conflicting = [a for (t, b), a in groups.items() if t != b]
    return {
        "unbiased": sum(groups.values()) / len(groups),
        "accuracy": sum(t == p for t, p in zip(target, predicted, strict=True)) / len(target),
        "aligned": sum(aligned) / len(aligned),
        "conflicting": sum(conflicting) / len(conflicting),
        "worst_group": worst,
    }


@pytest.mark.parametrize(("seed", "images", "classes"), [(0, 500, 4), (1, 60, 6), (2, 2000, 10)])
def test_group_metrics_beside_a_computation_by_hand(seed: int, images: int, classes: int) -> None:
    random = np.random.RandomState(seed)
    target, bias = random.randint(0, classes, (2, images))
    predicted = np.where(random.rand(images) < 0.7, target, random.randint(0, classes, images))
    found = group_metrics(target, bias, predicted, square(classes))
    for name, value in _by_hand(target, bias, predicted, classes).items():
        assert found[name] == pytest.approx(value), name
    t, b = found["worst_group_of"]
    assert found["groups"][t][b] == found["worst_group"]


def test_group_average_is_not_the_sample_average() -> None:
    target, bias = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    found = group_metrics(target, bias, np.zeros(10, int), square(2))
    assert found["accuracy"] == 0.9
    assert found["unbiased"] == 0.5
    assert found["worst_group_of"] == [1, 0]


def test_groups_without_images_never_become_nan() -> None:
    found = group_metrics(np.array([0, 1]), np.array([0, 1]), np.array([0, 0]), square(3))
    assert found["conflicting"] is None
    assert found["unbiased"] == found["aligned"] == 0.5
    assert found["groups"] == [[1.0, None, None], [None, 0.0, None], [None, None, None]]
    nothing = group_metrics(*(np.empty(0, int) for _ in range(3)), square(2))
    assert nothing["unbiased"] is nothing["accuracy"] is nothing["worst_group"] is None
    numbers = [value for value in found.values() if isinstance(value, float)]
    assert not any(math.isnan(value) for value in numbers)


def test_the_held_out_tenth_is_stratified_fixed_and_apart_from_the_test_part() -> None:
    random = np.random.RandomState(3)
    target, bias = random.randint(0, 10, (2, 10_000)).astype(np.uint8)
    valid, test = divide(target, bias)
    assert sorted([*valid, *test]) == list(range(10_000))
    for t in range(10):
        for b in range(10):
            members = np.flatnonzero((target == t) & (bias == b))
            assert np.isin(valid, members).sum() == round(len(members) / 10)
    # Pinned: the same images for everybody, so that results can be compared.
    assert hashlib.sha256(valid.astype("<i8").tobytes()).hexdigest() == PINNED


PINNED = "c6a8e4d78640436e950386cc18687f5a71d6992c5072a868d7810b1d21d5b8c7"


def test_one_pass_serves_all_predictors_in_evaluation_mode() -> None:
    random = np.random.RandomState(0)
    labels = random.randint(0, 3, (2, 2500)).astype(np.uint8)
    split = Split(random.randint(0, 256, (2500, 2, 2, 3)).astype(np.uint8), labels[0], labels[1])
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))
    calls = []

    def predictors(x: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(len(x))
        logits = model(x)
        return {"model": logits, "opposite": -logits}

    found = predict(model, predictors, Batches(split, torch.device("cpu")))
    assert sum(calls) == 2500
    assert model.training
    model.eval()
    x = torch.from_numpy(split.images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        probabilities = model(x).softmax(dim=1)
    assert found.predicted["model"].tolist() == probabilities.argmax(dim=1).tolist()
    np.testing.assert_allclose(found.confidence["model"], probabilities.max(dim=1).values, rtol=1e-5)
    assert found.predicted["opposite"].tolist() == probabilities.argmin(dim=1).tolist()
    assert found.target.tolist() == labels[0].tolist()
    some = found.at(np.array([5, 7]))
    assert some.index.tolist() == [5, 7]
    assert some.predicted["model"].tolist() == found.predicted["model"][[5, 7]].tolist()


def test_a_small_group_has_a_part_in_the_selection() -> None:
    target, bias = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 0, 1, 1, 1])
    valid, test = divide(target, bias)
    assert sorted(zip(target[valid], bias[valid], strict=True)) == [(0, 0), (1, 1)]
    assert 3 in test


def test_groups_need_not_be_square_and_any_bias_value_can_be_tied_to_a_class() -> None:
    """Two classes, three bias values; class 0 is tied to value 2 and class 1 to value 0."""
    target, bias = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([2, 2, 1, 0, 0, 1, 2])
    predicted = np.array([0, 1, 0, 1, 1, 0, 1])
    found = group_metrics(target, bias, predicted, Groups(2, 3, (2, 0)))
    assert found["groups"] == [[None, 1.0, 0.5], [1.0, 0.0, 1.0]]
    assert found["aligned"] == (0.5 + 1.0) / 2
    assert found["conflicting"] == (1.0 + 0.0 + 1.0) / 3
    assert found["worst_group_of"] == [1, 1]
    assert found["worst_class"] == 2 / 3
    assert found["worst_class_of"] == 0


def test_without_bias_labels_there_are_figures_by_class_alone() -> None:
    found = group_metrics(np.array([0, 0, 1, 2]), None, np.array([0, 1, 1, 2]), Groups(4, 1, ()))
    assert found["accuracy"] == 0.75
    assert (found["worst_class"], found["worst_class_of"]) == (0.5, 0)
    left = {"unbiased", "aligned", "conflicting", "worst_group", "worst_group_of", "groups"}
    assert {name for name, value in found.items() if value is None} == left


def test_a_tenth_of_each_class_is_held_out_without_bias_labels() -> None:
    target = np.repeat([0, 1], [100, 20])
    valid, test = divide(target, None)
    assert np.bincount(target[valid]).tolist() == [10, 2]
    assert len(test) == 108


def test_no_group_is_called_conflicting_where_the_tied_values_are_not_known() -> None:
    found = group_metrics(np.array([0, 1]), np.array([0, 1]), np.array([0, 0]), Groups(2, 2, ()))
    assert found["aligned"] is found["conflicting"] is None
    assert (found["unbiased"], found["worst_group"]) == (0.5, 0.0)

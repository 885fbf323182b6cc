"""Which epoch a selection rule keeps, and what is said of the images that picked it."""

import itertools
from typing import Any

import pytest

from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.config.schema import SelectionRule
from denetdm_cli.evaluation.selection import is_best, overlap, provenance, reported_metric

METRIC = "shallow.conflicting"


def kept(values: list[float | None], rule: SelectionRule, part: str) -> int:
    """The epoch that a run keeps which notes these values, one after another, on one part; the others rise or fall."""
    records: list[dict[str, Any]] = []
    best = 0
    for epoch, value in enumerate(values, start=1):
        others = {"evaluation": epoch / 100, "valid": -epoch / 100, "test": epoch / 100}
        figures = {name: {"conflicting": other, "accuracy": 0.5} for name, other in others.items()}
        figures[part]["conflicting"] = value
        records.append({"epoch": epoch, **{name: {"shallow": found} for name, found in figures.items()}})
        best = epoch if is_best(records, rule, METRIC) else best
    return best


@pytest.mark.parametrize(("rule", "part"), [("valid", "valid"), ("paper", "evaluation")])
@pytest.mark.parametrize(
    ("values", "epoch"),
    [
        ([0.2, 0.4, 0.3], 2),
        ([0.2, 0.4, 0.4, 0.1, 0.4], 2),
        ([0.3, 0.3], 1),
        ([0.0, None], 1),
        ([None, 0.0], 2),
        ([None, None], 1),
    ],
)
def test_the_best_epoch_is_kept_and_of_equal_ones_the_first(
    rule: SelectionRule, part: str, values: list[float | None], epoch: int
) -> None:
    assert kept(values, rule, part) == epoch


def test_the_last_epoch_is_kept_whatever_it_is() -> None:
    assert kept([0.9, 0.2, 0.1], "last", "valid") == 3


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("coloredmnist", "unbiased"),
        ("corruptedcifar10", "unbiased"),
        ("cmnist", "unbiased"),
        ("cifar10c", "unbiased"),
        ("bffhq", "conflicting"),
        ("bar", "conflicting"),
        ("celeba", "worst_group"),
        ("waterbirds", "worst_group"),
        ("folder", "accuracy"),
    ],
)
def test_the_figure_to_report_and_to_select_the_target_by(name: str, metric: str) -> None:
    config = load_config(preset_path(name))
    assert reported_metric(config, config.settings("distill")) == metric
    assert config.distill.selection_metric == f"target.{metric}"


@pytest.mark.parametrize(
    ("rule", "teacher", "picked_on", "reported_on", "on_test_data", "used_labels"),
    [
        ("last", None, [], "evaluation", False, False),
        ("valid", None, ["valid"], "test", False, True),
        ("paper", None, ["evaluation"], "evaluation", True, True),
        ("last", "last", [], "evaluation", False, False),
        ("last", "valid", ["valid"], "test", False, True),
        ("last", "paper", ["evaluation"], "evaluation", True, True),
        ("valid", "last", ["valid"], "test", False, True),
        ("valid", "paper", ["evaluation", "valid"], "test", True, True),
        ("paper", "valid", ["evaluation", "valid"], "test", True, True),
    ],
)
def test_what_picked_an_epoch_or_its_teacher_is_said(
    rule: SelectionRule,
    teacher: SelectionRule | None,
    picked_on: list[str],
    reported_on: str,
    on_test_data: bool,
    used_labels: bool,
) -> None:
    found = provenance(rule, "target.unbiased", teacher and provenance(teacher, METRIC, None))
    assert (found["rule"], found["teacher_rule"]) == (rule, teacher)
    assert (found["picked_on"], found["reported_on"]) == (picked_on, reported_on)
    assert (found["selected_on_test_data"], found["used_bias_labels"]) == (on_test_data, used_labels)


def test_no_bias_label_was_used_where_class_labels_alone_picked() -> None:
    for metric, used_labels in (("shallow.accuracy", False), (METRIC, True)):
        teacher = provenance("valid", metric, None)
        assert provenance("paper", "target.worst_class", teacher)["used_bias_labels"] is used_labels


def test_which_parts_share_images() -> None:
    pairs = {frozenset(pair) for pair in itertools.combinations(("evaluation", "valid", "test", "train"), 2)}
    divided = {frozenset(pair) for pair in (("evaluation", "valid"), ("evaluation", "test"))}
    own = {frozenset(("evaluation", "test"))}
    for shared, own_valid in ((divided, False), (own, True)):
        found = {pair for pair in pairs if overlap(*pair, own_valid=own_valid)}
        assert found == shared
        assert all(overlap(part, part, own_valid=own_valid) for part in ("evaluation", "valid", "test", "train"))

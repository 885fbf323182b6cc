"""Which epoch a selection rule keeps, and what is said of the images that picked it."""

from typing import Any

import pytest

from denetdm_cli.schema import SelectionRule
from denetdm_cli.selection import is_best

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

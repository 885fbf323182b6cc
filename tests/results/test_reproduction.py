"""The tables of Colored MNIST in the documentation are what the kept figures of every run come to."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from denetdm_cli.results.paper import RATIOS, TABLE_1

ROOT = Path(__file__).parents[2]
GROUPS = json.loads((ROOT / "tests/data/reproduction/coloredmnist.json").read_text(encoding="utf-8"))["groups"]
RULES = ("last", "valid", "paper")


def mean(group: dict[str, Any], *figure: str) -> str:
    """Mean and sample standard deviation over the seeds."""
    values = group["values"][".".join(figure)]
    assert len(values) == len(group["seeds"])
    return f"{statistics.fmean(values):.2f} ({statistics.stdev(values):.2f})"


def rows(group: dict[str, Any]) -> list[str]:
    """The lines of docs/explanation/results.md that hold a group's figures."""
    ratio = f"| {100 * group['conflict_ratio']:g} % "
    if group["stage"] == "distill":
        means = " | ".join(mean(group, "target", "unbiased", rule) for rule in RULES)
        paper = TABLE_1["coloredmnist"]["DeNetDM"][RATIOS.index(group["conflict_ratio"])]
        return [f"{ratio}| `{group['teacher_rule']}` | {means} | {paper.mean:.2f} ({paper.std:.2f}) |"]
    pairs = {
        branch: " | ".join(
            f"{mean(group, branch, 'conflicting', rule)} / {mean(group, branch, 'aligned', rule)}" for rule in RULES
        )
        for branch in ("shallow", "deep")
    }
    return [f"{ratio}| {branch} | {means} |" for branch, means in pairs.items()]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group['conflict_ratio']}-{group['teacher_rule']}")
def test_the_tables_hold_the_means(group: dict[str, Any]) -> None:
    page = (ROOT / "docs/explanation/results.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in rows(group):
        assert row in page, row
        if group["stage"] == "distill":
            assert row in readme, row


def test_every_ratio_of_the_paper_and_five_seeds_with_the_settings_of_the_preset() -> None:
    for stage, teacher in (("train-poe", None), ("distill", "paper")):
        groups = [group for group in GROUPS if (group["stage"], group["teacher_rule"]) == (stage, teacher)]
        assert [group["conflict_ratio"] for group in groups] == list(RATIOS)
        assert all(group["seeds"] == [0, 1, 2, 3, 4] and group["differing_settings"] == {} for group in groups)
    assert len({group["evaluation_digest"] for group in GROUPS}) == 1

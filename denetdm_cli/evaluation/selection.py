"""Which epoch a selection rule keeps, which images picked it, and which ones its result is reported on."""

from collections.abc import Mapping, Sequence
from typing import Any

from denetdm_cli.config.schema import Config, MethodSettings, SelectionRule
from denetdm_cli.evaluation.metrics import LABEL_METRICS

SELECTED_ON = {"last": None, "valid": "valid", "paper": "evaluation"}
"""The part of the evaluation split that a rule selects on; `paper` selects on the very images it reports."""


_REPORTED = {"bffhq": "conflicting", "bar": "conflicting", "celeba": "worst_group", "waterbirds": "worst_group"}


def reported_metric(config: Config, settings: MethodSettings) -> str:
    """The metric that the literature reports for a data set; for own images the one that the method is selected by."""
    if config.dataset.name == "folder":
        return settings.selection_metric.split(".")[1]
    return _REPORTED.get(config.dataset.name, "unbiased")


def overlap(part: str, other: str, *, own_valid: bool = False) -> bool:
    """Whether two parts of a data set share images.

    Args:
        part: evaluation, valid, test or train.
        other: the same.
        own_valid: whether `valid` is a split of its own; otherwise it and `test` make up `evaluation`.
    """
    reported = {"evaluation", "test"}
    if own_valid:
        return part == other or {part, other} <= reported
    return part == other or ("evaluation" in (part, other) and "train" not in (part, other))


def is_best(records: Sequence[Mapping[str, Any]], rule: SelectionRule, metric: str) -> bool:
    """Whether the newest epoch is the one the rule keeps so far; of equal ones it keeps the first.

    Args:
        records: the lines of metrics.jsonl, oldest first.
        rule: the selection rule.
        metric: `predictor.metric`, what the rules other than `last` maximise.
    """
    part = SELECTED_ON[rule]
    if part is None:
        return True
    predictor, name = metric.split(".")
    # A figure that needs groups without any image is None; such an epoch is kept only if there is no better one.
    *before, now = [-1.0 if (value := record[part][predictor][name]) is None else value for record in records]
    return all(now > value for value in before)


def provenance(rule: SelectionRule, metric: str, teacher: Mapping[str, Any] | None) -> dict[str, Any]:
    """The selection that led to a result, as every result states it.

    Args:
        rule: the selection rule.
        metric: what the rules other than `last` maximise.
        teacher: the same of the stage-1 epoch that a stage-2 model was distilled from.
    Returns:
        The rule and metric, the parts of the evaluation split on which the epoch or its teacher's was picked, the part
        that the result is reported on, whether the two share images, and whether bias labels were used to pick.
    """
    selected_on = SELECTED_ON[rule]
    teacher = teacher or {}
    picked_on = sorted({*teacher.get("picked_on", []), *([selected_on] if selected_on else [])})
    reported_on = "test" if "valid" in picked_on else "evaluation"
    used_labels = selected_on is not None and metric.split(".")[1] not in LABEL_METRICS
    return {
        "rule": rule,
        "teacher_rule": teacher.get("rule"),
        "metric": None if selected_on is None else metric,
        "selected_on": selected_on,
        "picked_on": picked_on,
        "reported_on": reported_on,
        "selected_on_test_data": any(overlap(part, reported_on) for part in picked_on),
        "used_bias_labels": used_labels or teacher.get("used_bias_labels", False),
    }


def selection_note(selection: Mapping[str, Any]) -> str:
    """In words: which epoch a result is of, and what images picked it."""
    picked = f"best {selection['metric']} on the part {selection['selected_on']!r}"
    words = [f"Selection rule {selection['rule']}: {picked if selection['selected_on'] else 'the last epoch'}"]
    if selection["teacher_rule"] not in (None, "last"):
        words.append(f"its teacher by the rule {selection['teacher_rule']}")
    if not selection["picked_on"]:
        words.append("nothing selected")
    if selection["selected_on_test_data"]:
        words.append("SELECTED ON TEST DATA")
    if selection["used_bias_labels"]:
        words.append("with bias labels of evaluation images")
    return f"{', '.join(words)}."

"""Tables of the status and the report of many runs: as text, Markdown, LaTeX, CSV and JSON."""

import csv
import io
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tabulate import LATEX_ESCAPE_RULES, tabulate

from denetdm_cli.config.load import as_yaml
from denetdm_cli.config.schema import SELECTION_RULES
from denetdm_cli.results.aggregate import ChangedSetting, MetricSummary, SeedGroup
from denetdm_cli.results.records import MetricName, StageSummary
from denetdm_cli.utils.log import shown
from denetdm_cli.utils.text import duration

CSV_COLUMNS = (
    "dataset", "conflict_ratio", "stage", "teacher_rule", "differing_settings", "predictor", "metric", "rule",
    "selected_on_test_data", "reported_on", "n", "seeds", "mean", "std", "paper_mean", "paper_std", "difference",
)  # fmt: skip

_TEST_DATA = "*"
_DEVIATION = "In %. In parentheses the sample standard deviation (n - 1) over the seeds"


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        title: above the table; empty for none.
        columns: headings.
        rows: one cell for each column.
        text_columns: how many of the first columns hold text, aligned left; the others hold numbers.
        notes: below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int
    notes: Sequence[str] = ()

    def to_text(self) -> str:
        """Columns of a fixed width; control characters are escaped."""
        notes = [shown(note) for note in self.notes]
        return _paragraphs([shown(self.title)], [self._tabulate("simple", shown)], notes)

    def to_markdown(self) -> str:
        """A table of GitHub's Markdown."""
        title = f"**{_markdown(self.title)}**" if self.title else ""
        return _paragraphs(
            [title], [self._tabulate("pipe", _markdown)], [f"- {_markdown(note)}" for note in self.notes]
        )

    def to_latex(self) -> str:
        """A floating table that needs no package."""
        caption = [rf"\caption{{{_latex(self.title)}.}}"] if self.title else []
        notes = [rf"\par {_latex(note)}" for note in self.notes]
        lines = [r"\begin{table}", r"\centering", *caption, self._tabulate("latex_raw", _latex), *notes, r"\end{table}"]
        return "\n".join(lines) + "\n"

    def _tabulate(self, layout: str, escape: Callable[[str], str]) -> str:
        columns, *rows = [[escape(cell) for cell in row] for row in (self.columns, *self.rows)]
        align = ["left" if at < self.text_columns else "right" for at in range(len(columns))]
        return tabulate(rows, columns, tablefmt=layout, colalign=align, disable_numparse=True)


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Comma-separated values, numbers in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _paragraphs(*paragraphs: Sequence[str]) -> str:
    return "\n\n".join(filter(None, map("\n".join, paragraphs))) + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", shown(text))


def _latex(text: str) -> str:
    escaped = "".join(LATEX_ESCAPE_RULES.get(character, character) for character in shown(text))
    # A hyphen before a number is a minus sign, between two numbers a dash.
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", re.sub(r"(?<=\d)-(?=\d)", "--", escaped))


def status_table(summaries: Sequence[StageSummary], names: Sequence[str]) -> TextTable:
    """One row for each stage, `names` of the runs in the first column; notes with the problems of failed stages."""
    rows = [
        (
            name,
            each.folder.name,
            each.state,
            _epochs(each),
            _left(each),
            "-" if each.written is None else f"{duration(max(time.time() - each.written, 0))} ago",
            _headline(each),
        )
        for name, each in zip(names, summaries, strict=True)
    ]
    notes = [f"{each.folder}: {each.problem}" for each in summaries if each.problem]
    columns = ("run", "stage", "state", "epoch", "left", "written", "accuracy in %")
    return TextTable("", columns, rows, text_columns=len(columns), notes=notes)


def status_json(summaries: Sequence[StageSummary], names: Sequence[str]) -> list[dict[str, Any]]:
    """The status for programs: times in seconds, accuracies between 0 and 1."""
    return [
        {
            "run": name,
            "stage": each.folder.name,
            "path": str(each.folder.resolve()),
            "state": each.state,
            "problem": each.problem,
            "epoch": each.epoch,
            "epochs": each.epochs,
            "seconds_left": each.seconds_left,
            "written": each.written,
            "headline": None if each.headline is None else vars(each.headline),
        }
        for name, each in zip(names, summaries, strict=True)
    ]


def report_tables(groups: Sequence[SeedGroup]) -> list[TextTable]:
    """One table for each data set, stage, teacher and settings, with a row for each ratio, predictor and metric."""
    together = groupby(groups, key=lambda group: (group.dataset, group.stage, group.teacher, group.settings))
    return [_report_table(list(alike)) for _, alike in together]


def csv_rows(groups: Sequence[SeedGroup]) -> list[tuple[object, ...]]:
    """One row for each figure, with the columns `CSV_COLUMNS`; a missing value is empty."""
    return [
        (
            group.dataset,
            "" if group.ratio is None else group.ratio,
            group.stage,
            group.teacher or "",
            "; ".join(map(_setting, group.settings)),
            summary.predictor,
            summary.metric,
            summary.rule,
            str(summary.on_test_data).lower(),
            summary.reported_on,
            len(summary.values),
            " ".join(map(str, group.seeds)),
            summary.mean,
            "" if summary.std is None else summary.std,
            "" if summary.paper is None else summary.paper.mean,
            "" if summary.paper is None or summary.paper.std is None else summary.paper.std,
            "" if summary.difference is None else summary.difference,
        )
        for group in groups
        for summary in group.metrics.values()
    ]


def report_json(groups: Sequence[SeedGroup], left_out: Sequence[StageSummary]) -> dict[str, Any]:
    """All figures in full precision, and the runs they are from."""
    return {
        "unit": "percent",
        "std": "sample standard deviation (n - 1)",
        "groups": [
            {
                "dataset": group.dataset,
                "conflict_ratio": group.ratio,
                "stage": group.stage,
                "teacher_rule": group.teacher,
                "differing_settings": {s.key: {"value": s.value, "preset": s.preset} for s in group.settings},
                "digest": group.runs[0].results.dataset.digest,
                "evaluation_digest": group.runs[0].results.dataset.evaluation_digest,
                "reported_metric": group.reported_metric,
                "runs": [
                    {
                        "seed": run.results.seed,
                        "path": str(run.folder.resolve()),
                        "epochs": {rule: kept.epoch for rule, kept in run.results.rules.items()},
                    }
                    for run in group.runs
                ],
                "figures": [_figure(summary) for summary in group.metrics.values()],
            }
            for group in groups
        ],
        "left_out": [
            {"path": str(each.folder.resolve()), "state": each.state, "problem": each.problem} for each in left_out
        ],
    }


def _figure(summary: MetricSummary) -> dict[str, Any]:
    return {
        "predictor": summary.predictor,
        "metric": summary.metric,
        "rule": summary.rule,
        "selected_on_test_data": summary.on_test_data,
        "reported_on": summary.reported_on,
        "n": len(summary.values),
        "values": list(summary.values),
        "mean": summary.mean,
        "std": summary.std,
        "paper": None if summary.paper is None else summary.paper._asdict(),
        "difference": summary.difference,
    }


def _report_table(groups: Sequence[SeedGroup]) -> TextTable:
    compared = any(summary.paper for group in groups for summary in group.metrics.values())
    rows = [
        _report_row(group, predictor, metric, compared)
        for group in groups
        for predictor in group.predictors
        for metric in group.main_metrics
        if (predictor, metric, "last") in group.metrics
    ]
    columns = ["conflict ratio", "model", "accuracy", "seeds", "n"]
    for rule in SELECTION_RULES:
        columns += [f"rule {rule}", "diff."] if compared else [f"rule {rule}"]
    if compared:
        columns.append("published, other settings" if groups[0].settings else "published")
    return TextTable(_title(groups[0]), columns, rows, text_columns=4, notes=_notes(groups, compared))


def _report_row(group: SeedGroup, predictor: str, metric: MetricName, compared: bool) -> list[str]:
    row = [
        "-" if group.ratio is None else f"{100 * group.ratio:g} %",
        predictor,
        metric.replace("_", " "),
        _ranges(group.seeds),
        str(len(group.runs)),
    ]
    for rule in SELECTION_RULES:
        summary = group.metrics.get((predictor, metric, rule))
        row.append(
            "-" if summary is None else _mean(summary.mean, summary.std) + (_TEST_DATA if summary.on_test_data else "")
        )
        if compared:
            row.append("-" if summary is None or summary.difference is None else f"{summary.difference:+.2f}")
    if compared:
        paper = group.metrics[predictor, metric, "last"].paper
        row.append("-" if paper is None else _mean(*paper))
    return row


def _title(group: SeedGroup) -> str:
    title = f"{group.dataset}, {group.stage}"
    if group.teacher is not None:
        title += f", teacher by rule {group.teacher}"
    return title + "".join(f", {setting}" for setting in group.settings)


def _notes(groups: Sequence[SeedGroup], compared: bool) -> list[str]:
    settings = groups[0].settings
    notes = [_DEVIATION + (", of the published figures over 5; diff. is in percentage points." if compared else ".")]
    if any(summary.on_test_data for group in groups for summary in group.metrics.values()):
        notes.append(f"{_TEST_DATA} SELECTED ON TEST DATA, as by the official code.")
    measured = {rule: summary.reported_on for group in groups for (_, _, rule), summary in group.metrics.items()}
    on_part = [rule for rule in SELECTION_RULES if measured.get(rule) == "test"]
    if on_part:
        others = "; the others on all of it." if len(on_part) < len(measured) else "."
        notes.append(
            f"Rule {', '.join(on_part)}: measured on the evaluation split without the images that rule valid picks on"
            + others
        )
    if settings:
        notes.append(f"NOT the settings of the preset: {'; '.join(map(_setting, settings))}.")
    return notes


def _setting(setting: ChangedSetting) -> str:
    return f"{setting} (preset: {'not set' if setting.preset is None else as_yaml(setting.preset)})"


def _mean(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ({std:.2f})"


def _ranges(seeds: Sequence[int]) -> str:
    """Sorted seeds, three or more in a row as a range."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _epochs(each: StageSummary) -> str:
    return "-" if each.epoch is None else f"{each.epoch}/{'?' if each.epochs is None else each.epochs}"


def _left(each: StageSummary) -> str:
    if each.seconds_left is None:
        return "-"
    return f"{'' if each.state == 'running' else 'needs '}{duration(each.seconds_left)}"


def _headline(each: StageSummary) -> str:
    found = each.headline
    if found is None or found.value is None:
        return "-"
    of = f"epoch {found.epoch}" if found.rule is None else f"rule {found.rule}"
    if found.rule is not None and each.results and each.results.rules[found.rule].selected_on_test_data:
        of += ", SELECTED ON TEST DATA"
    return f"{found.predictor} {found.metric.replace('_', ' ')} {100 * found.value:.2f} ({of})"


def run_name(folder: Path, given: Sequence[Path]) -> str:
    """The folder of the run, relative to the only path that was given or else as it is."""
    run = folder.parent
    if len(given) == 1 and run != given[0] and run.is_relative_to(given[0]):
        return str(run.relative_to(given[0]))
    return str(run)

"""Plots of a report as PNG and SVG, for one column of a paper, in colors that color-blind readers can tell apart."""

import hashlib
import re
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from itertools import cycle, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denetdm_cli.config.schema import SELECTION_RULES
from denetdm_cli.results.aggregate import FinishedRun, SeedGroup
from denetdm_cli.results.paper import NEEDS_BIAS_LABELS, RATIOS, TABLE_1, row_of
from denetdm_cli.results.records import EpochRecord, MetricName, accuracy_of, records_of
from denetdm_cli.utils.errors import CheckpointError, ConfigError
from denetdm_cli.utils.files import atomic_file
from denetdm_cli.utils.log import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLACK, _BLUE, _VERMILLION, _GREEN, _PURPLE, _GREY = "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#999999"
"""Of the palette of Okabe and Ito, and a grey."""
_LINES = ((_BLUE, "-"), (_VERMILLION, "--"), (_BLACK, ":"), (_GREEN, "-."), (_PURPLE, (0, (5, 1))))
"""Color and line of the predictors in turn."""
_MARKERS = {"last": (_BLUE, "o"), "valid": (_GREEN, "s"), "paper": (_VERMILLION, "^")}
_COLUMN = 3.35
"""Width of one column of a paper, in inches."""
_MOST_NUMBERED = 12
"""Classes or bias values up to which the cells of a heat map hold numbers."""
_STYLE: dict[str, Any] = {
    "figure.figsize": (_COLUMN, 3.1),
    "figure.constrained_layout.use": True,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "text.parse_math": False,  # a $ in a name is a $
    "savefig.dpi": 300,
    "svg.hashsalt": "denetdm",  # or else the marks of an SVG file have names drawn by chance
}


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import_module("matplotlib")
    except ImportError as error:
        raise ConfigError(
            f"--plots needs matplotlib, which is not installed: {error}",
            "Install it with pip install 'denetdm[plots]', or leave out --plots.",
        ) from None


def draw(groups: Sequence[SeedGroup], folder: Path) -> Iterator[Path]:
    """Draw all plots and yield their files.

    For every group accuracy by epoch and a matrix of the (target, bias) groups; for groups that differ only in the
    conflict ratio, accuracy by ratio.

    Raises:
        CheckpointError: metrics.jsonl of a finished run is missing or damaged.
        ConfigError: the folder, or one above it, is a file.
    """
    from matplotlib import style

    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(
                f"--plots {folder}: {place} is no folder", "Give a folder, or the name of one to be made."
            )
    with style.context(["default", _STYLE]):  # whatever the user's own matplotlibrc says
        for group in groups:
            yield from _save(_by_epoch(group), folder, f"{_name(group)}-epochs")
            for predictor in group.predictors:
                figure = _group_matrix(group, predictor)
                if figure is not None:
                    yield from _save(figure, folder, f"{_name(group)}-groups-{predictor}")
        known = [group for group in groups if group.ratio is not None and group.reported("last")]
        for _, alike in groupby(known, key=lambda group: (group.dataset, group.stage, group.teacher, group.settings)):
            several = list(alike)
            yield from _save(_by_ratio(several), folder, f"{_name(several[0], ratio=False)}-ratios")


def _save(figure: "Figure", folder: Path, name: str) -> Iterator[Path]:
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        path = folder / f"{name}.{ending}"
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format=ending, metadata=metadata)
        yield path


def _by_epoch(group: SeedGroup) -> "Figure":
    """Mean over the seeds and the band from the lowest to the highest, a panel for each accuracy."""
    from matplotlib.figure import Figure

    runs = [_records(run) for run in group.runs]
    epochs = [record.epoch for record in runs[0]]
    metrics = group.main_metrics
    figure = Figure(figsize=(_COLUMN, 0.8 + 1.5 * len(metrics)))
    panels = figure.subplots(len(metrics), sharex=True, squeeze=False)[:, 0]
    for axes, metric in zip(panels, metrics, strict=True):
        for predictor, (color, line) in zip(group.predictors, cycle(_LINES), strict=False):
            values = [_series(records, predictor, metric) for records in runs]
            by_epoch = list(zip(*values, strict=True))
            axes.plot(
                epochs, [statistics.fmean(each) for each in by_epoch], ls=line, color=color, label=predictor, lw=1.2
            )
            lowest, highest = [min(each) for each in by_epoch], [max(each) for each in by_epoch]
            axes.fill_between(epochs, lowest, highest, color=color, alpha=0.2, lw=0)
        axes.set_ylabel(_axis(metric))
        if len(group.predictors) > 1:
            axes.set_ylim(-3, 103)  # one predictor moves little, and is shown as closely as it allows
    panels[-1].set_xlabel("epoch")
    panels[-1].set_xlim(epochs[0], max(epochs[-1], epochs[0] + 1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    panels[0].set_title(_title(group, _over([group], "mean and range")))
    return figure


def _records(run: FinishedRun) -> list[EpochRecord]:
    """Every epoch of a run.

    Raises:
        CheckpointError: metrics.jsonl is missing, damaged or not whole.
    """
    remedy = "Bring the file back, or leave out --plots."
    try:
        records = records_of(run.folder)
    except CheckpointError as error:
        raise CheckpointError(error.what, remedy) from None
    if len(records) != run.results.epochs:
        what = f"{run.folder / 'metrics.jsonl'} holds {len(records)} of {run.results.epochs} epochs"
        raise CheckpointError(what, remedy)
    return records


def _series(records: Iterable[EpochRecord], predictor: str, metric: MetricName) -> list[float]:
    values = [accuracy_of(record.evaluation, predictor, metric) for record in records]
    return [float("nan") if value is None else 100 * value for value in values]


def _by_ratio(groups: Sequence[SeedGroup]) -> "Figure":
    """The reported accuracy by conflict ratio, mean and deviation, and the paper's."""
    from matplotlib.figure import Figure

    metric = groups[0].reported_metric
    ratios = sorted({group.ratio for group in groups if group.ratio is not None})
    figure = Figure()
    axes = figure.subplots()
    _draw_others(axes, groups[0], ratios)
    for at, rule in enumerate(SELECTION_RULES):
        summaries = [(ratios.index(group.ratio or 0), group.reported(rule)) for group in groups]
        color, marker = _MARKERS[rule]
        label = f"rule {rule}" + (
            " (test data)" if any(summary and summary.on_test_data for _, summary in summaries) else ""
        )
        points = [(place + 0.12 * (at - 1.5), summary.mean, summary.std) for place, summary in summaries if summary]
        _draw_points(axes, points, color, marker, label)
    published = [(ratios.index(group.ratio or 0), group.reported("last")) for group in groups]
    points = [
        (place + 0.18, summary.paper.mean, summary.paper.std)
        for place, summary in published
        if summary and summary.paper
    ]
    _draw_points(axes, points, _BLACK, "D", f"{row_of(groups[0].stage) or groups[0].stage}, the paper")
    axes.set_xticks(range(len(ratios)), [f"{100 * ratio:g}" for ratio in ratios])
    axes.set_xlim(-0.5, len(ratios) - 0.5)
    axes.set_xlabel("conflict ratio of the training images (%)")
    axes.set_ylabel(_axis(metric))
    figure.legend(loc="outside lower center", ncols=2)
    axes.set_title(_title(groups[0], _over(groups, "mean and standard deviation"), ratio=False))
    return figure


def _draw_points(
    axes: "Axes", points: Sequence[tuple[float, float, float | None]], color: str, marker: str, label: str
) -> None:
    """Points (x, mean, deviation), with a bar where there is a deviation."""
    if not points:
        return
    places, means, deviations = zip(*points, strict=True)
    bars = [deviation or 0 for deviation in deviations]
    looks: dict[str, Any] = {"fmt": marker, "color": color, "markerfacecolor": "w", "markersize": 3.5, "linewidth": 0.9}
    axes.errorbar(places, means, yerr=bars, capsize=2.5, label=label, **looks)


def _draw_others(axes: "Axes", group: SeedGroup, ratios: Sequence[float]) -> None:
    """The other methods of Table 1 that need no bias labels, in the background."""
    if group.reported_metric != "unbiased":
        return
    label = "other methods, the paper"
    for row, figures in TABLE_1.get(group.dataset, {}).items():
        if row in (*NEEDS_BIAS_LABELS, row_of(group.stage)):
            continue
        points = [(ratios.index(r), figure.mean) for r, figure in zip(RATIOS, figures, strict=True) if r in ratios]
        if points:
            axes.plot(*zip(*points, strict=True), ".-", color=_GREY, ms=3, lw=0.7, alpha=0.7, label=label)
            label = "_"


def _group_matrix(group: SeedGroup, predictor: str) -> "Figure | None":
    """Accuracy of every (target, bias) group, mean over the seeds; None where there are no bias labels."""
    from matplotlib.figure import Figure

    rule = group.teacher or "last"
    kept = [run.results.rules[rule].metrics[predictor].groups for run in group.runs]
    if any(matrix is None for matrix in kept):
        return None
    matrices = [matrix for matrix in kept if matrix is not None]
    data = group.runs[0].results.dataset
    shares = [
        [float("nan") if None in cell else 100 * statistics.fmean(cell) for cell in zip(*rows, strict=True)]
        for rows in zip(*matrices, strict=True)
    ]
    figure = Figure(figsize=(_COLUMN, 3.2))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    figure.colorbar(image, ax=axes, label="accuracy (%)", pad=0.02)
    axes.set_xticks(range(len(shares[0])), [*map(shown, data.bias_names)], rotation=90)
    axes.set_yticks(range(len(shares)), [*map(shown, data.class_names)])
    axes.set_xlabel("bias value")
    axes.set_ylabel("target class")
    if max(len(shares), len(shares[0])) <= _MOST_NUMBERED:
        for y, row in enumerate(shares):
            for x, share in enumerate(row):
                text = f"{share:.0f}" if share == share else "-"
                axes.text(x, y, text, ha="center", va="center", size=6, color="w" if share < 50 else "k")
    axes.set_title(_title(group, f"{predictor}, rule {rule}, " + _over([group], "mean")))
    return figure


def _axis(metric: str) -> str:
    return f"{metric.replace('_', ' ')}{'' if metric == 'accuracy' else ' accuracy'} (%)"


def _over(groups: Sequence[SeedGroup], what: str) -> str:
    """What is shown and over how many seeds."""
    counts = sorted({len(group.runs) for group in groups})
    several = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return "1 seed" if counts[-1] == 1 else f"{what} of {several} seeds"


def _title(group: SeedGroup, what: str, *, ratio: bool = True) -> str:
    name = f"{group.dataset}, {group.stage}"
    if ratio and group.ratio is not None:
        name += f", {100 * group.ratio:g} % conflicting"
    if group.teacher not in (None, "last"):
        name += f", teacher {group.teacher}"
    settings = ", ".join(map(str, group.settings))
    return "\n".join([*textwrap.wrap(shown(name), 52), what, *textwrap.wrap(shown(settings), 52)])


def _name(group: SeedGroup, *, ratio: bool = True) -> str:
    """Name of the files of a group, the same in every report."""
    parts = [group.dataset]
    if ratio and group.ratio is not None:
        parts.append(str(group.ratio))
    parts.append(group.stage if group.teacher in (None, "last") else f"{group.stage}-from-{group.teacher}")
    if group.settings:
        parts.append(hashlib.sha256(repr(group.settings).encode()).hexdigest()[:8])
    return re.sub(r"[^\w.-]+", "-", "-".join(parts))

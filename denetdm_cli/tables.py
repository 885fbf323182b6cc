"""Results as tables on stdout."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from denetdm_cli.console import percent
from denetdm_cli.data.store import Split, StoredDataset
from denetdm_cli.evaluation import LABEL_METRICS
from denetdm_cli.logs import quiet, say, show_warnings, stream
from denetdm_cli.scoring import Score
from denetdm_cli.selection import selection_note
from denetdm_cli.stages import Finished

_PREDICTOR_NAMES = {"product": "product of experts"}
if TYPE_CHECKING:  # it brings what downloads need, which no other table does
    from denetdm_cli.pretrained import Listed

_WIDTH_OF_NAMES = 10
_COLUMNS = ("unbiased", "accuracy", "aligned", "conflicting", "worst_group")


def show_finished(finished: Finished, rule: str, next_command: str) -> None:
    """One table for a stage and the next command to type."""
    results = finished.results
    kept = results["rules"][rule]
    if finished.already:
        say(f"{finished.folder} is finished already; nothing was trained. Start anew with --force.")
    names = results["dataset"]
    columns = _columns(kept["metrics"])
    title = f"{results['stage']} on {names['name']}, seed {results['seed']}"
    table = _metrics_table(title, columns, results["reported_metric"])
    for name, metrics in kept["metrics"].items():
        _metrics_row(table, name, metrics, names, columns)
    out = stream(stderr=False)
    out.print(table)
    _show_star(out, columns, results["reported_metric"])
    out.print(f"{selection_note(kept)} Epoch {kept['epoch']} of {results['epochs']}.", markup=False, soft_wrap=True)
    out.print(f"Measured on the {kept['reported_on']} part of {names['evaluation_split']}/.", markup=False)
    out.print(f"Run folder: {finished.folder}", markup=False, soft_wrap=True)
    if not quiet():
        out.print(f"Next: {next_command}", markup=False, soft_wrap=True)
    if kept["separation"]:
        show_warnings(kept["separation"]["warnings"])


def show_scores(scores: Sequence[Score], summary: Mapping[str, Any]) -> None:
    """A table a checkpoint with its group matrix, or mean and standard deviation over several."""
    out = stream(stderr=False)
    if len(scores) == 1:
        (score,) = scores
        columns = _columns(score.metrics)
        title = _title(score.metadata)
        table = _metrics_table(title, columns, score.metadata["reported_metric"])
        for name, metrics in score.metrics.items():
            _metrics_row(table, name, metrics, score.dataset, columns)
        out.print(table)
        _show_star(out, columns, score.metadata["reported_metric"])
        _show_provenance(out, score)
        shipped = next(iter(score.metrics))
        groups = score.metrics[shipped]["groups"]
        if groups is not None:
            out.print(_group_table(shipped, groups, score.dataset))
            empty = sum(share is None for row in groups for share in row)
            if empty:
                total = len(groups) * len(groups[0])
                out.print(f"{empty} of {total} groups have no image here; no mean counts them.", markup=False)
        return
    columns = _columns(scores[0].metrics)
    title = f"{scores[0].metadata['stage']}, {len(scores)} checkpoints: mean (standard deviation)"
    table = _metrics_table(title, columns, scores[0].metadata["reported_metric"])
    for name, metrics in summary.items():
        cells = [
            f"{100 * metrics[key]['mean']:.2f} ({100 * metrics[key]['std']:.2f})" if key in metrics else "-"
            for key in columns
        ]
        table.add_row(_PREDICTOR_NAMES.get(name, name), *cells)
    out.print(table)
    _show_star(out, columns, scores[0].metadata["reported_metric"])
    _show_provenance(out, scores[0])
    for score in scores:
        out.print(
            f"  {score.path}: seed {score.metadata['seed']}, epoch {score.metadata['epoch']}",
            markup=False,
            soft_wrap=True,
        )


def _show_star(out: Console, columns: Sequence[str], reported: str) -> None:
    if reported in columns:
        out.print(f"* {reported.replace('_', ' ')} is the figure to report for this data set.", markup=False)


def _show_provenance(out: Console, score: Score) -> None:
    out.print(
        f"{score.part} part of {score.dataset['path']}/{score.dataset['folder']}, "
        f"{len(score.predictions.target):,} images. {selection_note(score.metadata['selection'])}",
        markup=False,
        soft_wrap=True,
    )
    if score.on_selection_data:
        out.print("Some of these images picked an epoch, so the figures are too good for a test.", markup=False)


def show_dataset(dataset: StoredDataset, title: str, *, groups: bool, digest: bool = True) -> None:
    """Counts of a data set.

    Args:
        dataset: the data set.
        title: what it is, and whether it was made now.
        groups: show also how many images each group of each split has.
        digest: show also size and digest of what is stored.
    """
    out = stream(stderr=False)
    table = Table(title=escape(title), box=box.SIMPLE_HEAD)
    for column in ("split", "images", "bias-aligned", "bias-conflicting", "conflict ratio", "groups", "smallest group"):
        table.add_column(column, justify="left" if column == "split" else "right")
    classes, biases = len(dataset.class_names), len(dataset.bias_names)
    for name, split in dataset.splits.items():
        counts = split.group_counts(classes, biases)
        total = int(counts.sum())
        cells = [f"{total:,}", "-", "-", "-"]
        if split.bias is not None and dataset.aligned:
            tied = np.asarray(dataset.aligned)[split.target]
            aligned = int((split.bias == tied).sum())
            cells = [f"{total:,}", f"{aligned:,}", f"{total - aligned:,}", f"{(total - aligned) / total:.4f}"]
        present = counts[counts > 0]
        table.add_row(name, *cells, str(present.size), str(present.min()))
    out.print(table)
    if groups:
        judged = {name: split for name, split in dataset.splits.items() if split.bias is not None}
        if len(judged) < len(dataset.splits):
            out.print(_class_table(dataset))
        for name, split in judged.items():
            out.print(_count_table(dataset, name, split))
    if not biases:
        out.print("No bias labels: figures are by class alone.", markup=False)
    if digest:
        height, width = dataset.evaluation.images.shape[1:3]
        out.print(f"Images of {height}x{width} pixels. Digest {dataset.digest}", markup=False, soft_wrap=True)


def show_published(listed: "Sequence[Listed]", address: str) -> None:
    """The authors' models, and what of them is in a folder."""
    table = Table(title="published models", box=box.SIMPLE_HEAD, padding=0)
    for column in ("name", "stage", "paper", "size", "here"):
        table.add_column(column, justify="right" if column in ("paper", "size") else "left")
    for each in listed:
        published = each.published
        size = "unknown" if each.size is None else f"{each.size / 2**20:.1f} MiB"
        here = "no" if each.path is None else escape(str(each.path))
        table.add_row(published.name, published.stage, f"{published.accuracy:.2f}", size, here)
    out = stream(stderr=False)
    out.print(table)
    for each in listed:
        out.print(
            f"{each.published.name}: {each.published.metric}; {each.published.note}.", markup=False, soft_wrap=True
        )
    out.print(f"Authors' folder: {address}", markup=False, soft_wrap=True)


def _class_table(dataset: StoredDataset) -> Table:
    table = Table(title="images by class", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("target", no_wrap=True, min_width=_WIDTH_OF_NAMES)
    counts = []
    for name, split in dataset.splits.items():
        table.add_column(name, justify="right")
        counts.append(np.bincount(split.target, minlength=len(dataset.class_names)))
    for label, target in enumerate(dataset.class_names):
        table.add_row(escape(target), *(f"{count[label]:,}" if count[label] else "-" for count in counts))
    return table


def _count_table(dataset: StoredDataset, name: str, split: Split) -> Table:
    counts = split.group_counts(len(dataset.class_names), len(dataset.bias_names))
    table = Table(title=f"{name}: images by group (rows: target, columns: bias)", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("target", no_wrap=True, min_width=_WIDTH_OF_NAMES)
    for bias in dataset.bias_names:
        table.add_column(escape(bias), justify="right")
    for target, row in zip(dataset.class_names, counts.tolist(), strict=True):
        table.add_row(escape(target), *(f"{count:,}" if count else "-" for count in row))
    return table


def _title(metadata: Mapping[str, Any]) -> str:
    if metadata["epoch"] is None:
        return f"{metadata['stage']}, converted from {metadata['source']['file']}"
    return f"{metadata['stage']}, seed {metadata['seed']}, epoch {metadata['epoch']}"


def _columns(metrics: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The figures to show: by class alone where there are no bias labels to judge by."""
    judged = any(metrics[name]["groups"] is not None for name in metrics)
    return _COLUMNS if judged else LABEL_METRICS


def _metrics_table(title: str, columns: Sequence[str], reported: str) -> Table:
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, padding=0, caption="accuracy in %", caption_justify="right")
    table.add_column("predictor")
    for column in columns:
        table.add_column(column.replace("_", " ") + ("*" if column == reported else ""), justify="right")
    return table


def _metrics_row(
    table: Table, name: str, metrics: Mapping[str, Any], names: Mapping[str, Any], columns: Sequence[str]
) -> None:
    cells = {key: percent(metrics[key]) for key in columns}
    if "worst_group" in cells and metrics["worst_group_of"] is not None:
        target, bias = metrics["worst_group_of"]
        cells["worst_group"] += f" ({names['class_names'][target]}, {names['bias_names'][bias]})"
    if "worst_class" in cells and metrics["worst_class_of"] is not None:
        cells["worst_class"] += f" ({names['class_names'][metrics['worst_class_of']]})"
    table.add_row(escape(_PREDICTOR_NAMES.get(name, name)), *map(escape, cells.values()))


def _group_table(predictor: str, groups: Sequence[Sequence[float | None]], names: Mapping[str, Any]) -> Table:
    title = f"{predictor}: accuracy by group in % (rows: target, columns: bias)"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    table.add_column("target", no_wrap=True, min_width=_WIDTH_OF_NAMES)
    for bias in names["bias_names"]:
        table.add_column(escape(bias), justify="right")
    for target, row in zip(names["class_names"], groups, strict=True):
        table.add_row(escape(target), *("-" if share is None else f"{100 * share:.1f}" for share in row))
    return table

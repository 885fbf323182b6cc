"""Results as tables on stdout."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from denetdm_cli.data.store import StoredDataset
from denetdm_cli.evaluation.metrics import LABEL_METRICS
from denetdm_cli.evaluation.selection import selection_note
from denetdm_cli.methods.base import warnings_in
from denetdm_cli.results.score import Score
from denetdm_cli.training.events import StageFinished
from denetdm_cli.utils.log import info, quiet, show_warnings, stream
from denetdm_cli.utils.text import percent

if TYPE_CHECKING:  # it brings what downloads need, which no other table does
    from denetdm_cli.hub.pretrained import Listed

_COLUMNS = ("unbiased", "accuracy", "aligned", "conflicting", "worst_group")


def show_finished(finished: StageFinished, rule: str, next_command: str) -> None:
    """The results of a stage, and the command that follows it."""
    results = finished.results
    kept = results["rules"][rule]
    if finished.already:
        info(f"{finished.folder} is finished already; nothing was trained. Start anew with --force.")
    names = results["dataset"]
    out = stream(stderr=False)
    title = f"{results['stage']} on {names['name']}, seed {results['seed']}"
    _show_metrics(out, title, kept["metrics"], names, results["reported_metric"])
    out.print(f"{selection_note(kept)} Epoch {kept['epoch']} of {results['epochs']}.", markup=False, soft_wrap=True)
    out.print(f"Measured on the {kept['reported_on']} part of {names['evaluation_split']}/.", markup=False)
    out.print(f"Run folder: {finished.folder}", markup=False, soft_wrap=True)
    if not quiet():
        out.print(f"Next: {next_command}", markup=False, soft_wrap=True)
    show_warnings(warnings_in(kept))


def show_scores(scores: Sequence[Score], summary: Mapping[str, Any]) -> None:
    """Metrics and groups of one checkpoint, or mean and standard deviation over several."""
    out = stream(stderr=False)
    metadata = scores[0].metadata
    if len(scores) == 1:
        (score,) = scores
        title = f"{metadata['stage']}, {_which(metadata)}"
        _show_metrics(out, title, score.metrics, score.dataset, metadata["reported_metric"])
        _show_provenance(out, score)
        _show_groups(out, score)
        return
    columns = _columns(scores[0].metrics)
    rows = [
        [
            name,
            *(
                f"{100 * metrics[key]['mean']:.2f} ({100 * metrics[key]['std']:.2f})" if key in metrics else "-"
                for key in columns
            ),
        ]
        for name, metrics in summary.items()
    ]
    title = f"{metadata['stage']}, {len(scores)} checkpoints: mean (standard deviation), accuracy in %"
    _show_table(out, title, ["predictor", *_starred(columns, metadata["reported_metric"])], rows)
    _show_star(out, columns, metadata["reported_metric"])
    _show_provenance(out, scores[0])
    for score in scores:
        out.print(f"  {score.path}: {_which(score.metadata)}", markup=False, soft_wrap=True)


def _show_metrics(
    out: Console, title: str, metrics: Mapping[str, Mapping[str, Any]], names: Mapping[str, Any], reported: str
) -> None:
    """A row for each predictor; its worst group or class stands below the table."""
    columns = _columns(metrics)
    rows = [[name, *(percent(found[key]) for key in columns)] for name, found in metrics.items()]
    _show_table(out, f"{title}: accuracy in %", ["predictor", *_starred(columns, reported)], rows)
    worst = columns[-1]
    of = {name: found[f"{worst}_of"] for name, found in metrics.items() if found[f"{worst}_of"] is not None}
    named = [
        f"{name} ({names['class_names'][place]})"
        if worst == "worst_class"
        else f"{name} ({names['class_names'][place[0]]}, {names['bias_names'][place[1]]})"
        for name, place in of.items()
    ]
    if named:
        what = "Worst class (target)" if worst == "worst_class" else "Worst group (target, bias)"
        out.print(f"{what}: {', '.join(named)}", markup=False)
    _show_star(out, columns, reported)


def _show_star(out: Console, columns: Sequence[str], reported: str) -> None:
    if reported in columns:
        out.print(f"* {reported.replace('_', ' ')} is the figure to report for this data set.", markup=False)


def _show_provenance(out: Console, score: Score) -> None:
    where = f"{score.dataset['path']}/{score.dataset['folder']}"
    out.print(
        f"Measured on the {score.part} part of {where}, {len(score.predictions.target):,} images.",
        markup=False,
        soft_wrap=True,
    )
    out.print(selection_note(score.metadata["selection"]), markup=False, soft_wrap=True)
    if score.on_selection_data:
        out.print("Some of these images picked an epoch, so the figures are too good for a test.", markup=False)
    elif score.on_selection_data is None:
        converted = score.metadata["dataset"]["evaluation_digest"] is None
        official = "The official code picks epochs by their results on its test images. " if converted else ""
        out.print(
            f"{official}Whether some of these images picked an epoch is not known; if so, the figures are too good for "
            "a test.",
            markup=False,
        )


def _show_groups(out: Console, score: Score) -> None:
    """Accuracy by group of the reported predictor, and the number of empty groups."""
    reported = next(iter(score.metrics))
    groups = score.metrics[reported]["groups"]
    if groups is None:
        there = set(score.predictions.target.tolist())
        absent = [name for number, name in enumerate(score.dataset["class_names"]) if number not in there]
        if absent:
            out.print(f"No image here of {', '.join(absent)}; the worst class is one of the others.", markup=False)
        return
    rows = [["-" if share is None else f"{100 * share:.1f}" for share in row] for row in groups]
    title = f"{reported}: accuracy by group in % (rows: target, columns: bias)"
    _show_matrices(out, score.dataset["class_names"], score.dataset["bias_names"], {title: rows})
    empty = sum(share is None for row in groups for share in row)
    if empty:
        total = len(groups) * len(groups[0])
        out.print(f"{empty} of {total} groups have no image here; no mean counts them.", markup=False)


def show_dataset(dataset: StoredDataset, title: str, *, groups: bool, digest: bool = True) -> None:
    """Counts of a data set.

    Args:
        dataset: the data set.
        title: above the table.
        groups: also show the number of images of each group and split.
        digest: also show image size and digest.
    """
    out = stream(stderr=False)
    classes, biases = len(dataset.class_names), len(dataset.bias_names)
    rows = []
    for name, split in dataset.splits.items():
        counts = split.group_counts(classes, biases)
        total = int(counts.sum())
        cells = [f"{total:,}", "-", "-", "-"]
        if split.bias is not None and dataset.aligned:
            tied = np.asarray(dataset.aligned)[split.target]
            aligned = int((split.bias == tied).sum())
            cells = [f"{total:,}", f"{aligned:,}", f"{total - aligned:,}", f"{(total - aligned) / total:.4f}"]
        present = counts[counts > 0]
        rows.append([name, *cells, str(present.size), f"{present.min():,}"])
    heads = ("split", "images", "aligned", "conflicting", "conflict ratio", "groups", "smallest group")
    _show_table(out, title, heads, rows)
    if groups:
        _show_counts(out, dataset)
    if not biases:
        out.print("No bias labels: figures are by class alone.", markup=False)
    if digest:
        height, width = dataset.evaluation.images.shape[1:3]
        out.print(f"Images of {height}x{width} pixels. Digest {dataset.digest}", markup=False, soft_wrap=True)


def show_published(listed: "Sequence[Listed]", address: str) -> None:
    """The authors' models, and the files of them in a folder."""
    rows = []
    for each in listed:
        published = each.published
        size = "unknown" if each.size is None else f"{each.size / 2**20:.1f} MiB"
        here = "no" if each.path is None else "yes"
        rows.append([published.name, published.dataset, published.stage, f"{published.accuracy:.2f}", size, here])
    out = stream(stderr=False)
    _show_table(out, "published models", ("name", "data set", "stage", "paper", "size", "here"), rows)
    for each in listed:
        here = "" if each.path is None else f" Here: {each.path}"
        out.print(
            f"{each.published.name}: {each.published.metric}; {each.published.note}.{here}",
            markup=False,
            soft_wrap=True,
        )
    out.print(f"Authors' folder: {address}", markup=False, soft_wrap=True)


def _show_counts(out: Console, dataset: StoredDataset) -> None:
    """How many images each class has where a split lacks bias labels, and each group where they are known."""

    def cells(counts: Any) -> list[list[str]]:
        return [[f"{count:,}" if count else "-" for count in row] for row in counts.tolist()]

    classes, biases = dataset.class_names, dataset.bias_names
    judged = {name: split for name, split in dataset.splits.items() if split.bias is not None}
    if len(judged) < len(dataset.splits):
        by_class = [np.bincount(split.target, minlength=len(classes)) for split in dataset.splits.values()]
        _show_matrices(out, classes, list(dataset.splits), {"images by class": cells(np.stack(by_class, axis=1))})
    _show_matrices(
        out,
        classes,
        biases,
        {
            f"{name}: images by group (rows: target, columns: bias)": cells(
                split.group_counts(len(classes), len(biases))
            )
            for name, split in judged.items()
        },
    )


def _which(metadata: Mapping[str, Any]) -> str:
    """Seed and epoch of a checkpoint; the original file of a converted one."""
    if source := metadata.get("source"):
        return f"converted from {source['file']}"
    return f"seed {metadata['seed']}, epoch {metadata['epoch']}"


def _columns(metrics: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The metrics to show, the worst one last: by class alone without bias labels."""
    judged = any(metrics[name]["groups"] is not None for name in metrics)
    return _COLUMNS if judged else LABEL_METRICS


def _starred(columns: Sequence[str], reported: str) -> list[str]:
    return [column.replace("_", " ") + ("*" if column == reported else "") for column in columns]


def _show_matrices(
    out: Console, targets: Sequence[str], columns: Sequence[str], matrices: Mapping[str, Sequence[Sequence[str]]]
) -> None:
    """Tables with a row a class, by title.

    Where the names of the columns do not fit beside each other, their numbers (those of attrs.npy) head them; where
    even these do not, the columns are divided evenly into tables below each other.
    """

    def widths(heads: Sequence[str]) -> list[int]:
        cells = [[row[at] for rows in matrices.values() for row in rows] for at in range(len(heads))]
        return [1 + max(map(cell_len, (head, *column))) for head, column in zip(heads, cells, strict=True)]

    heads, count = list(columns), len(columns)
    room = out.width - 2 - _width_of_names(out, targets)
    if sum(widths(heads)) > room:
        heads = [str(number) for number in range(count)]
        out.print("Columns, by number:")
        named = [Text(f"{number} {name}", overflow="fold") for number, name in enumerate(columns)]
        out.print(Columns(named, padding=(0, 2)))
    tables = 1 if sum(widths(heads)) <= room else math.ceil(count / max(room // max(widths(heads)), 1))
    size = math.ceil(count / tables)
    for title, rows in matrices.items():
        for first in range(0, count, size):
            part = slice(first, first + size)
            _show_table(
                out,
                f"{title}, continued" if first else title,
                ["target", *heads[part]],
                [[name, *row[part]] for name, row in zip(targets, rows, strict=True)],
            )


def _show_table(out: Console, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of text, the first column to the left; a cell that is too long wraps."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column(heads[0], overflow="fold", min_width=_width_of_names(out, [row[0] for row in rows]))
    for head in heads[1:]:
        table.add_column(Text(head), justify="right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(title, markup=False, soft_wrap=True)
    out.print(table)


def _width_of_names(out: Console, names: Sequence[str]) -> int:
    return min(max(map(cell_len, names)), out.width // 2)

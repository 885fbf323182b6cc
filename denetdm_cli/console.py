"""What a person sees: progress on stderr, results on stdout; plain lines where there is no terminal."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from denetdm_cli.data.store import EVALUATION, StoredDataset
from denetdm_cli.errors import UserError
from denetdm_cli.evaluation import METRICS
from denetdm_cli.runs import RunFolder
from denetdm_cli.scoring import Score
from denetdm_cli.stages import Began, EpochDone, Event, Finished
from denetdm_cli.training import Progress as StepProgress

_SECONDS_BETWEEN_LINES = 1.0
_PLAIN_WIDTH = 110
_PREDICTOR_NAMES = {"product": "product of experts"}


def _console(*, stderr: bool) -> Console:
    """Rich where there is a terminal; elsewhere plain text of a fixed width, without colour or wrapping surprises."""
    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty():
        return Console(stderr=stderr, highlight=False, emoji=False)
    return Console(stderr=stderr, highlight=False, emoji=False, width=_PLAIN_WIDTH, no_color=True, force_terminal=False)


def say(line: str) -> None:
    """One line of progress or explanation on stderr."""
    _console(stderr=True).print(line, markup=False, soft_wrap=True)


def show_error(error: UserError) -> None:
    """What is wrong, and what to do, on stderr."""
    console = _console(stderr=True)
    console.print(f"[bold red]error:[/] {escape(error.what)}", soft_wrap=True)
    console.print(f"[bold]what to do:[/] {escape(error.fix)}", soft_wrap=True)


def show_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def follow(events: Iterator[Event], again: str) -> Finished:
    """Show a stage as it trains, and return its end; `again` is the command that began it, for one who stops it."""
    began: Began | None = None
    view: _Bar | _Lines | None = None
    try:
        for event in events:
            if isinstance(event, Finished):
                return event
            if isinstance(event, Began):
                began = event
                epochs = f"epochs {event.first_epoch} to {event.epochs}"
                say(f"{event.stage}: {event.images:,} images an epoch, {epochs}, into {event.folder}")
                view = _Bar(event) if sys.stderr.isatty() else _Lines(event)
            elif view is not None:
                view.update(event)
    except KeyboardInterrupt:
        if began and RunFolder(began.folder).resume_file.exists():
            say(f"stopped; completed epochs are kept. Go on with: {again} --resume")
        else:
            say(f"stopped; no epoch was completed yet. Begin anew with: {again}")
        raise
    finally:
        if isinstance(view, _Bar):
            view.close()
    raise AssertionError(f"the stage ended without a result: {began}")


class _ProgressWithNote(Progress):
    """A progress line, and a line of text below it."""

    note = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note, no_wrap=True, overflow="ellipsis")


class _Bar:
    """Two live lines that fit into 80 columns: bar, loss, images a second and time left; accuracies of the branches."""

    def __init__(self, began: Began) -> None:
        self._began = began
        self._loss = self._rate = ""
        self._progress = _ProgressWithNote(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=_console(stderr=True),
        )
        self._task: TaskID = self._progress.add_task(
            self._title(began.first_epoch),
            total=began.epochs * began.images,
            completed=(began.first_epoch - 1) * began.images,
            figures="",
        )
        self._progress.start()

    def update(self, event: StepProgress | EpochDone) -> None:
        if isinstance(event, StepProgress):
            epoch, images, self._loss = event.epoch, event.images, f"loss {event.loss:.4f}"
        else:
            epoch, images = event.record["epoch"], self._began.images
            self._loss, self._rate = f"loss {event.record['losses']['total']:.4f}", _rate(event.record)
            self._progress.note = _accuracies(event.record)
        figures = " ".join(part for part in (self._loss, self._rate) if part)
        completed = (epoch - 1) * self._began.images + images
        self._progress.update(self._task, description=self._title(epoch), completed=completed, figures=figures)

    def close(self) -> None:
        self._progress.stop()

    def _title(self, epoch: int) -> str:
        return f"{self._began.stage} epoch {epoch}/{self._began.epochs}"


class _Lines:
    """One plain line an epoch, at most one a second; the first and the last are always there."""

    def __init__(self, began: Began) -> None:
        self._began = began
        self._started = time.perf_counter()
        self._told = 0.0

    def update(self, event: StepProgress | EpochDone) -> None:
        if isinstance(event, StepProgress):
            return
        record, now = event.record, time.perf_counter()
        epoch, began = record["epoch"], self._began
        if epoch not in (began.first_epoch, began.epochs) and now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = now
        left = (now - self._started) / (epoch - began.first_epoch + 1) * (began.epochs - epoch)
        say(
            f"{began.stage} epoch {epoch}/{began.epochs}  loss {record['losses']['total']:.4f}  "
            f"{_accuracies(record)}  {_rate(record)}  {_duration(left)} left"
        )


def _accuracies(record: Mapping[str, Any]) -> str:
    """Conflicting and aligned accuracy by predictor, in per cent: what tells whether the branches separate."""
    parts = [
        f"{name} {_percent(metrics['conflicting'], 1)}/{_percent(metrics['aligned'], 1)}"
        for name, metrics in record["evaluation"].items()
    ]
    return "conflicting/aligned % " + " ".join(parts)


def _rate(record: Mapping[str, Any]) -> str:
    return f"{record['images'] / record['seconds']:,.0f} images/s"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _percent(share: float | None, digits: int = 2) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}"


def show_finished(finished: Finished, rule: str, next_command: str) -> None:
    """One table for a stage and the next command to type."""
    results = finished.results
    kept = results["rules"][rule]
    if finished.already:
        say(f"{finished.folder} is finished already; nothing was trained. Start anew with --force.")
    table = _metrics_table(f"{results['stage']} on {results['dataset']['name']}, seed {results['seed']}")
    for name, metrics in kept["metrics"].items():
        _metrics_row(table, name, metrics, results["dataset"])
    out = _console(stderr=False)
    out.print(table)
    out.print(f"{selection_note(kept)} Epoch {kept['epoch']} of {results['epochs']}.", markup=False, soft_wrap=True)
    out.print(f"Measured on the {kept['reported_on']} part of {EVALUATION}/.", markup=False)
    out.print(f"Run folder: {finished.folder}", markup=False, soft_wrap=True)
    out.print(f"Next: {next_command}", markup=False, soft_wrap=True)


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
    return f"{', '.join(words)}."


def show_scores(scores: Sequence[Score], summary: Mapping[str, Any]) -> None:
    """A table a checkpoint with its group matrix, or mean and standard deviation over several."""
    out = _console(stderr=False)
    if len(scores) == 1:
        (score,) = scores
        names = score.metadata["dataset"]
        title = f"{score.metadata['stage']}, seed {score.metadata['seed']}, epoch {score.metadata['epoch']}"
        table = _metrics_table(title)
        for name, metrics in score.metrics.items():
            _metrics_row(table, name, metrics, names)
        out.print(table)
        _show_provenance(out, score)
        shipped = next(iter(score.metrics))
        out.print(_group_table(shipped, score.metrics[shipped]["groups"], names))
        return
    table = _metrics_table(f"{scores[0].metadata['stage']}, {len(scores)} checkpoints: mean (standard deviation)")
    for name, metrics in summary.items():
        cells = [
            f"{100 * metrics[key]['mean']:.2f} ({100 * metrics[key]['std']:.2f})" if key in metrics else "-"
            for key in METRICS
        ]
        table.add_row(_PREDICTOR_NAMES.get(name, name), *cells)
    out.print(table)
    _show_provenance(out, scores[0])
    for score in scores:
        out.print(
            f"  {score.path}: seed {score.metadata['seed']}, epoch {score.metadata['epoch']}",
            markup=False,
            soft_wrap=True,
        )


def _show_provenance(out: Console, score: Score) -> None:
    out.print(
        f"{score.part} part of {score.dataset['path']}, {len(score.predictions.target):,} images. "
        f"{selection_note(score.metadata['selection'])}",
        markup=False,
        soft_wrap=True,
    )
    if score.on_selection_data:
        out.print("Some of these images picked an epoch, so the figures are too good for a test.", markup=False)


def show_dataset(dataset: StoredDataset, made: bool) -> None:
    """Counts of a data set and where it lies."""
    out = _console(stderr=False)
    title = f"{escape(str(dataset.path))} ({'made now' if made else 'was there already'})"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for column in ("split", "images", "bias-aligned", "bias-conflicting", "conflict ratio", "groups", "smallest group"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in dataset.splits.items():
        counts = split.group_counts(max(len(dataset.class_names), len(dataset.bias_names)))
        total, aligned = int(counts.sum()), int(counts.trace())
        cells = [total, aligned, total - aligned]
        present = counts[counts > 0]
        ratio = f"{(total - aligned) / total:.4f}"
        table.add_row(name, *(f"{cell:,}" for cell in cells), ratio, str(present.size), str(present.min()))
    out.print(table)
    out.print(f"Digest {dataset.digest}", markup=False, soft_wrap=True)


def _metrics_table(title: str) -> Table:
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, padding=0, caption="accuracy in %", caption_justify="right")
    table.add_column("predictor")
    for heading in ("unbiased", "accuracy", "aligned", "conflicting", "worst group"):
        table.add_column(heading, justify="right")
    return table


def _metrics_row(table: Table, name: str, metrics: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    cells = [_percent(metrics[key]) for key in METRICS]
    if metrics["worst_group_of"] is not None:
        target, bias = metrics["worst_group_of"]
        cells[-1] += f" ({names['class_names'][target]}, {names['bias_names'][bias]})"
    table.add_row(_PREDICTOR_NAMES.get(name, name), *cells)


def _group_table(predictor: str, groups: Sequence[Sequence[float | None]], names: Mapping[str, Any]) -> Table:
    title = f"{predictor}: accuracy by group in % (rows: target, columns: bias)"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    table.add_column("target")
    for bias in names["bias_names"]:
        table.add_column(bias, justify="right", no_wrap=True)
    for target, row in zip(names["class_names"], groups, strict=True):
        table.add_row(target, *("-" if share is None else f"{100 * share:.1f}" for share in row))
    return table

"""Progress on stderr, of one run, of many runs and of work on data: bars on a terminal, plain lines elsewhere."""

import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.console import RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from denetdm_cli.methods import METHODS
from denetdm_cli.training.events import EpochEvaluated, Event, StageFinished, StageStarted, StepProgress
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.training.workers import Failed, News
from denetdm_cli.utils import signals
from denetdm_cli.utils.cpu import thread_limit
from denetdm_cli.utils.device import resolve_device, versions
from denetdm_cli.utils.errors import UserError
from denetdm_cli.utils.log import debug, info, quiet, show_warnings, stream, verbose
from denetdm_cli.utils.text import duration, percent

_SECONDS_BETWEEN_LINES = 1.0
_SECONDS_BETWEEN_LINES_OF_MANY = 10.0
_SECONDS_BETWEEN_DATA_LINES = 5.0


def follow(events: Iterator[Event], resume_command: str) -> list[StageFinished]:
    """Show the stages of one run as they train.

    Args:
        events: of the run.
        resume_command: shown when the user stops the run.
    Returns:
        The last event of each stage.
    """
    started: StageStarted | None = None
    view: _Bar | _Lines | None = None
    finished = []
    try:
        for event in events:
            if isinstance(event, StageStarted):
                started = event
                epochs = f"epochs {event.first_epoch} to {event.epochs}"
                info(f"{event.stage}: {event.images:,} images an epoch, {epochs}, into {event.folder}")
                for line in run_details(event) if verbose() else ():
                    info(line)
                view = None if quiet() else _Bar(event) if sys.stderr.isatty() else _Lines(event)
            elif isinstance(event, StageFinished):
                finished.append(event)
                _close(view)
            else:
                if view is not None:
                    view.update(event)
                for line in diagnostics_details(event.record) if isinstance(event, EpochEvaluated) else ():
                    debug(line)
    except KeyboardInterrupt as stop:
        signals.mark_reported(stop)
        if started and RunFolder(started.folder).resume_file.exists():
            info(f"stopped; the training state is saved. Resume with: {resume_command}", always=True)
        else:
            info(f"stopped before the first state was saved. Start again with: {resume_command}", always=True)
        raise
    finally:
        _close(view)
    return finished


class MultiRunProgress:
    """Progress and outcome of many runs that train at once.

    Args:
        names: of the runs.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._finished: dict[int, StageFinished] = {}
        self._failed: dict[int, Failed] = {}
        self._ended = 0
        self._view = _ManyBars(len(names)) if sys.stderr.isatty() and not quiet() else _ManyLines()

    def follow(self, news: Iterator[tuple[int, News]]) -> None:
        """Show all events (number of the run, event) until every run has ended."""
        try:
            for run, event in news:
                self._update(run, event)
        finally:
            self._view.close()

    @property
    def failure(self) -> UserError | None:
        """Error of the first run that failed, with its exit code."""
        if not self._failed:
            return None
        run, failed = min(self._failed.items())
        more = f"; {len(self._failed)} of {len(self._names)} runs failed" if len(self._names) > 1 else ""
        error = UserError(f"{self._names[run]}: {failed.what}{more}", failed.fix)
        error.exit_code = failed.exit_code
        return error

    @property
    def finished(self) -> list[StageFinished]:
        """The last stage of each successful run, in the order of the runs."""
        return [finished for run, finished in sorted(self._finished.items()) if run not in self._failed]

    def _update(self, run: int, event: News) -> None:
        name = self._names[run]
        if isinstance(event, StageStarted):
            self._view.start(run, name, event)
        elif isinstance(event, StepProgress | EpochEvaluated):
            self._view.update(run, event)
        elif isinstance(event, StageFinished):
            self._finished[run] = event
        else:
            self._ended += 1
            if isinstance(event, Failed):
                self._failed[run] = event
            outcome = f"failed: {event.what}" if isinstance(event, Failed) else "stopped" if event.signal else "done"
            self._view.end(run, f"{name}: {outcome} ({self._ended} of {len(self._names)} runs)")


class DataReport:
    """Progress of downloading, making or importing data."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = time.perf_counter()
        self._start = (self._last_line, 0)
        self._newest = (0, 0)

    def info(self, line: str) -> None:
        """Show a line that stays on the screen."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, soft_wrap=True)
        else:
            info(line)

    def warn(self, warning: str) -> None:
        """Show a warning."""
        show_warnings([warning])

    def advance(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps are done; a bar disappears when all are."""
        if quiet():
            return
        if not sys.stderr.isatty():
            self._line(what, done, total)
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn())
            self._bar = Progress(
                *columns, TimeRemainingColumn(compact=True), TextColumn("left"), console=stream(stderr=True)
            )
            self._task = self._bar.add_task(what, total=total)
            self._bar.start()
        if self._task is not None:
            self._bar.update(self._task, description=escape(what), completed=done, total=total)
        if done >= total:
            self.close()

    def _line(self, what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if total != self._newest[1] or done < self._newest[0]:  # another task, with its own speed
            self._start = now, done
        self._newest = done, total
        if done and now - self._last_line > _SECONDS_BETWEEN_DATA_LINES:
            self._last_line = now
            start, before = self._start
            left = f", {duration((now - start) / (done - before) * (total - done))} left" if done > before else ""
            info(f"{what}: {done:,} of {total:,}{left}")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def machine_details(device: torch.device) -> list[str]:
    """Lines with device, CPU threads and versions; call it after the command has set its threads."""
    model = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return [
        f"device {device}{model}, CPU threads: {torch.get_num_threads()} of {thread_limit()} allotted, "
        f"on {platform.node()} ({platform.platform()})",
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]


def run_details(started: StageStarted) -> list[str]:
    """Lines with machine, seed and the file of all settings."""
    folder = RunFolder(started.folder)
    config = folder.config()
    machine = machine_details(resolve_device(config.device))
    return [*machine, f"seed {config.seed}; all settings are in {folder.config_file}"]


def diagnostics_details(record: Mapping[str, Any]) -> list[str]:
    """One line for each diagnostic of a line of metrics.jsonl and each sample of images that it was measured on."""
    keys = dict.fromkeys(key for method in METHODS.values() for key in method.diagnostics if key in record)
    return [
        f"{key} on {sample} images: " + ", ".join(f"{name} {_figures(value)}" for name, value in figures.items())
        for key in keys
        for sample, figures in record[key].items()
        if sample != "warnings"
    ]


def _figures(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_figures(part)}" for name, part in value.items())
    return "-" if value is None else f"{value:.3f}"


class _ProgressWithNote(Progress):
    """A bar and a line of text below it."""

    note = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note, no_wrap=True, overflow="ellipsis")


class _Bar:
    """Two live lines of at most 80 columns: bar, loss, images a second and time left; accuracies by predictor."""

    def __init__(self, started: StageStarted) -> None:
        self._started = started
        self._loss = self._rate = ""
        self._progress = _ProgressWithNote(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=stream(stderr=True),
        )
        self._task: TaskID = self._progress.add_task(
            self._title(started.first_epoch),
            total=started.epochs * started.images,
            completed=(started.first_epoch - 1) * started.images,
            figures="",
        )
        self._progress.start()

    def update(self, event: StepProgress | EpochEvaluated) -> None:
        if isinstance(event, StepProgress):
            epoch, images, self._loss = event.epoch, event.images, f"loss {event.loss:.4f}"
        else:
            epoch, images = event.record["epoch"], self._started.images
            self._loss, self._rate = _loss(event.record), _rate(event.record)
            self._progress.note = _accuracies(event.record)
        figures = " ".join(part for part in (self._loss, self._rate) if part)
        completed = (epoch - 1) * self._started.images + images
        self._progress.update(self._task, description=self._title(epoch), completed=completed, figures=figures)

    def close(self) -> None:
        self._progress.stop()

    def _title(self, epoch: int) -> str:
        return f"{self._started.stage} epoch {epoch}/{self._started.epochs}"


class _Lines:
    """One line an epoch, rate-limited except for the first and the last epoch and with --verbose."""

    def __init__(self, started: StageStarted, prefix: str = "", seconds: float = _SECONDS_BETWEEN_LINES) -> None:
        self._started = started
        self._prefix = prefix
        self._seconds = seconds
        self._start = time.perf_counter()
        self._last_line = 0.0

    def update(self, event: StepProgress | EpochEvaluated) -> None:
        if isinstance(event, StepProgress):
            return
        record, now = event.record, time.perf_counter()
        epoch, first, last = record["epoch"], self._started.first_epoch, self._started.epochs
        if not verbose() and epoch not in (first, last) and now - self._last_line < self._seconds:
            return
        self._last_line = now
        left = (now - self._start) / (epoch - first + 1) * (last - epoch)
        info(
            f"{self._prefix}{self._started.stage} epoch {epoch}/{last}  {_loss(record)}  {_accuracies(record)}  "
            f"{_rate(record)}  {duration(left)} left"
        )

    def close(self) -> None:
        pass


class _ManyBars:
    """One bar for the number of runs, and one for each run that trains."""

    def __init__(self, runs: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=stream(stderr=True),
        )
        self._tasks: dict[int, TaskID] = {}
        self._all = self._progress.add_task("runs", total=runs, note="")
        self._progress.start()

    def start(self, run: int, name: str, started: StageStarted) -> None:
        if run in self._tasks:
            self._progress.remove_task(self._tasks[run])
        title, done = escape(f"{name} {started.stage}"), started.first_epoch - 1
        self._tasks[run] = self._progress.add_task(title, total=started.epochs, completed=done, note="")

    def update(self, run: int, event: StepProgress | EpochEvaluated) -> None:
        if isinstance(event, EpochEvaluated):
            self._progress.update(self._tasks[run], completed=event.record["epoch"], note=_loss(event.record))

    def end(self, run: int, line: str) -> None:
        if run in self._tasks:
            self._progress.remove_task(self._tasks.pop(run))
        self._progress.advance(self._all)
        self._progress.console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


class _ManyLines:
    """The lines of every run, and one when a stage starts or a run ends."""

    def __init__(self) -> None:
        self._lines: dict[int, _Lines] = {}

    def start(self, run: int, name: str, started: StageStarted) -> None:
        self._lines[run] = _Lines(started, f"{name}: ", _SECONDS_BETWEEN_LINES_OF_MANY)
        info(f"{name}: {started.stage}, epochs {started.first_epoch} to {started.epochs}, into {started.folder}")

    def update(self, run: int, event: StepProgress | EpochEvaluated) -> None:
        self._lines[run].update(event)

    def end(self, run: int, line: str) -> None:
        self._lines.pop(run, None)
        info(line)

    def close(self) -> None:
        pass


def _close(view: _Bar | _Lines | None) -> None:
    if view is not None:
        view.close()


def _loss(record: Mapping[str, Any]) -> str:
    return f"loss {record['losses']['total']:.4f}"


def _rate(record: Mapping[str, Any]) -> str:
    return f"{record['images'] / record['seconds']:,.0f} images/s"


def _accuracies(record: Mapping[str, Any]) -> str:
    """Conflicting and aligned accuracy by predictor in per cent; plain accuracy without bias labels."""
    found = record["evaluation"]
    if all(metrics["conflicting"] is None for metrics in found.values()):
        return "accuracy % " + " ".join(f"{name} {percent(metrics['accuracy'], 1)}" for name, metrics in found.items())
    parts = [
        f"{name} {percent(metrics['conflicting'], 1)}/{percent(metrics['aligned'], 1)}"
        for name, metrics in found.items()
    ]
    return "conflicting/aligned % " + " ".join(parts)

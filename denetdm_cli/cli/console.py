"""What a person sees: progress on stderr, results on stdout; plain lines where there is no terminal."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from denetdm_cli.cli import details
from denetdm_cli.training.events import EpochEvaluated, Event, StageFinished, StageStarted
from denetdm_cli.training.events import Progress as StepProgress
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.utils import signals
from denetdm_cli.utils.log import debug, info, quiet, show_warnings, stream, verbose

_SECONDS_BETWEEN_LINES = 1.0
_SECONDS_BETWEEN_DATA_LINES = 5.0


class DataReport:
    """Tells on stderr how work on data goes on: one live line on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told = time.perf_counter()
        self._began = (self._told, 0)
        self._reached = (0, 0)

    def info(self, line: str) -> None:
        """One line that stays."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, soft_wrap=True)
        else:
            info(line)

    def warn(self, warning: str) -> None:
        """What did not stop the work but should be known."""
        show_warnings([warning])

    def advance(self, what: str, done: int, total: int) -> None:
        """`done` of `total` steps are done; the line goes when all are."""
        if quiet():
            return
        if not sys.stderr.isatty():
            self._tell(what, done, total)
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

    def _tell(self, what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if total != self._reached[1] or done < self._reached[0]:  # other work, at a pace of its own
            self._began = now, done
        self._reached = done, total
        if done and now - self._told > _SECONDS_BETWEEN_DATA_LINES:
            self._told = now
            began, before = self._began
            left = f", {duration((now - began) / (done - before) * (total - done))} left" if done > before else ""
            info(f"{what}: {done:,} of {total:,}{left}")

    def close(self) -> None:
        """Remove the live line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def show_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def follow(events: Iterator[Event], again: str) -> list[StageFinished]:
    """Show stages as they train, and return their ends; `again` is the command that goes on, for one who stops it."""
    began: StageStarted | None = None
    view: _Bar | _Lines | None = None
    ends = []
    try:
        for event in events:
            if isinstance(event, StageStarted):
                began = event
                epochs = f"epochs {event.first_epoch} to {event.epochs}"
                info(f"{event.stage}: {event.images:,} images an epoch, {epochs}, into {event.folder}")
                for line in details.of_run(event) if verbose() else ():
                    info(line)
                view = None if quiet() else _Bar(event) if sys.stderr.isatty() else _Lines(event)
            elif isinstance(event, StageFinished):
                ends.append(event)
                _close(view)
            else:
                if view is not None:
                    view.update(event)
                for line in details.of_epoch(event.record) if isinstance(event, EpochEvaluated) else ():
                    debug(line)
    except KeyboardInterrupt as stop:
        signals.tell(stop)
        if began and RunFolder(began.folder).resume_file.exists():
            info(f"stopped; what was trained is kept. Go on with: {again}", always=True)
        else:
            info(f"stopped; nothing was trained yet. Begin anew with: {again}", always=True)
        raise
    finally:
        _close(view)
    return ends


def _close(view: "_Bar | _Lines | None") -> None:
    if isinstance(view, _Bar):
        view.close()


class _ProgressWithNote(Progress):
    """A progress line, and a line of text below it."""

    note = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note, no_wrap=True, overflow="ellipsis")


class _Bar:
    """Two live lines that fit into 80 columns: bar, loss, images a second and time left; accuracies of the branches."""

    def __init__(self, began: StageStarted) -> None:
        self._began = began
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
            self._title(began.first_epoch),
            total=began.epochs * began.images,
            completed=(began.first_epoch - 1) * began.images,
            figures="",
        )
        self._progress.start()

    def update(self, event: StepProgress | EpochEvaluated) -> None:
        if isinstance(event, StepProgress):
            epoch, images, self._loss = event.epoch, event.images, f"loss {event.loss:.4f}"
        else:
            epoch, images = event.record["epoch"], self._began.images
            self._loss, self._rate = f"loss {event.record['losses']['total']:.4f}", _rate(event.record)
            self._progress.note = accuracy_line(event.record)
        figures = " ".join(part for part in (self._loss, self._rate) if part)
        completed = (epoch - 1) * self._began.images + images
        self._progress.update(self._task, description=self._title(epoch), completed=completed, figures=figures)

    def close(self) -> None:
        self._progress.stop()

    def _title(self, epoch: int) -> str:
        return f"{self._began.stage} epoch {epoch}/{self._began.epochs}"


class _Lines:
    """One plain line an epoch, at most one a second but for the first and the last; with --verbose there are all."""

    def __init__(self, began: StageStarted) -> None:
        self._began = began
        self._started = time.perf_counter()
        self._told = 0.0

    def update(self, event: StepProgress | EpochEvaluated) -> None:
        if isinstance(event, StepProgress):
            return
        record, now = event.record, time.perf_counter()
        epoch, began = record["epoch"], self._began
        wanted = verbose() or epoch in (began.first_epoch, began.epochs)
        if not wanted and now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = now
        left = (now - self._started) / (epoch - began.first_epoch + 1) * (began.epochs - epoch)
        info(
            f"{began.stage} epoch {epoch}/{began.epochs}  loss {record['losses']['total']:.4f}  "
            f"{accuracy_line(record)}  {_rate(record)}  {duration(left)} left"
        )


def accuracy_line(record: Mapping[str, Any]) -> str:
    """What tells whether the branches separate, by predictor and in per cent: conflicting and aligned accuracy."""
    found = record["evaluation"]
    if all(metrics["conflicting"] is None for metrics in found.values()):
        return "accuracy % " + " ".join(f"{name} {percent(metrics['accuracy'], 1)}" for name, metrics in found.items())
    parts = [
        f"{name} {percent(metrics['conflicting'], 1)}/{percent(metrics['aligned'], 1)}"
        for name, metrics in found.items()
    ]
    return "conflicting/aligned % " + " ".join(parts)


def _rate(record: Mapping[str, Any]) -> str:
    return f"{record['images'] / record['seconds']:,.0f} images/s"


def duration(seconds: float) -> str:
    """Seconds, minutes and seconds, or hours and minutes."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def percent(share: float | None, digits: int = 2) -> str:
    """A share in per cent, or a dash where there is none."""
    return "-" if share is None else f"{100 * share:.{digits}f}"

"""Many runs at once on the screen: a bar each on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from denetdm_cli.cli.console import accuracy_line, duration
from denetdm_cli.training.events import EpochEvaluated, StageFinished, StageStarted
from denetdm_cli.training.events import Progress as StepProgress
from denetdm_cli.training.workers import Failed, News
from denetdm_cli.utils.errors import UserError
from denetdm_cli.utils.log import info, quiet, stream

_SECONDS_BETWEEN_LINES = 10.0


class MultiRunProgress:
    """What is known of many runs, and where it is shown.

    Args:
        names: of the runs.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._finished: dict[int, StageFinished] = {}
        self._failed: dict[int, Failed] = {}
        self._ended = 0
        self._view = _Bars(len(names)) if sys.stderr.isatty() and not quiet() else _Lines()

    def follow(self, news: Iterator[tuple[int, News]]) -> None:
        """Show all that comes, to the end."""
        try:
            for number, event in news:
                self._take(number, event)
        finally:
            self._view.close()

    @property
    def failure(self) -> UserError | None:
        """Of the first run that failed, with the exit code of its kind."""
        if not self._failed:
            return None
        number, failed = next(iter(sorted(self._failed.items())))
        more = f"; {len(self._failed)} of {len(self._names)} runs failed" if len(self._names) > 1 else ""
        error = UserError(f"{self._names[number]}: {failed.what}{more}", failed.fix)
        error.exit_code = failed.exit_code
        return error

    @property
    def finished(self) -> list[StageFinished]:
        """The last stage of each run that came to its end, in the order of the runs."""
        return [finished for number, finished in sorted(self._finished.items()) if number not in self._failed]

    def _take(self, number: int, event: News) -> None:
        name = self._names[number]
        if isinstance(event, StageStarted):
            self._view.begin(number, name, event)
        elif isinstance(event, StepProgress | EpochEvaluated):
            self._view.update(number, event)
        elif isinstance(event, StageFinished):
            self._finished[number] = event
        else:
            self._ended += 1
            if isinstance(event, Failed):
                self._failed[number] = event
            words = f"failed: {event.what}" if isinstance(event, Failed) else "stopped" if event.signal else "done"
            self._view.end(number, f"{name}: {words} ({self._ended} of {len(self._names)} runs)")


class _Bars:
    """One bar for all, and one for each run at work."""

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

    def begin(self, number: int, name: str, began: StageStarted) -> None:
        if number in self._tasks:
            self._progress.remove_task(self._tasks[number])
        self._tasks[number] = self._progress.add_task(
            escape(f"{name} {began.stage}"), total=began.epochs, completed=began.first_epoch - 1, note=""
        )

    def update(self, number: int, event: StepProgress | EpochEvaluated) -> None:
        if isinstance(event, EpochEvaluated):
            note = f"loss {event.record['losses']['total']:.4f}"
            self._progress.update(self._tasks[number], completed=event.record["epoch"], note=note)

    def end(self, number: int, line: str) -> None:
        if number in self._tasks:
            self._progress.remove_task(self._tasks.pop(number))
        self._progress.advance(self._all)
        self._progress.console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    """A line of each run now and then, and whenever a stage begins or a run ends."""

    def __init__(self) -> None:
        self._stages: dict[int, tuple[str, StageStarted, float]] = {}
        self._told: dict[int, float] = {}

    def begin(self, number: int, name: str, began: StageStarted) -> None:
        self._stages[number] = name, began, time.perf_counter()
        self._told.pop(number, None)
        info(f"{name}: {began.stage}, epochs {began.first_epoch} to {began.epochs}, into {began.folder}")

    def update(self, number: int, event: StepProgress | EpochEvaluated) -> None:
        now = time.perf_counter()
        if isinstance(event, StepProgress) or now - self._told.get(number, 0.0) < _SECONDS_BETWEEN_LINES:
            return
        self._told[number] = now
        name, began, started = self._stages[number]
        record, epoch = event.record, event.record["epoch"]
        left = (now - started) / (epoch - began.first_epoch + 1) * (began.epochs - epoch)
        info(
            f"{name}: {began.stage} epoch {epoch}/{began.epochs}  loss {record['losses']['total']:.4f}  "
            f"{accuracy_line(record)}  {duration(left)} left of this stage"
        )

    def end(self, number: int, line: str) -> None:
        self._stages.pop(number, None)
        info(line)

    def close(self) -> None:
        pass

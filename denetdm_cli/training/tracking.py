"""Trackers get the records of metrics.jsonl from the events of a stage; the training loop does not know of them."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from operator import methodcaller
from typing import Any, Protocol, cast

from denetdm_cli.training.events import EpochEvaluated, Event, StageFinished, StageStarted
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.utils.log import info, show_warnings


class Tracker(Protocol):
    """Where the records of one run are mirrored. Whatever it raises switches it off, and nothing else.

    Attributes:
        place: path or address of the records.
    """

    place: str

    def log(self, record: Mapping[str, Any]) -> None:
        """Log one line of metrics.jsonl, in the order of the epochs; a resumed run logs all of them again."""

    def close(self, *, complete: bool) -> None:
        """No more records come: the run is complete, or it was stopped."""


Opener = Callable[[RunFolder], Tracker]
"""Begins or resumes to track the run in a folder, which has its config.yaml."""


def tracked(events: Iterator[Event], openers: Mapping[str, Opener]) -> Generator[Event, None, None]:
    """The events of a stage, unchanged, while trackers get its records; closing it closes the stage.

    Args:
        events: of one stage.
        openers: trackers by name.
    """
    live: dict[str, Tracker] = {}
    complete = False
    try:
        with closing(cast("Generator[Event, None, None]", events)):
            for event in events:
                if isinstance(event, StageStarted):
                    _open(live, openers, RunFolder(event.folder))
                elif isinstance(event, EpochEvaluated):
                    _each(live, methodcaller("log", event.record))
                elif isinstance(event, StageFinished):
                    complete = True
                yield event
    finally:
        _each(live, methodcaller("close", complete=complete))


def recorded(folder: RunFolder) -> list[dict[str, Any]]:
    """The records of the epochs that a run has completed."""
    lines = folder.metrics_file.read_text(encoding="utf-8").splitlines() if folder.metrics_file.exists() else []
    return [json.loads(line) for line in lines]


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a line of metrics.jsonl by their path, such as evaluation/shallow/conflicting."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not name.endswith("_of"):  # which class is the worst is no quantity
            yield f"{prefix}{name}", float(value)


def _open(live: dict[str, Tracker], openers: Mapping[str, Opener], folder: RunFolder) -> None:
    """Add the trackers that can be opened; each gets the epochs that the run has already."""
    for name, opener in openers.items():
        try:
            live[name] = opener(folder)
            for record in recorded(folder):
                live[name].log(record)
        except Exception as error:
            _switch_off(live, name, error)
        else:
            info(f"{name}: {live[name].place}")


def _each(live: dict[str, Tracker], action: Callable[[Tracker], object]) -> None:
    for name in list(live):
        try:
            action(live[name])
        except Exception as error:
            _switch_off(live, name, error)


def _switch_off(live: dict[str, Tracker], name: str, error: Exception) -> None:
    why = f"{type(error).__name__}: {error}"
    show_warnings([f"{name} failed and is switched off ({why}); the training continues, metrics.jsonl is complete"])
    if name in live:
        with suppress(Exception):  # that it fails is known
            live.pop(name).close(complete=False)

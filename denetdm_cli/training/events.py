"""What a training run reports. Screens and trackers import these, not the engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StageStarted:
    """A stage is about to train `images` images an epoch, from `first_epoch` to `epochs`, writing to `folder`."""

    stage: str
    folder: Path
    first_epoch: int
    epochs: int
    images: int


@dataclass(frozen=True)
class EpochEvaluated:
    """An epoch was trained, evaluated and written; `record` is its line in metrics.jsonl."""

    record: dict[str, Any]


@dataclass(frozen=True)
class StageFinished:
    """The stage is complete; `results` is its results.json, `already` whether it had been before."""

    folder: Path
    results: dict[str, Any]
    already: bool


@dataclass(frozen=True)
class StepProgress:
    """Within an epoch, a few times a second.

    Attributes:
        epoch: from 1.
        images: seen in this epoch.
        loss: of the newest step.
    """

    epoch: int
    images: int
    loss: float


@dataclass(frozen=True)
class EpochTrained:
    """After the last step of an epoch.

    Attributes:
        epoch: from 1.
        losses: mean over the images of the epoch, by term, and their sum as `total`.
        images: seen in this epoch.
        seconds: wall time of the epoch's training.
    """

    epoch: int
    losses: dict[str, float]
    images: int
    seconds: float


Event = StageStarted | StepProgress | EpochEvaluated | StageFinished

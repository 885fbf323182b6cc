"""What run folders hold, as plain records: read without torch, never written, and a bad one says what is wrong."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from denetdm_cli.config.load import leaves
from denetdm_cli.config.schema import SelectionRule
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.utils.errors import CheckpointError
from denetdm_cli.utils.files import is_held

State = Literal["running", "stopped", "done", "failed"]
"""`stopped`: can go on with --resume; `failed`: cannot."""

MetricName = Literal["unbiased", "accuracy", "aligned", "conflicting", "worst_group", "worst_class"]
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
Share = Annotated[float, Field(ge=0, le=1)]

_STAGE_NAME = re.compile(r"train-poe|distill(-from-\w+)?")
_METADATA_KEY = "denetdm"
"""Where `checkpoint.save` keeps metadata in the header of a safetensors file."""
_EPOCHS_TIMED = 5
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


class _Record(BaseModel):
    """What of a file others rely on; there is more in it."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Metrics(_Record):
    """Accuracies of one predictor between 0 and 1, as `evaluation.group_metrics` gives them."""

    unbiased: Share | None
    accuracy: Share | None
    aligned: Share | None
    conflicting: Share | None
    worst_group: Share | None
    worst_class: Share | None
    groups: list[list[Share | None]] | None = None


def accuracy_of(metrics: dict[str, Metrics], predictor: str, name: MetricName) -> float | None:
    """A figure of a predictor; None where there is none."""
    return getattr(metrics.get(predictor), name, None)


class EpochRecord(_Record):
    """A line of metrics.jsonl; `evaluation` is by predictor."""

    epoch: int
    evaluation: dict[str, Metrics] = Field(min_length=1)
    seconds: float = Field(ge=0)


class Selected(_Record):
    """What a selection rule kept: the metrics by predictor, and how the epoch was picked."""

    epoch: int = Field(ge=0)
    metrics: dict[str, Metrics] = Field(min_length=1)
    rule: SelectionRule
    teacher_rule: SelectionRule | None
    metric: str | None
    picked_on: list[str]
    reported_on: Literal["evaluation", "test"]
    selected_on_test_data: bool


class TrainedOn(_Record):
    """The data set of a run."""

    name: str
    digest: str
    evaluation_digest: str
    class_names: list[str] = Field(min_length=1)
    bias_names: list[str]


class Results(_Record):
    """results.json of a finished stage."""

    stage: Literal["train-poe", "distill"]
    seed: int = Field(ge=0)
    selection: SelectionRule
    reported_metric: MetricName
    epochs: int = Field(ge=1)
    dataset: TrainedOn
    rules: dict[SelectionRule, Selected]
    start_weights: dict[str, dict[str, str]]
    config: dict[str, Any]

    @field_validator("config")
    @classmethod
    def _names_a_data_set(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Checked no further, for it may be of an older version."""
        dataset = config.get("dataset")
        if not isinstance(dataset, dict) or not isinstance(dataset.get("name"), str):
            raise ValueError("dataset.name is missing")
        ratio = dataset.get("ratio")
        if ratio is not None and not (isinstance(ratio, float) and 0 < ratio < 1):
            raise ValueError("dataset.ratio must be a number between 0 and 1")
        repr(list(leaves(config)))  # nested too deeply for a report, it is refused here
        return config

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Results":
        shape = [len(self.dataset.bias_names)] * len(self.dataset.class_names)
        predictors = self.rules[self.selection].metrics.keys()
        for rule, kept in self.rules.items():
            if kept.metrics.keys() != predictors:
                raise ValueError(f"rules.{rule}.metrics must be of {', '.join(predictors)}")
            for predictor, metrics in kept.metrics.items():
                if metrics.groups is not None and ([len(row) for row in metrics.groups] != shape or not shape[0]):
                    where = f"rules.{rule}.metrics.{predictor}.groups"
                    raise ValueError(f"{where} must have {len(shape)} rows of {shape[0]}, as classes and biases")
        return self


@dataclass(frozen=True)
class Headline:
    """The figure that stands for a stage; `rule` is None for the newest epoch of one that is not finished."""

    predictor: str
    metric: MetricName
    value: float | None
    epoch: int
    rule: SelectionRule | None


@dataclass(frozen=True)
class StageSummary:
    """A stage folder as it was found; what is not known is None.

    Attributes:
        folder: of the stage.
        state: running, stopped, done or failed.
        problem: what is wrong with it.
        epoch: the last completed one.
        epochs: as many as there are to be.
        seconds_left: training time of the epochs that are missing.
        written: time of the last write, in seconds since 1970.
        headline: the figure that stands for it.
        results: of a finished stage.
    """

    folder: Path
    state: State
    problem: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    seconds_left: float | None = None
    written: float | None = None
    headline: Headline | None = None
    results: Results | None = None


_Kind = TypeVar("_Kind", bound=_Record)


def find_stages(given: Path) -> tuple[list[Path], list[OSError]]:
    """The stage folders at or below a path, seed 2 before seed 10, and why some folders could not be looked into.

    Raises:
        CheckpointError: there is no such folder.
    """
    if not given.is_dir():
        what = "is not a folder" if given.exists() else "does not exist"
        raise CheckpointError(f"{given} {what}", "Give run folders, or a folder of them such as runs.")
    found: list[Path] = []
    unread: list[OSError] = []
    seen: set[Path] = set()
    if _is_stage(given):
        return [given], unread
    for top, folders, _ in os.walk(given, followlinks=True, onerror=unread.append):
        inner = [Path(top, name) for name in folders if not name.startswith(".")]
        new = {path.resolve(): path for path in inner if path.resolve() not in seen}  # links may lead in circles
        seen |= new.keys()
        stages = [path for path in new.values() if _is_stage(path)]
        found += stages
        folders[:] = [path.name for path in new.values() if path not in stages]
    return sorted(found, key=_order), unread


def summarise_stage(path: Path) -> StageSummary:
    """Look at a stage folder, whatever state it is in; a process at work in it is not disturbed."""
    folder = RunFolder(path)
    held, written = False, None
    try:
        held = is_held(path)  # looked at first: a run that ends while this reads has then written its results
        written = _last_write(path)
        return _done(folder, written) if folder.finished else _unfinished(folder, held, written)
    except CheckpointError as error:
        problem = error.what
    except OSError as error:
        problem = f"{error.filename or path}: {error.strerror}"
    except RecursionError:
        problem = f"{folder.results_file if folder.finished else path} is damaged: it is nested too deeply"
    return StageSummary(path, "running" if held else "failed", problem, written=written)


def records_of(path: Path) -> list[EpochRecord]:
    """Every completed epoch of a stage folder.

    Raises:
        CheckpointError: metrics.jsonl is missing or damaged.
    """
    folder = RunFolder(path)
    try:
        return _parse(folder, _lines(folder), 1)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}", "Bring the file back.") from None


def _done(folder: RunFolder, written: float | None) -> StageSummary:
    results = _validate(Results, folder.results(), folder.results_file)
    kept = results.rules[results.selection]
    return StageSummary(
        folder.path,
        "done",
        epoch=results.epochs,
        epochs=results.epochs,
        written=written,
        headline=_headline(kept.metrics, results.reported_metric, kept.epoch, results.selection),
        results=results,
    )


def _unfinished(folder: RunFolder, held: bool, written: float | None) -> StageSummary:
    epochs, problem = _planned(folder)
    lines = _lines(folder) if folder.metrics_file.exists() else []
    state: State = "running" if held else "failed" if problem else "stopped"
    completed = len(lines)
    if not held and folder.resume_file.exists():
        completed = _completed(folder, len(lines))
    elif not held and not problem and completed > 1:
        state, problem = "failed", f"{folder.resume_file.name} is missing, so it cannot go on; start anew with --force"
    elif not held and not problem:
        completed, problem = 0, "no state was written yet, so the same command begins it anew"
    newest = _parse(folder, lines[:completed][-_EPOCHS_TIMED:], max(completed - _EPOCHS_TIMED, 0) + 1)
    seconds = sum(record.seconds for record in newest) / len(newest) if newest else None
    return StageSummary(
        folder.path,
        state,
        problem,
        epoch=completed,
        epochs=epochs,
        seconds_left=None if seconds is None or epochs is None or state == "failed" else seconds * (epochs - completed),
        written=written,
        headline=_newest_headline(folder, newest[-1]) if newest else None,
    )


def _planned(folder: RunFolder) -> tuple[int | None, str | None]:
    """How many epochs there are to be; or what is wrong with the configuration, which may be of an older version."""
    try:
        config = folder.config()
    except CheckpointError as error:
        return None, error.what
    return config.settings(folder.method).epochs, None


def _completed(folder: RunFolder, lines: int) -> int:
    """The epochs that a stopped run keeps when it goes on."""
    epoch = _header(folder.resume_file).get("epoch")
    if not isinstance(epoch, int):
        raise CheckpointError(f"{folder.resume_file} does not say which epoch it is of", "Start anew with --force.")
    if epoch > lines:
        raise CheckpointError(
            f"{folder.metrics_file} holds {lines} of the {epoch} completed epochs", "Start anew with --force."
        )
    return epoch


def _headline(metrics: dict[str, Metrics], metric: MetricName, epoch: int, rule: SelectionRule | None) -> Headline:
    predictor = next(iter(metrics))  # the first is the one to ship
    return Headline(predictor, metric, accuracy_of(metrics, predictor, metric), epoch, rule)


def _newest_headline(folder: RunFolder, record: EpochRecord) -> Headline | None:
    last = folder.checkpoint("last")
    metric = _header(last).get("reported_metric") if last.exists() else None
    if metric is None:
        return None
    if metric not in METRIC_NAMES:
        raise CheckpointError(f"{last} is damaged: reported_metric {metric!r} is none", "Start anew with --force.")
    return _headline(record.evaluation, metric, record.epoch, None)


def _header(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file written by `checkpoint.save`, without its tensors.

    Raises:
        CheckpointError: it is cut short or damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if 8 + length > size:
                raise ValueError("it is cut short")
            header = json.loads(file.read(length))
        metadata: dict[str, Any] = json.loads(header.pop("__metadata__")[_METADATA_KEY])
        if size != 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0):
            raise ValueError("it is cut short")
        metadata.keys()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", "Start anew with --force.") from None
    return metadata


def _lines(folder: RunFolder) -> list[str]:
    """The whole lines of metrics.jsonl; one that a process is writing, or that was cut short, is left out."""
    return folder.metrics_file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _parse(folder: RunFolder, lines: Sequence[str], first: int) -> list[EpochRecord]:
    """The records of lines that begin with epoch `first`."""
    records = []
    for epoch, line in enumerate(lines, first):
        where = f"{folder.metrics_file}, line {epoch}"
        try:
            record = _validate(EpochRecord, json.loads(line), where)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{where} is damaged: {error}", "Start anew with --force.") from None
        if record.epoch != epoch:
            raise CheckpointError(f"{where} is of epoch {record.epoch}", "Start anew with --force.")
        records.append(record)
    return records


def _validate(kind: type[_Kind], document: Any, where: Path | str) -> _Kind:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        raise CheckpointError(f"{where} is damaged: {problem}", "Start anew with --force.") from None


def _last_write(path: Path) -> float | None:
    times = []
    for file in path.iterdir():
        try:
            times.append(file.stat().st_mtime)
        except FileNotFoundError:  # a temporary file that is just renamed
            continue
    return max(times, default=None)


def _is_stage(path: Path) -> bool:
    """Whether a folder has the name of a stage, or holds what only a stage's does."""
    if _STAGE_NAME.fullmatch(path.name):
        return True
    try:
        return RunFolder(path).exists and RunFolder(path).metrics_file.exists()
    except OSError:  # it cannot be looked into, which the walk finds out too
        return False


def _order(path: Path) -> tuple[list[tuple[float, str]], bool, str]:
    """Numbers in the name of a run count as numbers, and stage 1 comes first."""
    parts = _NUMBER.split(str(path.parent))
    natural = [(float(part), "") if at % 2 else (0.0, part) for at, part in enumerate(parts)]
    return natural, path.name != "train-poe", path.name

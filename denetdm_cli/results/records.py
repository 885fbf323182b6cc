"""What run folders hold, as plain records; nothing here needs torch or writes."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from denetdm_cli.config.schema import SelectionRule, section_of
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.utils.errors import CheckpointError
from denetdm_cli.utils.files import is_held

State = Literal["running", "stopped", "done", "failed"]
"""`stopped`: the same command resumes it; `failed`: it cannot be resumed."""

MetricName = Literal["unbiased", "accuracy", "aligned", "conflicting", "worst_group", "worst_class"]
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)

_METADATA_KEY = "denetdm"
"""Key of the metadata in the header of a safetensors file, as `training.checkpoint` writes it."""
_EPOCHS_TIMED = 5
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


class _Record(BaseModel):
    """The entries of a file that this package reads; the file may hold more."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Metrics(_Record):
    """Accuracies of one predictor, between 0 and 1, as in `evaluation.metrics`."""

    unbiased: float | None
    accuracy: float | None
    aligned: float | None
    conflicting: float | None
    worst_group: float | None
    worst_class: float | None
    groups: list[list[float | None]] | None = None


def accuracy_of(metrics: dict[str, Metrics], predictor: str, name: MetricName) -> float | None:
    """An accuracy of a predictor; None if the predictor or its accuracy is missing."""
    return getattr(metrics.get(predictor), name, None)


class EpochRecord(_Record):
    """A line of metrics.jsonl; `evaluation` is by predictor."""

    epoch: int
    evaluation: dict[str, Metrics] = Field(min_length=1)
    seconds: float


class Selected(_Record):
    """The epoch that a selection rule picked: its metrics by predictor, and how it was picked."""

    epoch: int
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
    class_names: list[str]
    bias_names: list[str]


class Results(_Record):
    """results.json of a finished stage; `stage` is the name of the method."""

    stage: str
    seed: int
    selection: SelectionRule
    reported_metric: MetricName
    epochs: int
    dataset: TrainedOn
    rules: dict[SelectionRule, Selected]
    start_weights: dict[str, dict[str, str]]
    config: dict[str, Any]


@dataclass(frozen=True)
class Headline:
    """The reported accuracy of a stage; `rule` is None for the newest epoch of an unfinished stage."""

    predictor: str
    metric: MetricName
    value: float | None
    epoch: int
    rule: SelectionRule | None


@dataclass(frozen=True)
class StageSummary:
    """State and progress of a stage folder; unknown entries are None.

    Attributes:
        folder: of the stage.
        state: running, stopped, done or failed.
        problem: why the stage failed.
        epoch: the last completed one.
        epochs: to train in total.
        seconds_left: training time of the epochs that are left.
        written: time of the last write, in seconds since 1970.
        headline: the reported accuracy.
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


def find_stages(given: Path) -> tuple[list[Path], list[OSError]]:
    """The stage folders at or below a path, by number of the run and by age, and the folders that cannot be read.

    Raises:
        CheckpointError: the folder does not exist.
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
    """State and progress of a stage folder; a damaged file makes it `failed`. A running process is not disturbed."""
    folder = RunFolder(path)
    held, written = False, None
    try:
        held = is_held(path)  # before the files are read: a run that ends meanwhile has written its results
        written = _last_write(path)
        return _finished(folder, written) if folder.finished else _unfinished(folder, held, written)
    except CheckpointError as error:
        problem = error.what
    except OSError as error:
        problem = f"{error.filename or path}: {error.strerror}"
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


def _finished(folder: RunFolder, written: float | None) -> StageSummary:
    with _reading(folder.results_file):
        results = Results.model_validate(folder.results())
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
    lines = _lines(folder) if folder.metrics_file.exists() else []
    metadata = _metadata(folder.checkpoint("last"))
    state: State = "running" if held else "stopped"
    problem, completed = None, len(lines)
    if not held and folder.resume_file.exists():
        completed = _resumable_epochs(folder, len(lines))
    elif not held and completed > 1:
        state, problem = "failed", f"{folder.resume_file.name} is missing, so it cannot resume; start anew with --force"
    elif not held:
        completed, problem = 0, "no resume state was written yet; the same command starts it again"
    newest = _parse(folder, lines[:completed][-_EPOCHS_TIMED:], max(completed - _EPOCHS_TIMED, 0) + 1)
    epochs = _planned_epochs(folder, metadata.get("stage"))
    left = sum(record.seconds for record in newest) / len(newest) * (epochs - completed) if newest else None
    metric = metadata.get("reported_metric")
    return StageSummary(
        folder.path,
        state,
        problem,
        epoch=completed,
        epochs=epochs,
        seconds_left=None if state == "failed" else left,
        written=written,
        headline=_headline(newest[-1].evaluation, metric, completed, None) if newest and metric else None,
    )


def _planned_epochs(folder: RunFolder, method: str | None) -> int:
    """The epochs in the section of the method, which the checkpoint names or else the folder."""
    with _reading(folder.config_file):
        config = yaml.safe_load(folder.config_file.read_text(encoding="utf-8"))
        return int(config[section_of(method or folder.method)]["epochs"])


def _resumable_epochs(folder: RunFolder, lines: int) -> int:
    with _reading(folder.resume_file):
        epoch = int(_metadata(folder.resume_file)["epoch"])
    if epoch > lines:
        raise CheckpointError(
            f"{folder.metrics_file} holds {lines} of the {epoch} completed epochs", "Start anew with --force."
        )
    return epoch


def _headline(metrics: dict[str, Metrics], metric: MetricName, epoch: int, rule: SelectionRule | None) -> Headline:
    predictor = next(iter(metrics))  # the first is the one that is reported
    return Headline(predictor, metric, accuracy_of(metrics, predictor, metric), epoch, rule)


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint, without its tensors; empty where there is no file."""
    if not path.exists():
        return {}
    with _reading(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, path.stat().st_size)))
        metadata: dict[str, Any] = json.loads(header["__metadata__"][_METADATA_KEY])
        return metadata


def _lines(folder: RunFolder) -> list[str]:
    """The lines of metrics.jsonl without an incomplete last one."""
    return folder.metrics_file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _parse(folder: RunFolder, lines: Sequence[str], first: int) -> list[EpochRecord]:
    """The records of the lines from epoch `first` on."""
    records = []
    for epoch, line in enumerate(lines, first):
        where = f"{folder.metrics_file}, line {epoch}"
        with _reading(where):
            records.append(EpochRecord.model_validate(json.loads(line)))
        if records[-1].epoch != epoch:
            raise CheckpointError(f"{where} is of epoch {records[-1].epoch}", "Start anew with --force.")
    return records


@contextmanager
def _reading(where: Path | str) -> Iterator[None]:
    """Report whatever a damaged file raises as one error that names the file."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
    else:
        return
    raise CheckpointError(f"{where} is damaged: {problem}", "Start anew with --force.")


def _last_write(path: Path) -> float | None:
    times = []
    for file in path.iterdir():
        try:
            times.append(file.stat().st_mtime)
        except FileNotFoundError:  # a temporary file that was just renamed
            continue
    return max(times, default=None)


def _is_stage(path: Path) -> bool:
    """Whether a folder holds records and a checkpoint, or a configuration of this program."""
    folder = RunFolder(path)
    try:
        if folder.metrics_file.is_file() and folder.checkpoint("last").is_file():
            return True
        return folder.exists and folder.config_file.read_bytes().startswith(b"dataset:")
    except OSError:  # the walk reports the folder as unreadable
        return False


def _order(path: Path) -> tuple[list[tuple[float, str]], float, str]:
    """Numbers in the name of a run count as numbers; a stage comes after those it was started after."""
    parts = _NUMBER.split(str(path.parent))
    natural = [(float(part), "") if at % 2 else (0.0, part) for at, part in enumerate(parts)]
    config = RunFolder(path).config_file
    return natural, config.stat().st_mtime if config.exists() else 0.0, path.name

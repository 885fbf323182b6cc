"""The commands as functions: the same objects and files, and nothing printed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.config.presets import preset_names
from denetdm_cli.config.schema import Config, SelectionRule
from denetdm_cli.data.registry import ensure_datasets
from denetdm_cli.data.store import StoredDataset, open_dataset
from denetdm_cli.hub.convert import convert_to_ours
from denetdm_cli.hub.export import export as export_checkpoint
from denetdm_cli.hub.predict import predict_files
from denetdm_cli.hub.target import load_target_checkpoint
from denetdm_cli.methods import METHODS
from denetdm_cli.results.score import find_checkpoint, mean_and_std, score_all
from denetdm_cli.training import stages
from denetdm_cli.training.checkpoint import LoadedMethod, load_method
from denetdm_cli.training.events import Event
from denetdm_cli.training.pipeline import Job, methods_up_to
from denetdm_cli.training.run_folder import Resume
from denetdm_cli.utils.device import resolve_device
from denetdm_cli.utils.errors import ConfigError
from denetdm_cli.utils.files import scratch_folder
from denetdm_cli.utils.progress import Silent

__all__ = [
    "Model",
    "evaluate",
    "export",
    "list_methods",
    "list_presets",
    "load",
    "load_dataset",
    "make_dataset",
    "predict",
    "train",
]


@dataclass(frozen=True)
class Model:
    """A trained method, as `load` gives it.

    Attributes:
        method: with its networks (`method.model`) in evaluation mode.
        metadata: of the checkpoint: method, epoch, seed, data set, selection, metrics, versions.
        config: the configuration it was trained with.
        device: where the networks are.
    """

    method: Any
    metadata: dict[str, Any]
    config: Config
    device: torch.device

    @property
    def class_names(self) -> list[str]:
        """In the order of the logits."""
        return list(self.metadata["dataset"]["class_names"])

    @torch.inference_mode()
    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (B, classes) by predictor for images (B, C, H, W) float32, normalized as for training."""
        logits: dict[str, Tensor] = self.method.predict(x.to(self.device))
        return logits


def list_methods() -> dict[str, str]:
    """Names of the methods, and a line on each."""
    return {name: method.title for name, method in METHODS.items()}


def list_presets() -> list[str]:
    """Names of the shipped configurations, which are those of the data sets."""
    return preset_names()


def load_dataset(path: str | Path) -> StoredDataset:
    """Open the folder of a data set, ours or LfF's.

    Raises:
        DataError: it is missing or damaged.
    """
    return open_dataset(Path(path))


def make_dataset(
    name: str, settings: Mapping[str, Any] | None = None, *, source: str | Path | None = None, force: bool = False
) -> StoredDataset:
    """Make or import a data set where it is missing, as `denetdm make-data`, and open it.

    Args:
        name: of the preset, such as "coloredmnist".
        settings: dotted keys of the configuration, such as {"dataset.ratio": 0.01, "dataset.root": "data"}.
        source: local copy of the raw images.
        force: make it anew.
    Raises:
        UserError: whatever keeps it from being made.
    """
    return _dataset(load_config(preset_path(name), (), settings or {}), source, force=force)


def train(
    method: str,
    preset: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    source: str | Path | None = None,
    resume: Resume = "auto",
    force: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Path:
    """Train a method as `denetdm train`, after what it starts from where that is not finished.

    Args:
        method: a name of `list_methods`.
        preset: a name of `list_presets`, or a YAML file.
        settings: dotted keys of the configuration, such as {"seed": 1, "erm.epochs": 20, "out": "runs"}.
        source: local copy of the raw images, where the data set is yet to be made.
        resume: "auto" resumes a stopped run where there is one, "must" requires one, "never" refuses it.
        force: start the method anew, and delete its run that is there.
        on_event: called with every event of the training (see `denetdm_cli.training.events`).
    Returns:
        The folder of the run's stage, for `load`, `evaluate`, `predict` and `export`.
    Raises:
        UserError: whatever keeps it from running.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}", f"Methods: {', '.join(METHODS)}.")
    path = preset if isinstance(preset, Path) else preset_path(preset)
    config = load_config(path, (), settings or {})
    dataset = _dataset(config, source)
    forced = (method,) if force else ()
    run = stages.run_path(config, dataset).absolute()
    job = Job(config, run, dataset.path, methods_up_to(method), None, resume, forced)
    folder = run
    for event in job.events(dataset):
        folder = getattr(event, "folder", folder)
        if on_event is not None:
            on_event(event)
    return folder


def load(path: str | Path, *, select: SelectionRule | None = None, device: str = "auto") -> Model:
    """Load a trained method from a run folder, a checkpoint or a `.th` file of the official code.

    Args:
        path: where it is.
        select: selection rule of a run folder's checkpoint; by default that of its configuration.
        device: auto, cpu, cuda, cuda:N or mps.
    Raises:
        CheckpointError: it is missing or damaged.
    """
    place, on = Path(path), resolve_device(device)
    if place.suffix == ".th":
        with scratch_folder() as scratch:
            converted = scratch / "converted.safetensors"
            convert_to_ours(place, converted)
            return _model(load_method(converted, on), on)
    return _model(load_method(find_checkpoint(place, select), on), on)


def evaluate(
    *paths: str | Path,
    data: str | Path | None = None,
    split: str | None = None,
    select: SelectionRule | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Evaluate checkpoints or run folders: the document that `denetdm evaluate --json` prints.

    Args:
        paths: run folders or checkpoints.
        data: another data set folder than the one each was trained on.
        split: evaluation, valid, test or train; by default what the selection rule reports on.
        select: selection rule of the checkpoints.
        device: auto, cpu, cuda, cuda:N or mps.
    Raises:
        UserError: a checkpoint or data set is missing, damaged or does not fit.
    """
    checkpoints = [find_checkpoint(Path(path), select) for path in paths]
    other = None if data is None else Path(data)

    def trained_on(config: Config) -> StoredDataset:
        return _dataset(config, None)

    scores = list(score_all(checkpoints, resolve_device(device), trained_on, data=other, part=split))
    return {"results": [score.to_json() for score in scores], "summary": mean_and_std(scores)}


def predict(
    path: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    select: SelectionRule | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Classify image files and folders of them.

    Returns:
        One dictionary a file: `path`, `class` (its name), `confidence`, and `probabilities` in the order of the
        classes; None for a file that cannot be read, with the `problem` in words.
    Raises:
        UserError: the model or an image is missing, or no image can be read.
    """
    target = load_target_checkpoint(find_checkpoint(Path(path), select), resolve_device(device))
    given = [images] if isinstance(images, str | Path) else list(images)
    return [
        {
            "path": str(found.path),
            "class": None if found.predicted is None else target.class_names[found.predicted],
            "confidence": found.confidence,
            "probabilities": found.probabilities,
            "problem": found.problem,
        }
        for found in predict_files(target, [Path(image) for image in given], Silent())
    ]


def export(
    path: str | Path, out: str | Path, *, onnx: bool = False, force: bool = False, select: SelectionRule | None = None
) -> list[Path]:
    """Write a folder with the model for people without this program, as `denetdm export`; the files are returned.

    Raises:
        UserError: the checkpoint cannot be exported, or the folder holds something else.
    """
    checkpoint = find_checkpoint(Path(path), select)
    return export_checkpoint(checkpoint, Path(out), onnx=onnx, force=force, reporter=Silent())


def _model(loaded: LoadedMethod, device: torch.device) -> Model:
    return Model(loaded.method, loaded.metadata, loaded.config, device)


def _dataset(config: Config, source: str | Path | None, *, force: bool = False) -> StoredDataset:
    raw = None if source is None else Path(source)
    ((dataset, _),) = ensure_datasets([config.dataset], source=raw, force=force, reporter=Silent())
    return dataset

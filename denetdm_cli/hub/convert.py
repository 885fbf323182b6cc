"""Conversion between model files of the official code and checkpoints; no code in a file is ever run."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denetdm_cli import __version__
from denetdm_cli.config.load import differences, load_config, preset_path
from denetdm_cli.config.schema import Config
from denetdm_cli.data.raw.cifar10 import CLASS_NAMES as CIFAR10_CLASSES
from denetdm_cli.data.synthetic.colored_mnist import COLOUR_NAMES
from denetdm_cli.evaluation.selection import provenance, reported_metric
from denetdm_cli.hub.official import ARCHITECTURES, OFFICIAL_MODELS, Dataset, Official, recognise, to_official, to_ours
from denetdm_cli.models.state_dict import is_safetensors, read_state_dict
from denetdm_cli.training import checkpoint
from denetdm_cli.utils.errors import CheckpointError
from denetdm_cli.utils.files import atomic_file, sha256

_SETTINGS_SHOWN = 6
_NAMES: dict[Dataset, tuple[list[str], list[str]]] = {
    "coloredmnist": ([str(digit) for digit in range(10)], list(COLOUR_NAMES)),
    "corruptedcifar10": (list(CIFAR10_CLASSES), [f"corruption {value}" for value in range(10)]),
    "bffhq": (["young", "old"], ["gender 0", "gender 1"]),
}
"""Names of the classes and of the bias values. A file of weights does not name its corruptions."""


def convert_to_ours(
    source: Path, destination: Path, *, origin: Mapping[str, str | int | None] | None = None, force: bool = False
) -> Official:
    """Convert a model file of the official code to a checkpoint.

    A destination with the same content is left unchanged.

    Args:
        source: a state dict written by torch.save.
        destination: the .safetensors file to make.
        origin: the origin of the source, for the metadata.
        force: replace a destination that differs.
    Returns:
        The recognised kind of model.
    Raises:
        CheckpointError: the source is missing, damaged, holds more than tensors or is of another architecture, or the
            destination exists and differs.
    """
    state = _read(source)
    kind = recognise(state, str(source))
    tensors = to_ours(state, kind, str(source))
    metadata = _metadata(kind, {**(origin or {}), "file": source.name, "sha256": sha256(source), **_notes(state)})
    if _to_write(source, destination, lambda: _is_ours(destination, tensors, metadata), force=force):
        checkpoint.save(destination, tensors, metadata)
    return kind


def convert_to_official(source: Path, destination: Path, *, force: bool = False) -> Official:
    """Convert a checkpoint to a state dict that the official code loads with strict=True.

    A destination with the same content is left unchanged.

    Args:
        source: a .safetensors checkpoint.
        destination: the .th file to make.
        force: replace a destination that differs.
    Returns:
        The kind of official model.
    Raises:
        CheckpointError: the source is missing, damaged or of another architecture than the official one, or the
            destination exists and differs.
    """
    loaded = checkpoint.load_method(source, torch.device("cpu"))
    kind = _kind_of(loaded, source)
    state = to_official(loaded.method.model.state_dict(), kind, str(source))
    if _to_write(source, destination, lambda: _is_official(destination, state), force=force):
        buffer = io.BytesIO()  # torch.save writes the name of its file into it
        torch.save(state, buffer)
        with atomic_file(destination) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    return kind


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file written by torch.save.

    Raises:
        CheckpointError: as `read_state_dict`, or the file is a safetensors file.
    """
    if is_safetensors(path):
        raise CheckpointError(
            f"{path} is a safetensors file, not one that torch.save wrote",
            "A checkpoint of denetdm needs no conversion; to turn one into a .th file, add --to official.",
        )
    return read_state_dict(path, "a .th file of the official code")


def _notes(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The changes of the conversion, for the metadata."""
    stored = sorted({str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()})
    notes = {} if stored == ["float32"] else {"stored_as": ", ".join(stored)}
    if any(name.endswith(".running_mean") for name in state) and not any("num_batches" in name for name in state):
        notes["num_batches_tracked"] = "not in the file; set to 0"
    return notes


def _metadata(kind: Official, source: Mapping[str, str | int | None]) -> dict[str, Any]:
    """The metadata of a converted checkpoint. Values that the file does not hold are None; there is no time of day."""
    config = _preset(kind)
    stage_1 = provenance("paper", config.settings("train-poe").selection_metric, None)
    distilled, metric = kind.stage == "distill", config.settings("distill").selection_metric
    classes, biases = _NAMES[kind.dataset]
    return {
        "stage": kind.stage,
        "epoch": None,
        "selection": provenance("paper", metric, stage_1) if distilled else stage_1,
        "metrics": None,
        "reported_metric": reported_metric(config, config.settings(kind.stage)),
        "separation": None,
        "seed": None,
        "device": None,
        "threads": None,
        "versions": {},
        "dataset": {
            "name": kind.dataset,
            "path": None,
            "digest": None,
            "evaluation_digest": None,
            "valid_digest": None,
            "recipe": None,
            "image_shape": list(ARCHITECTURES[kind.dataset].image_shape),
            "class_names": classes,
            "bias_names": biases,
            "evaluation_split": "test" if kind.dataset == "bffhq" else "valid",
            "own_valid_split": kind.dataset == "bffhq",
        },
        **({"teacher": None} if distilled else {}),
        "start_weights": {},
        "source": {
            **source,
            "config": f"of the preset {kind.dataset}; the file holds the networks alone",
            "converted_by": f"denetdm {__version__}",
        },
        "config": config.model_dump(mode="json"),
    }


def _preset(kind: Official) -> Config:
    """The preset of a data set, with the networks of the official code."""
    config = load_config(preset_path(kind.dataset), ["selection=paper"])
    return config.model_copy(update={"model": ARCHITECTURES[kind.dataset].model})


def _kind_of(loaded: checkpoint.LoadedMethod, path: Path) -> Official:
    """The kind of official model that a checkpoint equals.

    Raises:
        CheckpointError: it equals none; the message names the settings that differ from the nearest.
    """
    kinds = [kind for kind in OFFICIAL_MODELS if kind.stage == loaded.metadata["stage"]]
    found = {kind: _different_settings(loaded, kind) for kind in kinds}
    nearest = min(kinds, key=lambda kind: (len(found[kind]), kind.dataset != loaded.config.dataset.name))
    if different := found[nearest]:
        more = f"; and {len(different) - _SETTINGS_SHOWN} more" if len(different) > _SETTINGS_SHOWN else ""
        raise CheckpointError(
            f"{path} is no model of the official code; it differs from {nearest}: "
            + "; ".join(different[:_SETTINGS_SHOWN])
            + more,
            "The official code has one network a data set. Train one with its settings (denetdm configs show "
            f"{nearest.dataset}), or write the target model for use without either program: denetdm export.",
        )
    return nearest


def _different_settings(loaded: checkpoint.LoadedMethod, kind: Official) -> list[str]:
    """The settings of networks, images and classes that differ from the official code."""
    branches = ("shallow", "deep") if kind.stage == "train-poe" else ("deep", "target")
    keys = (*(f"model.{branch}." for branch in branches), "data.mean", "data.std")
    different = [
        f"{key} {ours}, official {theirs}"
        for key, ours, theirs in differences(loaded.config, _preset(kind))
        if key.startswith(keys) and not key.endswith(".weights")
    ]
    dataset, official = loaded.metadata["dataset"], ARCHITECTURES[kind.dataset]
    for name, ours, theirs in (
        ("image shape", tuple(dataset["image_shape"]), official.image_shape),
        ("number of classes", len(dataset["class_names"]), official.classes),
    ):
        if ours != theirs:
            different.append(f"{name} {ours}, official {theirs}")
    return different


def _to_write(source: Path, destination: Path, same: Callable[[], bool], *, force: bool) -> bool:
    """Whether the destination must be written.

    Raises:
        CheckpointError: the destination is a folder, is the source, or differs and `force` is not given.
    """
    if destination.is_dir():
        raise CheckpointError(f"{destination} is a folder", "Give the path of a file with -o.")
    if not destination.is_file():
        return True
    if destination.samefile(source):
        raise CheckpointError(f"{destination} is the file to convert", "Give another path with -o.")
    if same():
        return False
    if not force:
        raise CheckpointError(
            f"{destination} exists and holds something else", "Give another path with -o, or replace it with --force."
        )
    return True


def _is_ours(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bool:
    """Whether a file equals the output of `checkpoint.save`, of any version of denetdm."""
    try:
        found, kept = checkpoint.load(path)
    except CheckpointError:
        return False
    kept.pop("format_version")
    return _equal(found, tensors) and _without_version(kept) == _without_version(json.loads(json.dumps(metadata)))


def _without_version(metadata: Mapping[str, Any]) -> dict[str, Any]:
    source = metadata.get("source")
    kept = {key: value for key, value in source.items() if key != "converted_by"} if isinstance(source, dict) else None
    return {**metadata, "source": kept}


def _is_official(path: Path, state: Mapping[str, Tensor]) -> bool:
    try:
        return _equal(_read(path), state)
    except CheckpointError:
        return False


def _equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )

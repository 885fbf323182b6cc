"""Safetensors in and out: strict, atomic, and self-describing; nothing is ever unpickled."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from denetdm_cli.config.load import from_mapping
from denetdm_cli.config.schema import SELECTION_RULES, Config, SelectionRule
from denetdm_cli.methods import METHODS
from denetdm_cli.methods.base import Method, Task
from denetdm_cli.training.optimizer import load_optimizer_state, optimizer_state
from denetdm_cli.utils.errors import CheckpointError, ConfigError
from denetdm_cli.utils.files import atomic_file
from denetdm_cli.utils.text import first_few

FORMAT_VERSION = 2
_METADATA_KEY = "denetdm"


class _DatasetFacts(BaseModel):
    """What is not known of a converted model's data is None."""

    path: str | None
    digest: str | None
    evaluation_digest: str | None
    valid_digest: str | None = None
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    class_names: list[str] = Field(min_length=1)
    bias_names: list[str]
    evaluation_split: str
    own_valid_split: bool


class _SelectionFacts(BaseModel):
    rule: SelectionRule
    metric: str | None
    teacher_rule: SelectionRule | None
    selected_on: str | None
    picked_on: list[str]
    reported_on: Literal["evaluation", "test"]
    selected_on_test_data: bool


class _Metadata(BaseModel):
    """What of a model's metadata others rely on; there is more in it."""

    stage: str
    epoch: int | None
    seed: int | None
    dataset: _DatasetFacts
    selection: _SelectionFacts
    reported_metric: str
    versions: dict[str, str]
    config: dict[str, Any]


@dataclass(frozen=True)
class LoadedMethod:
    """A trained method as a checkpoint describes it.

    Attributes:
        method: its model is in evaluation mode, on the device asked for.
        metadata: what the checkpoint says of itself.
        config: the configuration it was trained with.
    """

    method: Method
    metadata: dict[str, Any]
    config: Config


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata as one safetensors file, whole or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"format_version": FORMAT_VERSION, **metadata})
    with atomic_file(path) as temporary:
        temporary.write_bytes(serialize(contiguous, metadata={_METADATA_KEY: text}))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read every tensor and the metadata of a file written by `save`.

    Raises:
        CheckpointError: missing, cut short, a pickle, or not written by this program.
    """
    _refuse_foreign(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is cut short or damaged: {error}", "Copy it again, or train again; nothing was loaded."
        ) from None
    try:
        metadata = json.loads(header[_METADATA_KEY])
        version = metadata["format_version"]
    except (KeyError, ValueError, TypeError):
        raise CheckpointError(
            f"{path} was not written by denetdm: its header holds no {_METADATA_KEY!r} entry that can be read",
            "Give a checkpoint or run folder made by denetdm train-poe or denetdm distill.",
        ) from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version}; this program reads format {FORMAT_VERSION}",
            "Use the denetdm version that wrote it, or a newer one.",
        )
    return tensors, metadata


def load_method(path: Path, device: torch.device) -> LoadedMethod:
    """Build the method a checkpoint describes and load its weights.

    Raises:
        CheckpointError: as `load` and `fill`, or metadata that does not describe a model.
    """
    tensors, metadata = load(path)
    try:
        said = _Metadata.model_validate(metadata)
        config = from_mapping(said.config, f"kept in {path}")
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise CheckpointError(
            f"{path} does not describe its model; in its metadata, {first_few(problems)}",
            f"Give {' or '.join(f'{rule}.safetensors' for rule in SELECTION_RULES)} as denetdm wrote it.",
        ) from None
    except ConfigError as error:
        raise CheckpointError(
            f"{path} does not describe its model: {error.what}", "Give an unaltered checkpoint made by denetdm."
        ) from None
    if said.stage not in METHODS:
        raise CheckpointError(
            f"{path} is of the method {said.stage!r}, which this program does not have",
            f"Known methods: {', '.join(METHODS)}. Use the denetdm version that wrote it, or a newer one.",
        )
    height, width, channels = said.dataset.image_shape
    task = Task(config.model, (channels, height, width), len(said.dataset.class_names), len(said.dataset.bias_names), 0)
    method = METHODS[said.stage].build(task, config.settings(said.stage))
    fill(method.model, tensors, path)
    method.model.to(device).eval()
    return LoadedMethod(method, metadata, config)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into a module, every one of them and no other.

    Raises:
        CheckpointError: names the missing, extra and mis-shaped tensors.
    """
    _require_same(module.state_dict(), tensors, path)
    module.load_state_dict(dict(tensors))


def training_state(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of a method and its optimizer that a resumed run needs."""
    return {
        **{f"model.{name}": tensor for name, tensor in method.model.state_dict().items()},
        **{f"optimizer.{name}": tensor for name, tensor in optimizer_state(optimizer).items()},
        **{f"method.{name}": tensor for name, tensor in method.state_dict().items()},
    }


def restore_training_state(
    tensors: Mapping[str, Tensor], method: Method, optimizer: torch.optim.Optimizer, path: Path
) -> None:
    """The inverse of `training_state`; tensors with other prefixes are left alone.

    Raises:
        CheckpointError: the file is of another model.
    """
    model, kept, per_image = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in ("model.", "optimizer.", "method.")
    )
    fill(method.model, model, path)
    try:
        load_optimizer_state(optimizer, kept)
        method.load_state_dict(per_image)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit its model: {error}", "Start anew with --force.") from None


def _refuse_foreign(path: Path) -> None:
    """Tell a missing file, a folder and a pickle apart before anything is parsed."""
    if path.is_dir() or not path.exists():
        raise CheckpointError(f"no checkpoint file {path}", "Check the path.")
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise CheckpointError(
            f"{path} is a PyTorch pickle (.th, .pt, .pth), which can run code when it is read, so it was not opened",
            "Give a .safetensors checkpoint or a run folder made by denetdm. If the official code made the file, "
            f"convert it, which runs nothing: denetdm convert {shlex.quote(str(path))} . To use other weights, save "
            "them as safetensors where you trust the file; to make one here: denetdm train-poe --dataset coloredmnist",
        )


def _require_same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    shared = sorted(expected.keys() & found.keys())
    differences = {
        "missing": sorted(expected.keys() - found.keys()),
        "extra": sorted(found.keys() - expected.keys()),
        "of another shape or type": [
            mismatch for name in shared if (mismatch := _mismatch(name, found[name], expected[name]))
        ],
    }
    problems = [f"{word}: {first_few(names)}" for word, names in differences.items() if names]
    if problems:
        raise CheckpointError(
            f"{path} does not hold the tensors of its model; {'; '.join(problems)}",
            "Give an unaltered checkpoint, or the one that belongs to this model.",
        )


def _mismatch(name: str, found: Tensor, expected: Tensor) -> str:
    """Empty where shape and type agree."""
    if found.shape == expected.shape and found.dtype == expected.dtype:
        return ""
    return f"{name} is {_describe(found)}, not {_describe(expected)}"


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"

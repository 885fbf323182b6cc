"""Export of a checkpoint as a folder that needs no denetdm: weights, ONNX, input description, model card."""

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from denetdm_cli.config.schema import DataConfig
from denetdm_cli.data.augment import Normalisation
from denetdm_cli.hub.model_card import model_card
from denetdm_cli.hub.portable import Portable, portable
from denetdm_cli.hub.target import TargetCheckpoint, load_target_checkpoint
from denetdm_cli.utils.device import versions
from denetdm_cli.utils.errors import CheckpointError, ConfigError
from denetdm_cli.utils.files import atomic_folder, made_folder, sha256
from denetdm_cli.utils.progress import Reporter
from denetdm_cli.utils.seed import generator

WEIGHTS = "model.safetensors"
ONNX = "model.onnx"
CONFIG = "config.json"
CARD = "README.md"

_FORMAT = "denetdm-export"
_FILES = frozenset({WEIGHTS, ONNX, f"{ONNX}.data", CONFIG, CARD, "network.py"})
_EXTRA = ("onnx", "onnxscript", "onnxruntime")
_TOLERANCE = 1e-5
_ONNX_TOLERANCE = 1e-4
_BATCHES_TRIED = (1, 3)
_LARGE = 1_900_000_000
"""Bytes of weights beyond which an ONNX file, which holds 2 GB at most, keeps them in another file."""


def export(checkpoint_path: Path, out: Path, *, onnx: bool, force: bool = False, reporter: Reporter) -> list[Path]:
    """Write the reported network of a checkpoint as a folder that needs no denetdm; whole or not at all.

    The same export in the same folder is left unchanged.

    Args:
        checkpoint_path: the checkpoint.
        out: the folder to make.
        onnx: write an ONNX file too.
        force: replace an earlier export. A folder that holds anything else is never replaced.
        reporter: receives slow steps and the description of the network.
    Returns:
        The files, by name.
    Raises:
        CheckpointError: the checkpoint is missing, damaged, of a method that exports nothing, or its outputs are not
            finite; or `out` is no export.
        ConfigError: PyTorch cannot turn the network into ONNX, or the packages for it are missing.
        OSError: the disk cannot be written; nothing half-written stays.
    """
    place = out.resolve()
    earlier = _earlier_export(place, out)
    runtime = _onnx_runtime() if onnx else None
    target = load_target_checkpoint(checkpoint_path, torch.device("cpu"))
    network = portable(target.model.network, target.model.head, target.branch_config, target.image_shape)
    _require_same(target, network)
    digest = sha256(checkpoint_path)
    if earlier and not force:
        if not _is_export_of(earlier, place, digest, onnx=onnx):
            raise CheckpointError(
                f"{out} holds another export", "Name another folder with -o, or replace it with --force."
            )
        reporter.info(f"{out} holds this export already; nothing was written")
        return [out / path.name for path in sorted(place.iterdir())]
    with made_folder(place.parent), atomic_folder(place, replace=place.exists()) as folder:
        _write_weights(folder / WEIGHTS, network.module, target.branch_config.name)
        for name, text in network.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        if runtime is not None:
            reporter.info("writing model.onnx and checking it; that can take a minute")
            _write_onnx(folder / ONNX, target, network.module, runtime)
        (folder / CONFIG).write_text(_config(target, network, folder, digest), encoding="utf-8")
        (folder / CARD).write_text(_card(target, network, digest, onnx=onnx), encoding="utf-8")
        names = sorted(path.name for path in folder.iterdir())
    reporter.info(f"{WEIGHTS} holds {network.description}")
    return [out / name for name in names]


def _earlier_export(place: Path, out: Path) -> dict[str, Any]:
    """The config.json of the export in a folder; empty where the folder is.

    Args:
        place: the folder, with links followed.
        out: the folder as the user gave it.
    Raises:
        CheckpointError: the folder holds something else.
    """
    if place.exists() and not place.is_dir():
        raise CheckpointError(f"{out} is a file", "Give the path of a folder with -o.")
    if place == Path.cwd():
        raise CheckpointError(f"{out} is the current folder, which cannot be replaced", "Name a new folder with -o.")
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    if not names:
        return {}
    if others := sorted(set(names) - _FILES):
        raise CheckpointError(
            f"{out} holds other files than an export, such as {others[0]}, and is left as it is",
            "Name a new folder with -o.",
        )
    try:
        found = json.loads((place / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not (isinstance(found, dict) and found.get("format") == _FORMAT):
        raise CheckpointError(
            f"{out} holds {', '.join(names)}, but is no export of denetdm, and is left as it is",
            "Name a new folder with -o.",
        )
    return found


def _is_export_of(earlier: dict[str, Any], place: Path, digest: str, *, onnx: bool) -> bool:
    """Whether an earlier export, of any version of denetdm, is of this checkpoint and unchanged but for the card."""
    kept = {path.name: {"sha256": sha256(path)} for path in place.iterdir() if path.name not in (CONFIG, CARD)}
    source, files = earlier.get("source"), earlier.get("files")
    same = isinstance(source, dict) and source.get("sha256") == digest and (ONNX in kept) == onnx
    return same and files == kept and (place / CARD).is_file()


def _require_same(target: TargetCheckpoint, network: Portable) -> None:
    """Refuse a checkpoint whose exported network gives other logits."""
    x = Normalisation(target.config.data, target.device)(_pixels(target, 2))
    with torch.inference_mode():
        expected, found = target.model(x), network.module(x)
    if not expected.isfinite().all():
        raise CheckpointError(
            f"{target.path}: the outputs of the model are not finite numbers", "Give a checkpoint of another epoch."
        )
    _require_close(found, expected, _TOLERANCE, "the exported network")


def _require_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    scale = max(1.0, expected.abs().max().item())
    difference = (found - expected).abs().max().item() / scale
    if not difference <= tolerance:  # so that NaN is refused too
        raise CheckpointError(
            f"{what} gives other logits than the checkpoint: they differ by {difference:.1e} of the largest, and no "
            f"more than {tolerance:.0e} is kept",
            "Nothing was written. Give a checkpoint of another epoch.",
        )


def _pixels(target: TargetCheckpoint, count: int) -> Tensor:
    """Random images (count, C, H, W) uint8, the same every time."""
    size = (count, *target.image_shape)
    return torch.randint(256, size, dtype=torch.uint8, generator=generator(0, "export", count))


def _write_weights(path: Path, module: nn.Module, architecture: str) -> None:
    """Write a state dict as safetensors, with sorted metadata, so that equal state dicts give equal bytes."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    content = serialize(tensors, metadata={"format": "pt", "architecture": architecture})
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(content)[start:])


def _card(target: TargetCheckpoint, network: Portable, digest: str, *, onnx: bool) -> str:
    try:
        return model_card(target, network, digest, onnx=onnx)
    except (LookupError, TypeError, AttributeError, ValueError) as error:  # this part of the metadata is not validated
        raise CheckpointError(
            f"{target.path} does not describe its training and results as denetdm does: {error!r}",
            "Give an unaltered checkpoint made by denetdm.",
        ) from None


def _config(target: TargetCheckpoint, network: Portable, folder: Path, digest: str) -> str:
    """The text of config.json, without paths of this machine."""
    channels, height, width = target.image_shape
    data, resizing, onnx = target.config.data, target.resizing, (folder / ONNX).exists()
    tools = ("torchvision", "safetensors", *(_EXTRA if onnx else ()))
    described: dict[str, Any] = {
        "format": _FORMAT,
        "format_version": 1,
        "architecture": target.branch_config.name,
        "description": network.description,
        "stock_architecture": network.is_stock,
        "class_names": target.class_names,
        "input": {
            "channels": channels,
            "height": height,
            "width": width,
            "colours": "RGB",
            "scale": "pixel / 255",
            "mean": data.mean,
            "std": data.std,
        },
        "resize": {
            "height": resizing.height,
            "width": resizing.width,
            "fit": resizing.fit,
            "interpolation": "bilinear, antialiased",
            "done_to_training_images": resizing.in_training,
        },
        "output": "logits, one a class; their softmax are probabilities",
        "files": {path.name: {"sha256": sha256(path)} for path in sorted(folder.iterdir())},
        "onnx": {"input": "images", "output": "logits", "normalisation": "inside"} if onnx else None,
        "source": {"file": target.path.name, "sha256": digest},
        "versions": versions() | {name: importlib.import_module(name).__version__ for name in tools},
    }
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"


class _WithNormalisation(nn.Module):
    """Normalisation, then the network, for images (B, C, H, W) float32 from 0 to 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, config: DataConfig) -> None:
        super().__init__()
        self.network = network
        self.normalises = config.mean is not None and config.std is not None
        if self.normalises:
            self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1))
            self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.normalises:
            images = (images - self.mean) / self.std
        logits: Tensor = self.network(images)
        return logits


def _onnx_runtime() -> Any:
    """The module onnxruntime, if all packages for ONNX are installed.

    Raises:
        ConfigError: the optional packages are not installed.
    """
    try:
        *_, runtime = [importlib.import_module(name) for name in _EXTRA]
    except ImportError as error:
        raise ConfigError(
            f"--onnx needs {', '.join(_EXTRA)}, which are not all installed: {error}",
            "Install them with pip install 'denetdm[onnx]', or leave out --onnx.",
        ) from None
    return runtime


def _write_onnx(path: Path, target: TargetCheckpoint, network: nn.Module, runtime: Any) -> None:
    """Write the network with its normalisation, and compare the logits of the file with the checkpoint's.

    Raises:
        ConfigError: PyTorch cannot turn this network into ONNX.
        CheckpointError: the file gives other logits.
    """
    module = _WithNormalisation(network, target.config.data).eval()
    example = torch.zeros(2, *target.image_shape)
    try:
        with _silence():
            program: Any = torch.onnx.export(
                module,
                (example,),
                input_names=["images"],
                output_names=["logits"],
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
            _describe(program, target)
            program.save(path, external_data=_size(network) > _LARGE)
            session = _session(path, runtime)
    except OSError:
        raise
    except Exception as error:  # any of torch.export, onnxscript and onnxruntime
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{target.branch_config.name} could not be turned into ONNX by torch {torch.__version__}: {reason}",
            "Leave out --onnx, or try another version of torch and onnxscript.",
        ) from None
    for count in _BATCHES_TRIED:
        pixels = _pixels(target, count)
        images = pixels.numpy().astype(np.float32) / np.float32(255)
        found = torch.from_numpy(session.run(["logits"], {"images": images})[0])
        with torch.inference_mode():
            expected = target.model(Normalisation(target.config.data, target.device)(pixels))
        _require_close(found, expected, _ONNX_TOLERANCE, f"{ONNX} with onnxruntime, for {count} images,")


def _session(path: Path, runtime: Any) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _describe(program: Any, target: TargetCheckpoint) -> None:
    """Add images and classes to the metadata of an ONNX program, and remove PyTorch's, which holds local paths."""
    model = program.model
    nodes = list(model.graph.all_nodes())
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for part in (model, model.graph, *nodes, *values, *(value for node in nodes for value in node.outputs)):
        part.metadata_props.clear()
    model.metadata_props.update(
        {
            "architecture": target.branch_config.name,
            "class_names": json.dumps(target.class_names),
            "images": "RGB from 0 to 1; the normalisation is inside",
        }
    )


def _size(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress logs, warnings and output of other libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

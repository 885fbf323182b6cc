"""The target model in a folder for people without this program: weights, ONNX, what images it takes, a model card."""

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
    """Write the target model of a checkpoint as a folder that needs nothing of this program; whole or not at all.

    Where the same was written there already, it is left as it is.

    Args:
        checkpoint_path: of stage 2.
        out: the folder to make.
        onnx: write an ONNX file too.
        force: replace an earlier export. A folder that holds anything else is never replaced.
        reporter: told what takes time, and what the network is.
    Returns:
        The files, by name.
    Raises:
        CheckpointError: the checkpoint is missing, damaged, of stage 1, or its outputs are not finite; or what is at
            `out` is something else.
        ConfigError: the network or this installation cannot be turned into ONNX.
        OSError: the disk may not be written; nothing half-written stays.
    """
    place = out.resolve()
    earlier = _earlier(place, out)
    runtime = _onnx_runtime() if onnx else None
    shipped = load_target_checkpoint(checkpoint_path, torch.device("cpu"))
    network = portable(shipped.model, shipped.config.model.target, shipped.image_shape)
    _require_same(shipped, network)
    digest = sha256(checkpoint_path)
    if earlier and not force:
        if not _is_that_of(earlier, place, digest, onnx=onnx):
            raise CheckpointError(
                f"{out} holds another export", "Name another folder with -o, or replace it with --force."
            )
        reporter.info(f"{out} holds this export already; nothing was written")
        return [out / path.name for path in sorted(place.iterdir())]
    with made_folder(place.parent), atomic_folder(place, replace=place.exists()) as folder:
        _write_weights(folder / WEIGHTS, network.module, shipped.config.model.target.name)
        for name, text in network.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        if runtime is not None:
            reporter.info("writing model.onnx and checking it; that can take a minute")
            _write_onnx(folder / ONNX, shipped, network.module, runtime)
        (folder / CONFIG).write_text(_config(shipped, network, folder, digest), encoding="utf-8")
        (folder / CARD).write_text(_card(shipped, network, digest, onnx=onnx), encoding="utf-8")
        names = sorted(path.name for path in folder.iterdir())
    reporter.info(f"{WEIGHTS} holds {network.description}")
    return [out / name for name in names]


def _earlier(place: Path, out: Path) -> dict[str, Any]:
    """The config.json of the export that is in a folder; empty where nothing is in it.

    Args:
        place: the folder, with links followed.
        out: as the user calls it.
    Raises:
        CheckpointError: something is there that must stay.
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


def _is_that_of(earlier: dict[str, Any], place: Path, digest: str, *, onnx: bool) -> bool:
    """Whether an export is that of a checkpoint, by whichever version of this program, and its weights are unchanged.

    The card may have been edited.
    """
    kept = {path.name: {"sha256": sha256(path)} for path in place.iterdir() if path.name not in (CONFIG, CARD)}
    source, files = earlier.get("source"), earlier.get("files")
    same = isinstance(source, dict) and source.get("sha256") == digest and (ONNX in kept) == onnx
    return same and files == kept and (place / CARD).is_file()


def _require_same(shipped: TargetCheckpoint, network: Portable) -> None:
    """Refuse a checkpoint whose exported network would not give its logits."""
    x = Normalisation(shipped.config.data, shipped.device)(_pixels(shipped, 2))
    with torch.inference_mode():
        expected, found = shipped.model(x), network.module(x)
    if not expected.isfinite().all():
        raise CheckpointError(
            f"{shipped.path}: the outputs of the model are not finite numbers", "Give a checkpoint of another epoch."
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


def _pixels(shipped: TargetCheckpoint, count: int) -> Tensor:
    """Random images (count, C, H, W) uint8, the same every time."""
    size = (count, *shipped.image_shape)
    return torch.randint(256, size, dtype=torch.uint8, generator=generator(0, "export", count))


def _write_weights(path: Path, module: nn.Module, architecture: str) -> None:
    """Write a state dict as safetensors; equal ones are equal bytes, though the library shuffles its metadata."""
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


def _card(shipped: TargetCheckpoint, network: Portable, digest: str, *, onnx: bool) -> str:
    try:
        return model_card(shipped, network, digest, onnx=onnx)
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:  # the model's own part is checked, this is not
        raise CheckpointError(
            f"{shipped.path} does not describe its training and results as denetdm does: {error!r}",
            "Give an unaltered checkpoint made by denetdm.",
        ) from None


def _config(shipped: TargetCheckpoint, network: Portable, folder: Path, digest: str) -> str:
    """What a program must know to use the files; paths of this machine are not in it."""
    channels, height, width = shipped.image_shape
    data, resizing, onnx = shipped.config.data, shipped.resizing, (folder / ONNX).exists()
    tools = ("torchvision", "safetensors", *(_EXTRA if onnx else ()))
    described: dict[str, Any] = {
        "format": _FORMAT,
        "format_version": 1,
        "architecture": shipped.config.model.target.name,
        "description": network.description,
        "stock_architecture": network.is_stock,
        "class_names": shipped.class_names,
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
        "source": {"file": shipped.path.name, "sha256": digest},
        "versions": versions() | {name: importlib.import_module(name).__version__ for name in tools},
    }
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"


class _WithNormalisation(nn.Module):
    """The network behind the normalisation, for images (B, C, H, W) float32 from 0 to 1."""

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
    """The module onnxruntime, once all that writing ONNX needs is there.

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


def _write_onnx(path: Path, shipped: TargetCheckpoint, network: nn.Module, runtime: Any) -> None:
    """Write the network with its normalisation, and check the file against the checkpoint's model.

    Raises:
        ConfigError: PyTorch cannot turn this network into ONNX.
        CheckpointError: the file gives other logits.
    """
    module = _WithNormalisation(network, shipped.config.data).eval()
    example = torch.zeros(2, *shipped.image_shape)
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
            _describe(program, shipped)
            program.save(path, external_data=_size(network) > _LARGE)
            session = _session(path, runtime)
    except OSError:
        raise
    except Exception as error:  # whatever torch.export, onnxscript and onnxruntime come to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{shipped.config.model.target.name} could not be turned into ONNX by torch {torch.__version__}: {reason}",
            "Leave out --onnx, or try another version of torch and onnxscript.",
        ) from None
    for count in _BATCHES_TRIED:
        pixels = _pixels(shipped, count)
        images = pixels.numpy().astype(np.float32) / np.float32(255)
        found = torch.from_numpy(session.run(["logits"], {"images": images})[0])
        with torch.inference_mode():
            expected = shipped.model(Normalisation(shipped.config.data, shipped.device)(pixels))
        _require_close(found, expected, _ONNX_TOLERANCE, f"{ONNX} with onnxruntime, for {count} images,")


def _session(path: Path, runtime: Any) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _describe(program: Any, shipped: TargetCheckpoint) -> None:
    """Put into an ONNX program what its images and classes are, and take out notes on how PyTorch made it.

    Those notes hold paths of this machine.
    """
    model = program.model
    nodes = list(model.graph.all_nodes())
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for part in (model, model.graph, *nodes, *values, *(value for node in nodes for value in node.outputs)):
        part.metadata_props.clear()
    model.metadata_props.update(
        {
            "architecture": shipped.config.model.target.name,
            "class_names": json.dumps(shipped.class_names),
            "images": "RGB from 0 to 1; the normalisation is inside",
        }
    )


def _size(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what others write about their work away from stdout and stderr."""
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

"""Models of the official code to checkpoints of ours and back, as files; nothing in a file is ever run."""

import io
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from denetdm_cli import __version__, checkpoint
from denetdm_cli.config import differences, load, preset_path
from denetdm_cli.data.cifar import CLASS_NAMES as CIFAR10_CLASSES
from denetdm_cli.data.coloredmnist import COLOUR_NAMES
from denetdm_cli.errors import CheckpointError
from denetdm_cli.files import atomic_file, sha256
from denetdm_cli.models.official import ARCHITECTURES, KINDS, Dataset, Official, recognise, to_official, to_ours
from denetdm_cli.schema import Config
from denetdm_cli.selection import provenance, reported_metric

_START = 512
_SETTINGS_SHOWN = 6
_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")
"""How torch names what it refuses to call; the rest of its message says how to call it all the same."""
_GET_STATE_DICT = (
    "Give a state dict. Where you trust the file and have the code it was saved with, make one: "
    "torch.save(model.state_dict(), PATH)."
)
_NAMES: dict[Dataset, tuple[list[str], list[str]]] = {
    "coloredmnist": ([str(digit) for digit in range(10)], list(COLOUR_NAMES)),
    "corruptedcifar10": (list(CIFAR10_CLASSES), [f"corruption {value}" for value in range(10)]),
    "bffhq": (["young", "old"], ["gender 0", "gender 1"]),
}
"""Of the classes and the bias values. Which ten corruptions they were, a file of weights does not say."""


def convert_to_ours(
    source: Path, destination: Path, *, origin: Mapping[str, str | int | None] | None = None, force: bool = False
) -> Official:
    """Write a model of the official code as a checkpoint that `evaluate` takes.

    A destination that holds the same already is left as it is.

    Args:
        source: a state dict, as torch.save wrote it.
        destination: the .safetensors file to make.
        origin: what to say in its metadata of where the source came from.
        force: replace a destination that differs.
    Returns:
        What the file was recognised as.
    Raises:
        CheckpointError: the source is missing, damaged, holds more than tensors or is of another architecture, or the
            destination exists and differs.
    """
    state = read_state_dict(source)
    kind = recognise(state, str(source))
    tensors = to_ours(state, kind, str(source))
    metadata = _metadata(kind, {**(origin or {}), "file": source.name, "sha256": sha256(source), **_notes(state)})
    if _to_write(source, destination, lambda: _is_ours(destination, tensors, metadata), force=force):
        checkpoint.save(destination, tensors, metadata)
    return kind


def convert_to_official(source: Path, destination: Path, *, force: bool = False) -> Official:
    """Write a checkpoint of ours as a state dict that the official code loads with strict=True.

    A destination that holds the same already is left as it is.

    Args:
        source: a .safetensors file of ours.
        destination: the .th file to make.
        force: replace a destination that differs.
    Returns:
        Which of the official models it is.
    Raises:
        CheckpointError: the source is missing, damaged or of another architecture than the official one, or the
            destination exists and differs.
    """
    loaded = checkpoint.load_model(source, torch.device("cpu"))
    kind = _kind_of(loaded, source)
    state = to_official(loaded.model.state_dict(), kind, str(source))
    if _to_write(source, destination, lambda: _is_official(destination, state), force=force):
        buffer = io.BytesIO()  # torch.save would put the name of a temporary file into it
        torch.save(state, buffer)
        with atomic_file(destination) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    return kind


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, without running any code in it.

    A state dict under the one key `state_dict` is taken out; the prefix `module.` of DataParallel is left out.

    Raises:
        CheckpointError: missing, damaged, of another kind, or holding more than tensors.
    """
    _refuse_foreign(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        if named := _FORBIDDEN.search(str(error)):
            raise CheckpointError(
                f"{path} holds more than tensors: it calls {named[1]}, and could run code when it is read; "
                "it was refused, and nothing in it was run",
                _GET_STATE_DICT,
            ) from None
        raise _damaged(path, "its pickle cannot be read") from None
    except Exception as error:  # whatever a damaged file comes to
        raise _damaged(path, str(error) or type(error).__name__) from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not a state dict", _GET_STATE_DICT)
    if not found:
        raise CheckpointError(f"{path} holds an empty state dict", _GET_STATE_DICT)
    for name, value in found.items():
        if not (isinstance(name, str) and _is_plain(value)):
            raise CheckpointError(f"{path} holds more than plain tensors, such as {name!r}", _GET_STATE_DICT)
    prefix = "module." if all(name.startswith("module.") for name in found) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def _is_plain(value: object) -> bool:
    """Whether it is a dense tensor with its content in memory; a file can also hold tensors without any content."""
    if not isinstance(value, Tensor) or type(value) not in (Tensor, nn.Parameter):
        return False
    return value.layout == torch.strided and value.device.type == "cpu"


def _refuse_foreign(path: Path) -> None:
    """Tell apart what is often found where a model is expected, before anything is parsed."""
    if path.is_dir() or not path.exists():
        raise CheckpointError(f"no file {path}", "Check the path.")
    with path.open("rb") as file:
        start = file.read(_START)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not start:
        raise CheckpointError(f"{path} is empty", "Download it again.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<script")):
        raise CheckpointError(
            f"{path} is a web page, not a model",
            "Google Drive sends such a page in place of a file when too many have downloaded it or when it wants a "
            "confirmation. Open the address in a browser and download the file there, or try again a day later.",
        )
    if start[8:10] == b'{"' and int.from_bytes(start[:8], "little") < path.stat().st_size:
        raise CheckpointError(
            f"{path} is a safetensors file, not one that torch.save wrote",
            "A checkpoint of denetdm needs no conversion; to turn one into a .th file, add --to official.",
        )
    if start[:2] == b"PK":
        _refuse_archive(path)
    elif start[:1] != b"\x80":  # before torch 1.6, torch.save wrote pickles
        raise CheckpointError(f"{path} is no file that torch.save wrote", "Give a .th file of the official code.")


def _refuse_archive(path: Path) -> None:
    """Refuse a zip that torch.save did not write, that is not whole, or that takes more memory than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if any(name.endswith("/constants.pkl") for name in names):
                raise CheckpointError(f"{path} is a TorchScript archive, which holds code", _GET_STATE_DICT)
            if not any(name.endswith("/data.pkl") for name in names):
                first = f" (its first file is {names[0]})" if names else ""
                raise CheckpointError(
                    f"{path} is a zip archive of something else than a model{first}",
                    "Unpack it and give the .th file in it.",
                )
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise CheckpointError(
                    f"{path} claims to hold more than its own size, which no file that torch.save wrote does",
                    "Do not use it; get the file from where it was published.",
                )
            if altered := archive.testzip():  # torch itself does not look
                raise _damaged(path, f"{altered} has another checksum")
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise _damaged(path, str(error) or type(error).__name__) from None


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is cut short or damaged: {reason.splitlines()[0]}", "Copy or download it again.")


def _notes(state: Mapping[str, Tensor]) -> dict[str, str]:
    """What the conversion changed or added."""
    stored = sorted({str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()})
    notes = {} if stored == ["float32"] else {"stored_as": ", ".join(stored)}
    if any(name.endswith(".running_mean") for name in state) and not any("num_batches" in name for name in state):
        notes["num_batches_tracked"] = "not in the file; set to 0"
    return notes


def _metadata(kind: Official, source: Mapping[str, str | int | None]) -> dict[str, Any]:
    """What a converted checkpoint says of itself. What the file does not say is None; no time of day."""
    config = _preset(kind)
    stage_1 = provenance("paper", config.train_poe.selection_metric, None)
    distilled = kind.stage == "distill"
    classes, biases = _NAMES[kind.dataset]
    return {
        "stage": kind.stage,
        "epoch": None,
        "selection": provenance("paper", config.distill.selection_metric, stage_1) if distilled else stage_1,
        "metrics": None,
        "reported_metric": reported_metric(config),
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
            "config": f"of the preset {kind.dataset}; the file itself says nothing but the networks",
            "converted_by": f"denetdm {__version__}",
        },
        "config": config.model_dump(mode="json"),
    }


def _preset(kind: Official) -> Config:
    """The shipped configuration of a data set, with the networks that the official code builds."""
    config = load(preset_path(kind.dataset), ["selection=paper"])
    return config.model_copy(update={"model": ARCHITECTURES[kind.dataset].model})


def _kind_of(loaded: checkpoint.LoadedModel, path: Path) -> Official:
    """Which official model one of ours is.

    Raises:
        CheckpointError: names the settings in which it differs from the nearest.
    """
    kinds = [kind for kind in KINDS if kind.stage == loaded.metadata["stage"]]
    found = {kind: _different_settings(loaded, kind) for kind in kinds}
    nearest = min(kinds, key=lambda kind: (len(found[kind]), kind.dataset != loaded.config.dataset.name))
    if different := found[nearest]:
        more = f"; and {len(different) - _SETTINGS_SHOWN} more" if len(different) > _SETTINGS_SHOWN else ""
        raise CheckpointError(
            f"{path} is not what the official code builds; it differs from {nearest}: "
            + "; ".join(different[:_SETTINGS_SHOWN])
            + more,
            "The official code has one network a data set. Train one with its settings (denetdm configs show "
            f"{nearest.dataset}), or write the target model for use without either program: denetdm export.",
        )
    return nearest


def _different_settings(loaded: checkpoint.LoadedModel, kind: Official) -> list[str]:
    """What the official code would build or feed otherwise: networks, images, classes."""
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
    """Whether there is anything left to write.

    Raises:
        CheckpointError: the destination must not be written.
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
    """Whether a file is what `checkpoint.save` would write, by whichever version of this program."""
    try:
        found, said = checkpoint.load(path)
    except CheckpointError:
        return False
    said.pop("format_version")
    return _equal(found, tensors) and _lasting(said) == _lasting(json.loads(json.dumps(metadata)))


def _lasting(metadata: Mapping[str, Any]) -> dict[str, Any]:
    source = metadata.get("source")
    kept = {key: value for key, value in source.items() if key != "converted_by"} if isinstance(source, dict) else None
    return {**metadata, "source": kept}


def _is_official(path: Path, state: Mapping[str, Tensor]) -> bool:
    try:
        return _equal(read_state_dict(path), state)
    except CheckpointError:
        return False


def _equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )

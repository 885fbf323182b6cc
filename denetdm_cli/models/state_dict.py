"""State dicts in files made elsewhere: read without running code in them, and compared with those of a network."""

import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from denetdm_cli.utils.errors import CheckpointError
from denetdm_cli.utils.text import first_few

_START = 512
_LONGEST_HEADER = 100_000_000
"""Of a safetensors file, in bytes; its library reads none that is longer."""
_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")
"""How torch names what it refuses to call; the rest of its message says how to call it all the same."""
_GET_STATE_DICT = (
    "Give a state dict. Where you trust the file and have the code it was saved with, make one: "
    "torch.save(model.state_dict(), PATH)."
)
COUNTER = ".num_batches_tracked"
"""What the counters of batch normalisation end in; torch before 0.4.1 did not write them."""
_WIDENED = (torch.float16, torch.bfloat16)
"""What is read as float32, without loss."""


def read_state_dict(path: Path, wanted: str) -> dict[str, Tensor]:
    """The tensors of a file that torch.save or safetensors wrote, on the CPU, without running any code in it.

    A state dict under the one key `state_dict` is taken out; the prefix `module.` of DataParallel is left out.

    Args:
        path: its content says of which kind it is, not its name.
        wanted: what to give in its place, for messages.
    Raises:
        CheckpointError: missing, damaged, of another kind, or holding more than plain tensors.
    """
    _refuse_foreign(path, wanted)
    found = _safetensors(path) if is_safetensors(path) else _unpickled(path)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not a state dict", _GET_STATE_DICT)
    if not found:
        raise CheckpointError(f"{path} holds an empty state dict", _GET_STATE_DICT)
    for name, value in found.items():
        if not (isinstance(name, str) and name.isprintable() and _is_plain(value)):
            raise CheckpointError(f"{path} holds more than plain tensors, such as {name!r}", _GET_STATE_DICT)
    prefix = "module." if all(name.startswith("module.") for name in found) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors writes them; there may be no such file."""
    start = _start(path) if path.is_file() else b""
    return start[8:10] == b'{"' and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def tensor_differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What is missing, extra, and of another shape or type, by these words; empty lists where nothing is.

    Numbers of 16 bits may stand for float32.
    """
    return {
        "missing": [name for name in expected if name not in found],
        "extra": [name for name in found if name not in expected],
        "of another shape or type": [
            f"{name} is {_described(found[name])}, not {_described(tensor)}"
            for name, tensor in expected.items()
            if name in found and not _alike(found[name], tensor)
        ],
    }


def describe_differences(different: Mapping[str, list[str]]) -> str:
    """What `tensor_differences` found; nothing where it found none."""
    return "; ".join(f"{word}: {first_few(names)}" for word, names in different.items() if names)


def _alike(found: Tensor, expected: Tensor) -> bool:
    same_type = found.dtype == expected.dtype or (expected.dtype == torch.float32 and found.dtype in _WIDENED)
    return found.shape == expected.shape and same_type


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None


def _unpickled(path: Path) -> object:
    try:
        with path.open("rb") as file:  # of a path, torch would go by the ending
            return torch.load(file, map_location="cpu", weights_only=True)
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
    except RuntimeError as error:
        raise _damaged(path, str(error)) from None
    except Exception:  # a damaged pickle can raise anything, and a message such as 'KeyError: 101' helps nobody
        raise _damaged(path, "its pickle cannot be read") from None


def _is_plain(value: object) -> bool:
    """Whether it is a dense tensor with all of its content in memory; a file can also hold tensors without any."""
    if not isinstance(value, Tensor) or type(value) not in (Tensor, nn.Parameter):
        return False
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_nested:
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_START)


def _refuse_foreign(path: Path, wanted: str) -> None:
    """Tell apart what is often found where weights are expected, before anything is parsed."""
    if not path.exists():
        raise CheckpointError(f"no file {path}", f"Check the path, or give {wanted}.")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a file", f"Give {wanted}.")
    start = _start(path)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not start:
        raise CheckpointError(f"{path} is empty", "Delete it, and copy or download it again.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<script")):
        raise CheckpointError(
            f"{path} is a web page, not a model",
            "A server sends such a page in place of a file when the address is not the file's own, and Google Drive "
            "when too many have downloaded it or when it wants a confirmation. Open the address in a browser and "
            "download the file there, or try again a day later.",
        )
    if start[:2] == b"PK":
        _refuse_archive(path)
    elif start[:1] != b"\x80" and not is_safetensors(path):  # before torch 1.6, torch.save wrote pickles
        raise CheckpointError(f"{path} is no file of weights", f"Give {wanted}.")


def _refuse_archive(path: Path) -> None:
    """Refuse a zip that torch.save did not write, that is not whole, or that takes more memory than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if any(name.endswith("/constants.pkl") for name in names):
                raise CheckpointError(f"{path} is a TorchScript archive, which holds code", _GET_STATE_DICT)
            if not any(name.endswith("/data.pkl") for name in names):
                first = f" (its first file is {names[0]!r})" if names else ""
                raise CheckpointError(
                    f"{path} is a zip archive of something else than a model{first}",
                    "Unpack it and give the file of weights in it.",
                )
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise CheckpointError(
                    f"{path} claims to hold more than its own size, which no file that torch.save wrote does",
                    "Do not use it; get the file from where it was published.",
                )
            if altered := archive.testzip():  # torch itself does not look
                raise _damaged(path, f"{altered!r} has another checksum")
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error):
        raise _damaged(path, "its zip archive cannot be read") from None


def _damaged(path: Path, reason: str) -> CheckpointError:
    first = "".join(filter(str.isprintable, reason.strip().partition("\n")[0])) or "it cannot be read"
    return CheckpointError(f"{path} is cut short or damaged: {first}", "Delete it, and copy or download it again.")

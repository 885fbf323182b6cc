"""Raw data from untrusted places that may fail: files, downloads in a child process with a time limit, zip members."""

import io
import os
import pickle
import stat
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import numpy as np

from denetdm_cli.utils.errors import DownloadError
from denetdm_cli.utils.files import scratch_folder

T = TypeVar("T")

Files: TypeAlias = Mapping[str, Callable[[], bytes]]
"""Files of a folder or an archive by name, each as a function that reads it into memory."""

_DOWNLOADER = """
import socket, sys
socket.setdefaulttimeout(10)
try:
{statements}
except Exception as error:
    sys.exit(" ".join(f"{{type(error).__name__}}: {{error}}".split()))
"""
_PIP_OPTIONS = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--no-input")
_PIP_PATIENCE = ("--timeout", "10", "--retries", "1")

_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})

_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, ValueError, EOFError, OSError)
"""What a damaged zip can raise; OSError where an offset in it is beyond every file."""


class UnusableError(Exception):
    """A place lacks the data, or has them damaged; the message says why, in one line."""


@dataclass(frozen=True)
class Place(Generic[T]):
    """A place where data may be found.

    Args:
        name: as the user is shown it.
        read: gives the data, or raises `UnusableError`.
        seconds: how long it may take; None for the disk, which is read without a message.
    """

    name: str
    read: Callable[[], T]
    seconds: float | None = None


def first_usable(what: str, places: Sequence[Place[T]], info: Callable[[str], None], fix: str) -> T:
    """Try several places in order, and return the data of the first that has them.

    Args:
        what: name of the data, for messages.
        places: in this order.
        info: called with one line before a place that may take long.
        fix: what the user can do if no place has it.
    Raises:
        DownloadError: no place has it; lists each with its reason.
    """
    tried: list[str] = []
    for place in places:
        if place.seconds is not None:
            before = f"{textwrap.shorten(tried[-1], 150, placeholder=' ...')}; " if tried else ""
            info(f"{what}: {before}trying {place.name}, at most {place.seconds:g} s")
        try:
            return place.read()
        except UnusableError as error:
            tried.append(f"{place.name}: {error}")
    raise DownloadError(f"{what} could not be fetched. Tried: {'; '.join(tried)}.", fix)


@contextmanager
def downloaded(statements: str, seconds: float) -> Iterator[Path]:
    """A temporary folder with what a child has downloaded into it.

    Args:
        statements: Python; the folder is `sys.argv[1]`.
        seconds: when to end the child.
    Raises:
        UnusableError: the statements raised an error, or took too long.
    """
    with scratch_folder() as folder, _seen_from(folder):
        code = _DOWNLOADER.format(statements=textwrap.indent(statements.strip(), "    "))
        _run([sys.executable, "-c", code, str(folder)], seconds, folder)
        yield folder


@contextmanager
def downloaded_wheel(requirement: str, seconds: float) -> Iterator[Path]:
    """A wheel from the package index, in a temporary folder; it is neither installed nor imported.

    Args:
        requirement: as pip takes it, such as "name==1.0".
        seconds: when to end pip.
    Raises:
        UnusableError: pip failed, took too long or left no wheel.
    """
    with scratch_folder() as folder, _seen_from(folder):
        pip = [sys.executable, "-m", "pip", "download"]
        _run([*pip, *_PIP_OPTIONS, *_PIP_PATIENCE, requirement, "-d", str(folder)], seconds, folder)
        wheels = sorted(folder.glob("*.whl"))
        if not wheels:
            raise UnusableError("pip downloaded no wheel")
        yield wheels[0]


@contextmanager
def _seen_from(folder: Path) -> Iterator[None]:
    """Let an UnusableError of the body name files as they are seen from a folder that will be gone."""
    try:
        yield
    except UnusableError as error:
        raise UnusableError(str(error).replace(f"{folder}{os.sep}", "")) from None


def _run(command: list[str], seconds: float, folder: Path) -> None:
    # Run in the temporary folder, so that no file of the user's working directory can shadow a module.
    try:
        done = subprocess.run(
            command,
            cwd=str(folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnusableError(f"no result after {seconds:g} s") from None
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UnusableError(lines[-1].strip()[:300] if lines else f"exit code {done.returncode}")


def read_file(path: Path, limit: int) -> bytes:
    """Read a whole file.

    Raises:
        UnusableError: it has more than `limit` bytes.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnusableError(f"{path} is too large (more than {limit:,} bytes)")
    return content


@contextmanager
def zip_members(path: Path, limit: int) -> Iterator[Files]:
    """The files in a zip, as long as the body runs; nothing is unpacked onto the disk.

    Args:
        path: the zip.
        limit: a file of more bytes is refused before it is read, and unpacking stops there if its size was forged.
    Raises:
        UnusableError: it is no zip, or holds a link, a name twice or a name that leads out of it; or, when a file is
            read, that is too large, encrypted, packed in an unusual way or damaged.
    """
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except _ZIP_ERRORS as error:
            raise UnusableError(f"{path.name} cannot be read ({error})") from None
        members: dict[str, Callable[[], bytes]] = {}
        for info in archive.infolist():
            name = member_name(info.filename, path.name, link=stat.S_ISLNK(info.external_attr >> 16))
            if info.is_dir():
                continue
            if name in members:
                raise UnusableError(f"{path.name} holds {name} twice")
            members[name] = partial(_read_member, archive, info, limit, f"{path.name}/{name}")
        yield members


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int, name: str) -> bytes:
    if info.file_size > limit:
        raise UnusableError(f"{name} is too large ({info.file_size:,} bytes, at most {limit:,} are read)")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnusableError(f"{name} cannot be read (it is encrypted, or neither stored nor deflated)")
    try:
        with archive.open(info) as file:
            content = file.read(limit + 1)  # read() without a limit would unpack any size
    except _ZIP_ERRORS as error:
        raise UnusableError(f"{name} cannot be read ({error})") from None
    if len(content) != info.file_size:
        raise UnusableError(f"{name} is cut off ({len(content):,} of {info.file_size:,} bytes)")
    return content


def member_name(name: str, archive: str, *, link: bool) -> str:
    """The plain name of an archive's member: parts joined by "/", without "." among them.

    Args:
        name: as the archive has it.
        archive: its name, for the message.
        link: whether the member is a link.
    Raises:
        UnusableError: the member is a link, or its name leads out of the folder the archive would be unpacked in.
    """
    if link:
        raise UnusableError(f"{archive} holds a link, {name!r}, which is refused")
    path = PureWindowsPath(name)  # knows "/", "\\" and drives
    if path.anchor or ".." in path.parts:
        raise UnusableError(f"{archive} holds {name!r}, a name that leads out of it, which is refused")
    return path.as_posix()


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or created by an operating system."""
    return name.startswith(".") or name.lower() in _LITTER


def load_arrays(content: bytes) -> Any:
    """Load a pickle, perhaps of Python 2, that holds nothing but numpy arrays and plain containers.

    Raises:
        Exception: nearly any, where the pickle is damaged; `pickle.UnpicklingError`, where it holds anything else.
    """
    # latin1: strings of Python 2 hold the arrays' bytes.
    return _NumpyUnpickler(io.BytesIO(content), encoding="latin1").load()


class _NumpyUnpickler(pickle.Unpickler):
    """An unpickler for plain numpy arrays: any other name in the stream is refused before it is looked up."""

    _reconstruct = np.ndarray(0).__reduce__()[0]
    _admitted: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in self._admitted:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        return self._admitted[module, name]

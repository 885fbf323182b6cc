"""Archives of images, unpacked safely: no links, no paths outside the folder, no decompression bombs."""

import bz2
import errno
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NoReturn, cast

from denetdm_cli.data.importers.tree import refuse
from denetdm_cli.utils.errors import DataError, StorageError, UserError
from denetdm_cli.utils.files import scratch_folder
from denetdm_cli.utils.log import shown
from denetdm_cli.utils.progress import Reporter
from denetdm_cli.utils.text import gigabytes

_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_ENDINGS = (".zip", *_TAR_ENDINGS)
_MEMBER_LIMIT = 5_000_000
_TIMES_PACKED = 100
"""An archive may hold so many times its own size: images are packed hardly at all, tables of labels tenfold."""
_ALWAYS_ALLOWED = 10**9
"""Bytes an archive may hold whatever its own size."""
_HEADER_LIMIT = 1 << 24
_PACKED_TARS: dict[bytes, Callable[[Path], io.BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
"""How to read a packed tar, by its first bytes."""
_BLOCK = 4096
_CHUNK = 1 << 20
_UNSAFE = re.compile(r"^[/\\]|^[A-Za-z]:|\\|\0|(^|/)\.\.(/|$)")
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)
_CLASH = (FileExistsError, NotADirectoryError, IsADirectoryError)
_FIX_SPACE = "Set the environment variable TMPDIR to a folder with more space, or give the folder, unpacked."
_UNREADABLE = (RuntimeError, NotImplementedError, ValueError)


@dataclass(frozen=True)
class _Member:
    """A file or folder in an archive; `problem` is why it must not be unpacked."""

    name: str
    size: int
    is_folder: bool
    problem: str | None
    open: Callable[[], IO[bytes] | None]


@contextmanager
def unpacked(source: Path, reporter: Reporter) -> Iterator[Path]:
    """The folder that `source` is or holds: an archive is unpacked to a temporary folder, which is removed afterwards.

    The temporary folder lies where TMPDIR says. All members are looked at before the first is written. Errors of the
    body that name a file in that folder name the archive and its member instead: "set.zip: train/1.png".

    Args:
        source: a folder or a .csv file, which is yielded as it is, or a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz file.
        reporter: receives the number of files unpacked.
    Raises:
        DataError: the source does not exist, is of another kind, is damaged, holds a member that is encrypted, is
            no plain file or folder, or would lie outside the folder, or holds more than a hundred times its own size
            and than 1 GB.
        StorageError: the temporary folder has too little space.
    """
    name = source.name.lower()
    if source.is_dir() or (source.is_file() and name.endswith(".csv")):
        yield source
        return
    if not source.is_file() or not name.endswith(_ENDINGS):
        raise DataError(
            f"Source {source} {'is no archive known by its ending' if source.exists() else 'does not exist'}.",
            f"Give a folder, a .csv file or an archive that ends in {', '.join(_ENDINGS)}.",
        )
    limit = max(_ALWAYS_ALLOWED, _TIMES_PACKED * source.stat().st_size)
    members = partial(_zip_members if name.endswith(".zip") else _tar_members, source, limit)
    reporter.info(f"Looking into {source.name}")
    with _damage_named(source):
        count, needed = _check_members(source, members(), limit)
    _require_space(source, needed)
    with scratch_folder() as folder, _member_named(source, folder):
        with _damage_named(source), _full_disk_named(source, folder):
            written = 0
            for done, member in enumerate(members(), 1):
                written += _unpack(member, folder)
                if written > limit:
                    _refuse_bomb(source, limit)
                reporter.advance(f"unpacking {source.name}", done, count)
        yield folder


def _zip_members(source: Path, _: int) -> Iterator[_Member]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            problem = "is encrypted" if info.flag_bits & 1 else None
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                problem = "is a link or a device"
            yield _Member(info.filename, info.file_size, info.is_dir(), problem, partial(archive.open, info))


def _tar_members(source: Path, limit: int) -> Iterator[_Member]:
    with source.open("rb") as file:
        start = file.read(6)
    opener = next((opener for magic, opener in _PACKED_TARS.items() if start.startswith(magic)), None)
    with opener(source) if opener else source.open("rb") as file:
        stream = _TarStream(file, source, limit)
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as archive:
            for info in archive:
                problem = None if info.isfile() or info.isdir() else "is a link or a device"
                yield _Member(info.name, info.size, info.isdir(), problem, partial(archive.extractfile, info))
                archive.members = []  # type: ignore[attr-defined]  # or millions of them fill the memory
            # tarfile takes a damaged header in the middle for the end; after the true end there are zeros or nothing.
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("a header is damaged")
            while stream.read(_CHUNK):  # to the end, where packed ones hold their checksum
                pass


class _TarStream:
    """A tar as tarfile reads it, but no further than to a limit: a few packed bytes can hold endless ones."""

    def __init__(self, file: io.BufferedIOBase, source: Path, limit: int) -> None:
        self._file = file
        self._source = source
        self._limit = limit
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _HEADER_LIMIT:  # what tarfile reads in one call is a header; it may say any size
            raise tarfile.ReadError(f"a header says that it has {size:,} bytes")
        content = self._file.read(size)
        if self.tell() > self._limit:
            _refuse_bomb(self._source, self._limit)
        return content


def _check_members(source: Path, members: Iterable[_Member], limit: int) -> tuple[int, int]:
    """Refuse what must not be unpacked; otherwise the number of members and the bytes they take on a disk."""
    count = size = needed = 0
    problems = []
    for member in members:
        count += 1
        size += member.size
        if size > limit:
            _refuse_bomb(source, limit)
        needed += _BLOCK + -(-member.size // _BLOCK) * _BLOCK
        problem = "would lie outside the folder" if _UNSAFE.search(member.name) else member.problem
        if problem:
            problems.append(f"{shown(member.name)} {problem}")
        if count > _MEMBER_LIMIT:
            problems.append(f"it holds more than {_MEMBER_LIMIT:,} members")
            break
    if problems:
        refuse(
            f"Archive {source} is not unpacked",
            problems,
            "Unpack it by a means that you trust, and give the folder.",
        )
    if not count:
        raise DataError(f"Archive {source} is empty.", "Get it again, or give the folder with the images.")
    return count, needed


def _refuse_bomb(source: Path, limit: int) -> NoReturn:
    raise DataError(
        f"Archive {source} is not unpacked: it holds more than {gigabytes(limit)} in {source.stat().st_size:,} bytes; "
        f"at most {_TIMES_PACKED} times its own size, or {gigabytes(_ALWAYS_ALLOWED)}, are unpacked.",
        "Archives of images are not packed so tightly. If you trust it, unpack it and give the folder.",
    )


def _require_space(source: Path, needed: int) -> None:
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"Unpacking {source} takes {gigabytes(needed)}, but only {gigabytes(free)} are free in {folder}.",
            _FIX_SPACE,
        )


def _unpack(member: _Member, folder: Path) -> int:
    """Write one member; the number of its bytes."""
    path = folder / member.name
    if member.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise EOFError(f"{shown(member.name)} is in it twice")
    written = 0
    stream = member.open()
    if stream is None:
        raise EOFError(f"{shown(member.name)} has no content")
    with stream, path.open("wb") as file:
        while chunk := stream.read(_CHUNK):
            written += len(chunk)
            if written > member.size:
                break
            file.write(chunk)
    if written != member.size:
        raise EOFError(f"{shown(member.name)} does not have the {member.size:,} bytes that the archive says")
    return written


@contextmanager
def _full_disk_named(source: Path, folder: Path) -> Iterator[None]:
    """Turn the error of a disk that fills up while it is unpacked to into a StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(f"Unpacking {source}: {error.strerror} in {folder.parent}.", _FIX_SPACE) from error


@contextmanager
def _member_named(source: Path, folder: Path) -> Iterator[None]:
    """Let errors of the body name the archive and its member instead of the folder it is unpacked to."""

    def named(text: str) -> str:
        return text.replace(f"{folder}{os.sep}", f"{source}: ").replace(str(folder), str(source))

    try:
        yield
    except UserError as error:
        error.what, error.fix = named(error.what), named(error.fix)
        error.args = (error.what, error.fix)
        raise
    except OSError as error:
        if error.filename is not None:
            error.filename = named(str(error.filename))
        raise


@contextmanager
def _damage_named(source: Path) -> Iterator[None]:
    """Turn what the archive modules raise into a DataError; errors of the disk go through."""
    try:
        yield
    except (*_DAMAGE, *_CLASH, *_UNREADABLE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, _CLASH):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"Archive {source} is damaged or cannot be read: {reason}.", "Get it again, or give the folder it holds."
        ) from error

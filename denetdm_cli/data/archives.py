"""What a user hands over as a source of images: folders, and archives of them."""

import gzip
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
from typing import IO, NoReturn

from denetdm_cli.data.progress import Reporter
from denetdm_cli.errors import DataError, StorageError
from denetdm_cli.logs import shown

IMAGE_ENDINGS = frozenset(
    (
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    )
)
"""What the names of images end in, in lower case."""

_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_ENDINGS = (".zip", *_TAR_ENDINGS)
_MEMBER_LIMIT = 5_000_000
_BLOCK = 4096
_CHUNK = 1 << 20
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_UNSAFE = re.compile(r"^[/\\]|^[A-Za-z]:|\\|\0|(^|/)\.\.(/|$)")
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)
_CLASH = (FileExistsError, NotADirectoryError, IsADirectoryError)
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

    The temporary folder lies where TMPDIR says. All members are looked at before the first is written.

    Args:
        source: a folder or a .csv file, which is yielded as it is, or a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz file.
        reporter: told how many files are unpacked.
    Raises:
        DataError: there is no such source, it is of another kind, is damaged, or holds a member that is encrypted, is
            no plain file or folder, or would lie outside the folder.
        StorageError: the temporary folder has too little space.
    """
    name = source.name.lower()
    if source.is_dir() or (source.is_file() and name.endswith(".csv")):
        yield source
        return
    if not source.is_file() or not name.endswith(_ENDINGS):
        raise DataError(
            f"Source {source} {'is no archive known by its ending' if source.exists() else 'does not exist'}.",
            f"Give a folder or an archive that ends in {', '.join(_ENDINGS)}.",
        )
    members = _zip_members if name.endswith(".zip") else _tar_members
    reporter.say(f"Looking into {source.name}")
    with _damage_named(source):
        count, needed = _check_members(source, members(source))
    _require_space(source, needed)
    with tempfile.TemporaryDirectory(prefix="denetdm-", ignore_cleanup_errors=True) as folder:
        with _damage_named(source):
            for done, member in enumerate(members(source), 1):
                _unpack(member, Path(folder))
                reporter.advance(f"unpacking {source.name}", done, count)
        yield Path(folder)


def _zip_members(source: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            problem = "is encrypted" if info.flag_bits & 1 else None
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                problem = "is a link or a device"
            yield _Member(info.filename, info.file_size, info.is_dir(), problem, partial(archive.open, info))


def _tar_members(source: Path) -> Iterator[_Member]:
    with tarfile.open(source) as archive:
        for info in archive:
            problem = None if info.isfile() or info.isdir() else "is a link or a device"
            yield _Member(info.name, info.size, info.isdir(), problem, partial(archive.extractfile, info))
            archive.members = []  # type: ignore[attr-defined]  # or millions of them fill the memory
        # tarfile takes a damaged header in the middle for the end; after the true end there are zeros or nothing.
        if archive.fileobj is not None:
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("a header is damaged")
            while archive.fileobj.read(_CHUNK):  # to the end, where compressed ones hold their checksum
                pass


def _check_members(source: Path, members: Iterable[_Member]) -> tuple[int, int]:
    """Refuse what must not be unpacked; otherwise the number of members and the bytes they take on a disk."""
    count = needed = 0
    problems = []
    for member in members:
        count += 1
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


def _require_space(source: Path, needed: int) -> None:
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"Unpacking {source} takes {gigabytes(needed)}, but only {gigabytes(free)} are free in {folder}.",
            "Set the environment variable TMPDIR to a folder with more space, or give the folder, unpacked.",
        )


def _unpack(member: _Member, folder: Path) -> None:
    path = folder / member.name
    if member.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
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


def find_tree(root: Path, fits: Callable[[Path], bool], layout: str, prefer: str = "") -> Path:
    """The folder that has a layout: the root, or one that lies up to two levels below.

    Args:
        root: where to look.
        fits: whether a folder has the layout.
        layout: what is looked for, in words.
        prefer: the name, in lower case, of the folder to take where several fit on one level.
    Raises:
        DataError: no folder fits, or several do.
    """
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"Source {root} {state}; expected {layout}.", "Give the folder or the archive that holds it.")
    level = [root]
    for _ in range(3):
        found = [folder for folder in level if fits(folder)]
        named = [folder for folder in found if folder.name.lower() == prefer]
        if len(named) == 1 or len(found) == 1:
            return (named or found)[0]
        if found:
            refuse(
                f"Source {root} holds more than one {layout}",
                (str(path) for path in found),
                "Give the one you mean.",
            )
        level = [path for folder in level for path in entries(folder) if path.is_dir()]
    raise DataError(
        f"Source {root}: looked for {layout}, there and up to two folders below; found {found_in(root)}.",
        "Give the folder or the archive that holds it.",
    )


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name; hidden files and those that systems leave behind are not counted."""
    return sorted(path for path in folder.iterdir() if not _is_litter(path.name))


def found_in(folder: Path) -> str:
    """The first names in a folder, for messages."""
    return first_few((f"{path.name}/" if path.is_dir() else path.name) for path in entries(folder)) or "nothing"


def image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """All files below a folder, by path: those with the endings of images, and the others.

    Links are followed, each folder once.
    """
    images: list[Path] = []
    others: list[Path] = []
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_litter(name))
        for name in files:
            if not _is_litter(name):
                file = Path(path, name)
                (images if file.suffix.lower() in IMAGE_ENDINGS else others).append(file)
    return sorted(images, key=Path.as_posix), sorted(others, key=Path.as_posix)


def refuse(what: str, problems: Iterable[str], fix: str) -> NoReturn:
    """Raise a DataError that names the first of several problems."""
    raise DataError(f"{what}: {first_few(problems)}.", fix)


def first_few(names: Iterable[str], count: int = 5) -> str:
    """The first names in a list, and how many more there are."""
    listed = [shown(name) for name in names]
    more = f" and {len(listed) - count:,} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more


def gigabytes(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:,.2f} GB"


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER

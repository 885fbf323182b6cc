"""Files and folders that are either whole or not there."""

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from denetdm_cli.utils.temporary import PART, exchange, new_file, new_folder, recover, temporary

__all__ = [
    "PART", "atomic_file", "atomic_folder", "folder_lock", "is_held", "made_folder", "naming", "sha256", "write_text",
]  # fmt: skip

_CHUNK = 1 << 22
_SECONDS_BETWEEN_TRIES = (0.01, 0.04, 0.15)
"""A folder that is held is asked for again after these: it may be one that `is_held` looks at, for microseconds."""


def sha256(path: Path, stopped: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 of a file's bytes, as lower-case hexadecimal; of its beginning only, once `stopped` says so."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while (chunk := file.read(_CHUNK)) and not stopped():
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def folder_lock(folder: Path) -> Iterator[bool]:
    """Hold an existing folder for this process, and yield whether no other process held it.

    A process that dies lets go. Where the system or the file system has no such locks, every folder is free.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        free = _flock(handle, fcntl.LOCK_EX)
        for seconds in _SECONDS_BETWEEN_TRIES:
            if free:
                break
            time.sleep(seconds)
            free = _flock(handle, fcntl.LOCK_EX)
        yield free
    finally:
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Whether a process holds an existing folder with `folder_lock`; neither that process nor a later one is disturbed.

    Where the system or the file system has no such locks, or does not share them with the machine that the process is
    on, no folder is held.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    handle = os.open(folder, os.O_RDONLY)
    try:
        return not _flock(handle, fcntl.LOCK_SH)  # shared, so that two that look do not take each other for a run
    finally:
        os.close(handle)


def _flock(handle: int, kind: int) -> bool:
    """Take a lock, unless another process has one that excludes it."""
    import fcntl

    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there replaces `path` once it is on the disk.

    If the body raises, `path` is as it was before and nothing is left over. A link is followed; what is no regular
    file, such as a pipe or /dev/null, is written to as it is.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), temporary(path.parent, f".{path.name}", new_file) as new:
        yield new
        _flush(new)
        new.chmod(0o666 & ~_umask())
        new.replace(path)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to `path` when the body ends without an error.

    If the body or the renaming is stopped, `path` is as it was before and nothing is left over.

    Args:
        path: the folder to make.
        replace: put it in the place of an existing folder, which is removed only once the new one is whole.
    Raises:
        FileExistsError: `path` exists and `replace` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        recover(path)
        with temporary(path.parent, f".{path.name}", new_folder) as new:
            yield new
            new.chmod(0o777 & ~_umask())
            if not path.exists():
                new.replace(path)
            elif replace:
                exchange(new, path)
            else:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the body name `path`, where it names nothing (a failed write) or what is temporary."""
    try:
        yield
    except OSError as error:
        named = str(error.filename)
        if error.filename is None or named.endswith(PART) or named.startswith(str(path.with_name(f".{path.name}."))):
            error.filename = str(path)
        raise


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Have a folder, and those above it, for the body; what was made of them and is empty at the end is removed."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty, or was not made
            for path in missing:
                path.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

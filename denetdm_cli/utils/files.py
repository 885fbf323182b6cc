"""Files and folders that are written whole or not at all, temporary ones, and locks on folders."""

import errno
import glob
import hashlib
import os
import platform
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PART = ".part"
"""Ending of the names of temporary files and folders; only a killed process leaves one."""
OLD = ".old"
"""Ending of the name of a folder while a new one replaces it."""

_CHUNK = 1 << 22
_SECONDS_BETWEEN_TRIES = (0.01, 0.04, 0.15)
"""Waits of `folder_lock` before it tries again: `is_held` may have the folder for microseconds."""


def sha256(path: Path, stopped: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 of a file's bytes, as lower-case hexadecimal; of its beginning only, once `stopped` is true."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while (chunk := file.read(_CHUNK)) and not stopped():
            digest.update(chunk)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_file(path) as new:
        new.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; the file written there replaces `path` once it is on the disk.

    If the body raises, `path` is unchanged and no temporary file is left. A link is followed; what is no regular file,
    such as a pipe or /dev/null, is written to directly.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), temporary(path.parent, f".{path.name}", new_file) as new:
        yield new
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to `path` when the body ends without an error.

    If the body or the renaming is stopped, `path` is unchanged and no temporary folder is left.

    Args:
        path: the folder to make.
        replace: replace an existing folder, which is removed only once the new one is whole.
    Raises:
        FileExistsError: `path` exists and `replace` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        recover(path)
        with temporary(path.parent, f".{path.name}", new_folder) as new:
            yield new
            if not path.exists():
                new.replace(path)
            elif replace:
                _exchange(new, path)
            else:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the body name `path`, where it names no file (a failed write) or a temporary one."""
    try:
        yield
    except OSError as error:
        named = str(error.filename)
        if error.filename is None or named.endswith(PART) or named.startswith(str(path.with_name(f".{path.name}."))):
            error.filename = str(path)
        raise


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and those above it, for the body; the new ones that are empty at the end are removed."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # the first that is not empty, or was not made
            for path in missing:
                path.rmdir()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder in TMPDIR for this user alone, removed at the end."""
    with temporary(Path(tempfile.gettempdir()), "denetdm", _private_folder) as folder:
        yield folder


@contextmanager
def temporary(place: Path, name: str, create: Callable[[Path], object]) -> Iterator[Path]:
    """A new file or folder in `place`, locked by this process and removed at the end if it is still there.

    Files and folders of the same name that killed processes left are removed first: they are not locked. They stay
    where the file system has no locks, and so do those of other machines, whose locks may not be visible here.

    Args:
        place: an existing folder.
        name: start of the new name, before the name of this machine and random letters.
        create: makes the file or folder.
    """
    _remove_leftovers(place, name)
    while True:
        path = place / f"{_prefix(name)}{secrets.token_hex(4)}{PART}"
        try:
            create(path)
            with _held(path) as held:
                if held is not False:  # or another process took it for a leftover before it was locked
                    yield path
                    return
        finally:
            _remove(path)


def new_file(path: Path) -> None:
    """Make an empty file with the permissions that the process's umask leaves."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def new_folder(path: Path) -> None:
    """Make a folder with the permissions that the process's umask leaves."""
    path.mkdir()


def recover(path: Path) -> None:
    """Remove what killed processes left of a folder, and bring it back where one was killed while it replaced it."""
    _remove_leftovers(path.parent, f".{path.name}")
    for old in _leftovers(path.parent, f".{path.name}", OLD):
        with suppress(OSError), _held(old) as held:
            if held and not path.exists():
                old.replace(path)
            elif held:
                _remove(old)


@contextmanager
def folder_lock(folder: Path) -> Iterator[bool]:
    """Lock an existing folder for this process, and yield whether no other process had locked it.

    The lock is on the folder itself and not on a file in it (as the package filelock has it): nothing is written, it
    follows a renamed folder, and it can be looked at in a folder that is read-only. The system releases it when the
    process dies. Where the system or the file system has no such locks, every folder is free.
    """
    with _locked(folder, _SECONDS_BETWEEN_TRIES) as locked:
        yield locked is not False


def is_held(folder: Path) -> bool:
    """Whether a process has locked an existing folder with `folder_lock`; no process is disturbed.

    Where the system or the file system has no such locks, or does not share them with the machine that the process is
    on, no folder is held.
    """
    with _locked(folder, shared=True) as locked:  # shared, so that two that look do not take each other for a run
        return locked is False


def _private_folder(path: Path) -> None:
    path.mkdir(mode=0o700)


def _exchange(new: Path, path: Path) -> None:
    """Replace a folder by a temporary one, and remove it once that is done.

    If it is stopped in between, the old one returns; if it is killed, `recover` brings it back.
    """
    old = new.with_suffix(OLD)
    try:
        with _held(path):  # the lock follows the folder to its other name
            path.replace(old)
            new.replace(path)
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        _remove(old)


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_leftovers(place: Path, name: str) -> None:
    for leftover in _leftovers(place, name, PART):
        with suppress(OSError), _held(leftover) as held:  # another user's may not even be opened
            if held:
                _remove(leftover)


def _leftovers(place: Path, name: str, ending: str) -> list[Path]:
    return sorted(place.glob(f"{glob.escape(_prefix(name))}*{ending}"))


def _prefix(name: str) -> str:
    return f"{name}.{platform.node()}."


@contextmanager
def _held(path: Path) -> Iterator[bool | None]:
    """Lock a file or folder for this process, as `_locked`; False also where it is no longer there."""
    with ExitStack() as stack:
        try:
            locked = stack.enter_context(_locked(path))
        except FileNotFoundError:
            locked = False
        yield locked and path.exists()


@contextmanager
def _locked(path: Path, waits: Sequence[float] = (), *, shared: bool = False) -> Iterator[bool | None]:
    """Lock an existing file or folder for this process; the system releases it when the process dies.

    Args:
        path: what to lock.
        waits: seconds between further tries where another process holds it.
        shared: only against exclusive locks.
    Yields:
        True where it is locked, False where another process holds it, None where the system or file system has no
        locks.
    """
    if sys.platform == "win32":
        yield None
        return
    import fcntl

    def try_lock() -> bool | None:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return None
        return True

    handle = os.open(path, os.O_RDONLY)
    try:
        locked = try_lock()
        for seconds in waits:
            if locked is not False:
                break
            time.sleep(seconds)
            locked = try_lock()
        yield locked
    finally:
        os.close(handle)

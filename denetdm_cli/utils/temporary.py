"""Temporary files and folders: removed at the end, or by a later process where one was killed before."""

import glob
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"
"""What the names of temporary files and folders end in; only a killed process leaves one behind."""

OLD = ".old"
"""What the name of a folder ends in while a new one takes its place."""


@contextmanager
def temporary(place: Path, name: str, create: Callable[[Path], object]) -> Iterator[Path]:
    """A new file or folder in `place` that this process holds, removed at the end if it is still there.

    First those go that killed processes left under the same name: nobody holds them. Where the system or the file
    system has no locks that cannot be told, and they stay; so do those of other machines, whose locks may not be seen
    here.

    Args:
        place: an existing folder.
        name: what the new name begins with, before that of this machine and random letters.
        create: makes it, for this user alone.
    """
    _remove_leftovers(place, name)
    while True:
        path = place / f"{_start(name)}{secrets.token_hex(4)}{PART}"
        try:
            create(path)
            with _held(path) as ours:
                if ours is not False:  # or another process took it for left over before it was held
                    yield path
                    return
        finally:
            remove(path)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder where TMPDIR says, removed at the end."""
    with temporary(Path(tempfile.gettempdir()), "denetdm", new_folder) as folder:
        yield folder


def new_folder(path: Path) -> None:
    """Make a folder for this user alone."""
    path.mkdir(mode=0o700)


def new_file(path: Path) -> None:
    """Make an empty file for this user alone."""
    path.touch(mode=0o600, exist_ok=False)


def exchange(new: Path, path: Path) -> None:
    """Put a temporary folder in the place of another one, which is removed once that is done.

    If it is stopped in between, the other one comes back; if it is killed, `recover` brings it back.
    """
    old = new.with_suffix(OLD)
    try:
        with _held(path):  # under its name in between, too
            path.replace(old)
            new.replace(path)
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        remove(old)


def recover(path: Path) -> None:
    """Clear away what killed processes left of a folder, and bring it back where one was killed in `exchange`."""
    _remove_leftovers(path.parent, f".{path.name}")
    for old in _left(path.parent, f".{path.name}", OLD):
        with suppress(OSError), _held(old) as ours:
            if ours and not path.exists():
                old.replace(path)
            elif ours:
                remove(old)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_leftovers(place: Path, name: str) -> None:
    for left in _left(place, name, PART):
        with suppress(OSError), _held(left) as ours:  # another user's may not even be opened
            if ours:
                remove(left)


def _left(place: Path, name: str, ending: str) -> list[Path]:
    return sorted(place.glob(f"{glob.escape(_start(name))}*{ending}"))


def _start(name: str) -> str:
    return f"{name}.{platform.node()}."


@contextmanager
def _held(path: Path) -> Iterator[bool | None]:
    """Hold a file or folder for this process, which lets go of it even when it is killed.

    Yields:
        Whether it is held now and still there; None where the system or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        ours: bool | None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = path.exists()
        except BlockingIOError:
            ours = False
        except OSError:  # a file system without locks
            ours = None
        yield ours
    finally:
        os.close(handle)

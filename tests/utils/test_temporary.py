"""Temporary files and folders go: at the end, or when a later process finds what a killed one left."""

import fcntl
import os
import platform
import signal
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from cli_support import child

from denetdm_cli.utils import files as room
from denetdm_cli.utils.files import atomic_folder, new_file, new_folder, recover, scratch_folder, temporary

KILLED = """
import os, signal, sys
from pathlib import Path
from denetdm_cli.utils.files import atomic_file, atomic_folder, scratch_folder
def die(): os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


def killed(code: str, *words: object) -> None:
    """Run code in a process that kills itself with `die`."""
    done = child("-c", KILLED + code, *words, env=os.environ | {"TMPDIR": tempfile.gettempdir()})
    assert done.returncode == -signal.SIGKILL, done


class Stop(BaseException):
    """What is neither an error nor a KeyboardInterrupt."""


@pytest.mark.parametrize("create", [new_file, new_folder])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, Stop])
def test_it_goes_at_the_end(
    tmp_path: Path, create: Callable[[Path], object], error: type[BaseException] | None
) -> None:
    with pytest.raises(error) if error else nullcontext(), temporary(tmp_path, "x", create) as path:
        assert path.parent == tmp_path
        if path.is_dir():
            (path / "inside").write_text("half")
        if error is not None:
            raise error
    assert names(tmp_path) == []


def test_it_goes_when_it_is_stopped_while_it_is_made(tmp_path: Path) -> None:
    def stopped(path: Path) -> None:
        path.mkdir()
        raise Stop

    with pytest.raises(Stop), temporary(tmp_path, "x", stopped):
        pytest.fail("it was made")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["set", "[a]*b?"])
def test_what_a_killed_process_left_goes_but_not_what_is_in_use(tmp_path: Path, name: str) -> None:
    beside = tmp_path / f".{name}x.{platform.node()}.1.part"  # of another name
    beside.mkdir()
    for atomic in ("atomic_file", "atomic_folder"):
        killed(f"with {atomic}(Path(sys.argv[1])): die()", tmp_path / name)
        assert len(names(tmp_path)) == 2, "the next one clears away what is left, and leaves one of its own"
    with atomic_folder(tmp_path / name) as first:
        assert set(tmp_path.iterdir()) == {beside, first}
        recover(tmp_path / name)
        with temporary(tmp_path, f".{name}", new_file) as second:
            assert set(tmp_path.iterdir()) == {beside, first, second}
    assert set(tmp_path.iterdir()) == {beside, tmp_path / name}


def test_what_a_killed_process_left_where_archives_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "denetdm-runs").mkdir()
    (tmp_path / "denetdm.part").mkdir()
    killed("with scratch_folder() as folder: (folder / 'deep').mkdir(); (folder / 'deep/file').touch(); die()")
    (left,) = tmp_path.glob("denetdm.*.*.part")
    with scratch_folder() as folder:
        assert folder.stat().st_mode & 0o077 == 0, "TMPDIR is everybody's"
        assert names(tmp_path) == sorted(["denetdm-runs", "denetdm.part", folder.name])
    assert left != folder
    assert names(tmp_path) == ["denetdm-runs", "denetdm.part"], "only what bears the whole name is ours"


def test_what_another_machine_left_stays(tmp_path: Path) -> None:
    left = tmp_path / "x.elsewhere.0123.part"
    left.mkdir()
    with temporary(tmp_path, "x", new_folder):
        pass
    assert names(tmp_path) == [left.name], "whether its process lives cannot be seen from here"


def test_what_a_link_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / f"x.{platform.node()}.0123.part").symlink_to(tmp_path / "precious")
    with temporary(tmp_path, "x", new_folder):
        pass
    assert names(tmp_path) == ["precious"]
    assert names(tmp_path / "precious") == ["file"]


def test_without_locks_nothing_is_known_to_be_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / f".set.{platform.node()}.0123.part"
    left.mkdir()

    def no_locks(*_: object) -> None:
        raise OSError(77, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with atomic_folder(tmp_path / "set"):
        pass
    assert names(tmp_path) == [left.name, "set"]
    monkeypatch.undo()
    recover(tmp_path / "set")
    assert names(tmp_path) == ["set"]


def test_one_that_another_process_took_for_left_over_is_made_again(tmp_path: Path) -> None:
    made: list[Path] = []

    def taken(path: Path) -> None:
        path.mkdir()
        made.append(path)
        if len(made) == 1:
            path.rmdir()

    with temporary(tmp_path, "x", taken) as path:
        assert made[1:] == [path]
        assert path.is_dir()
    assert names(tmp_path) == []


def test_one_that_goes_just_before_it_is_held_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    flock = fcntl.flock

    def late(handle: int, kind: int) -> None:
        if len(made) == 1:
            made[0].rmdir()
        flock(handle, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with temporary(tmp_path, "x", lambda path: (path.mkdir(), made.append(path))) as path:
        assert made[1:] == [path]
        assert path.is_dir()


def test_one_that_another_process_is_about_to_remove_is_made_again(tmp_path: Path) -> None:
    made: list[Path] = []
    held = []

    def looked_at(path: Path) -> None:
        path.mkdir()
        made.append(path)
        if len(made) == 1:
            held.append(os.open(path, os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX)

    with temporary(tmp_path, "x", looked_at) as path:
        assert made[1:] == [path]
    os.close(held[0])
    assert names(tmp_path) == []


class TestExchange:
    KILLED_BETWEEN = """
replace = Path.replace
def dies(self, target):
    replace(self, target)
    if {when}: die()
Path.replace = dies
with atomic_folder(Path(sys.argv[1]), replace=True) as folder: (folder / 'new').touch()
"""

    def old(self, path: Path) -> Path:
        path.mkdir()
        (path / "old").touch()
        return path

    def test_killed_between_the_renames(self, tmp_path: Path) -> None:
        path = self.old(tmp_path / "set")
        killed(self.KILLED_BETWEEN.format(when="target.suffix == '.old'"), path)
        assert not path.exists(), "or the test shows nothing"
        recover(path)
        assert names(path) == ["old"]
        assert names(tmp_path) == ["set"]

    def test_killed_before_the_old_one_is_removed(self, tmp_path: Path) -> None:
        path = self.old(tmp_path / "set")
        killed(self.KILLED_BETWEEN.format(when="target.name == 'set'"), path)
        assert len(names(tmp_path)) == 2, "or the test shows nothing"
        recover(path)
        assert names(path) == ["new"]
        assert names(tmp_path) == ["set"]

    def test_another_process_leaves_the_old_one_alone_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = self.old(tmp_path / "set")
        replace, seen = Path.replace, []

        def looked_at(self: Path, target: Path) -> Path:
            result = replace(self, target)
            if target.suffix == room.OLD:
                recover(path)
                seen.append((path.exists(), target.exists()))
            return result

        monkeypatch.setattr(Path, "replace", looked_at)
        with atomic_folder(path, replace=True) as folder:
            (folder / "new").touch()
        assert seen == [(False, True)]
        assert names(path) == ["new"]
        assert names(tmp_path) == ["set"]

    def test_a_new_one_is_made_after_such_a_kill(self, tmp_path: Path) -> None:
        path = self.old(tmp_path / "set")
        killed(self.KILLED_BETWEEN.format(when="target.suffix == '.old'"), path)
        with atomic_folder(path, replace=True) as folder:
            assert names(path) == ["old"]
            (folder / "newer").touch()
        assert names(path) == ["newer"]
        assert names(tmp_path) == ["set"]

"""Files and folders are whole or not there, whatever stops the writing."""

import errno
import fcntl
import hashlib
import os
import stat
from pathlib import Path

import pytest

from denetdm_cli.utils import files
from denetdm_cli.utils.files import atomic_file, atomic_folder, folder_lock, is_held, made_folder, sha256, write_text


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


@pytest.mark.parametrize("size", [0, 1, (1 << 22) - 1, (1 << 22) + 1])
def test_sha256_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    content = bytes(i % 251 for i in range(997)) * (size // 997 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert sha256(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()


def test_sha256_is_stopped_between_chunks(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 << 22))
    answers = [False, True]
    assert sha256(tmp_path / "file", lambda: answers.pop(0)) == hashlib.sha256(bytes(1 << 22)).hexdigest()


class TestFile:
    def test_makes_the_folders_above_and_leaves_nothing_beside(self, tmp_path: Path) -> None:
        write_text(tmp_path / "a" / "b" / "file", "grün\n")
        assert (tmp_path / "a" / "b" / "file").read_bytes() == "grün\n".encode()
        assert names(tmp_path / "a" / "b") == ["file"]

    def test_is_not_seen_before_it_is_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        with atomic_file(path) as temporary:
            assert temporary.parent == tmp_path  # a rename over file systems would be a copy
            temporary.write_text("ne")
            assert path.read_text() == "old"
        assert path.read_text() == "ne"

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
    @pytest.mark.parametrize("existed", [True, False])
    def test_an_error_leaves_what_was_there(self, tmp_path: Path, error: type[BaseException], existed: bool) -> None:
        path = tmp_path / "file"
        if existed:
            path.write_text("old")
        with pytest.raises(error), atomic_file(path) as temporary:  # noqa: PT012
            temporary.write_text("half")
            raise error
        assert names(tmp_path) == (["file"] if existed else [])
        assert not existed or path.read_text() == "old"

    def test_a_full_disk_is_named_and_leaves_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file"
        path.write_text("old")

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space") as caught:
            write_text(path, "new")
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert path.read_text() == "old"
        assert names(tmp_path) == ["file"]

    def test_an_error_about_another_file_keeps_its_name(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "file"):
            (tmp_path / "source").read_text()
        assert caught.value.filename == str(tmp_path / "source")

    def test_an_error_about_what_is_temporary_names_what_it_was_to_be(self, tmp_path: Path) -> None:
        for part in ("missing/file", ""):
            with pytest.raises(OSError) as caught, atomic_folder(tmp_path / "folder") as temporary:  # noqa: PT011
                (temporary / part).read_text()
            assert caught.value.filename == str(tmp_path / "folder")
        with pytest.raises(OSError) as caught, atomic_file(tmp_path / "file") as temporary:  # noqa: PT011
            (temporary / "below").read_text()
        assert caught.value.filename == str(tmp_path / "file")

    def test_has_the_rights_that_the_umask_leaves(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def set_umask(_: int) -> int:
            raise AssertionError("another thread that makes a file meanwhile would give it all rights")

        before = os.umask(0o027)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "umask", set_umask)
                write_text(tmp_path / "file", "")
                with atomic_folder(tmp_path / "folder"):
                    pass
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
        assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


class TestFolder:
    def test_is_not_seen_before_it_is_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "above" / "folder"
        with atomic_folder(path) as temporary:
            (temporary / "file").write_text("new")
            assert not path.exists()
            assert temporary.parent == path.parent
        assert (path / "file").read_text() == "new"
        assert names(path.parent) == ["folder"]

    def test_an_existing_one_is_refused(self, tmp_path: Path) -> None:
        path = folder_with(tmp_path / "folder", "old")
        with pytest.raises(FileExistsError) as caught, atomic_folder(path) as temporary:
            (temporary / "file").write_text("new")
        assert caught.value.filename == str(path)
        assert (path / "file").read_text() == "old"
        assert names(tmp_path) == ["folder"]

    def test_replaces_all_of_an_existing_one(self, tmp_path: Path) -> None:
        path = folder_with(tmp_path / "folder", "old")
        with atomic_folder(path, replace=True) as temporary:
            (temporary / "other").write_text("new")
            assert (path / "file").read_text() == "old"
        assert names(path) == ["other"]
        assert names(tmp_path) == ["folder"]

    @pytest.mark.parametrize("replace", [True, False])
    def test_an_error_leaves_what_was_there(self, tmp_path: Path, replace: bool) -> None:
        path = tmp_path / "folder"
        if replace:
            folder_with(path, "old")
        with pytest.raises(KeyboardInterrupt), atomic_folder(path, replace=replace) as temporary:  # noqa: PT012
            (temporary / "file").write_text("half")
            raise KeyboardInterrupt
        assert names(tmp_path) == (["folder"] if replace else [])
        assert not replace or (path / "file").read_text() == "old"

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
    @pytest.mark.parametrize("moment", ["before the first", "after the first", "before the second"])
    def test_the_old_one_comes_back_when_the_exchange_is_stopped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, moment: str
    ) -> None:
        path = folder_with(tmp_path / "folder", "old")
        rename, calls = Path.replace, 0

        def stopped(self: Path, target: Path) -> Path:
            nonlocal calls
            calls += 1
            if (calls, moment) in ((1, "before the first"), (2, "before the second")):
                raise error
            result = rename(self, target)
            if (calls, moment) == (1, "after the first"):
                raise error
            return result

        monkeypatch.setattr(Path, "replace", stopped)
        with pytest.raises(type(error)), atomic_folder(path, replace=True) as temporary:
            (temporary / "file").write_text("new")
        assert (path / "file").read_text() == "old"
        assert names(tmp_path) == ["folder"]

    def test_the_new_one_stays_when_it_is_stopped_after_the_exchange(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = folder_with(tmp_path / "folder", "old")
        rename = Path.replace

        def stopped(self: Path, target: Path) -> Path:
            result = rename(self, target)
            if target == path:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt), atomic_folder(path, replace=True) as temporary:
            (temporary / "file").write_text("new")
        assert (path / "file").read_text() == "new"
        assert names(tmp_path) == ["folder"]


def test_a_pipe_is_written_to_and_a_link_followed(tmp_path: Path) -> None:
    pipe, link, real = tmp_path / "pipe", tmp_path / "link", tmp_path / "real"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()
    real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_to_look_whether_a_folder_is_held_changes_nothing(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with folder_lock(tmp_path) as free:
        assert free
        assert is_held(tmp_path)
        assert is_held(tmp_path)
        with folder_lock(tmp_path) as second:
            assert not second
    assert not is_held(tmp_path)


def test_a_process_that_looks_keeps_no_other_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert not is_held(tmp_path)
    ended: list[float] = []

    def look_ends(seconds: float) -> None:
        if not ended:
            os.close(looking)
        ended.append(seconds)

    monkeypatch.setattr(files.time, "sleep", look_ends)
    with folder_lock(tmp_path) as free:
        assert free
    assert len(ended) == 1


class TestMadeFolder:
    def test_goes_with_those_above_it_unless_something_is_in_it(self, tmp_path: Path) -> None:
        def fail(folder: Path) -> None:
            with made_folder(folder):
                assert folder.is_dir()
                (tmp_path / "a" / "file").write_text("kept")
                raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            fail(tmp_path / "a" / "b" / "c")
        assert names(tmp_path) == ["a"]
        assert names(tmp_path / "a") == ["file"]

    def test_stays_where_it_was_there_before(self, tmp_path: Path) -> None:
        with made_folder(tmp_path):
            pass
        assert tmp_path.is_dir()

import errno
import gzip
import io
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from denetdm_cli.data.importers import archives
from denetdm_cli.data.importers.archives import unpacked
from denetdm_cli.data.importers.tree import find_tree, image_files
from denetdm_cli.utils.errors import ConfigError, DataError, StorageError
from denetdm_cli.utils.log import shown

FILES = {"set/train/a b.png": b"1" * 5000, "set/labels.csv": b"x", "set/empty.txt": b""}


class Log:
    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []

    def info(self, line: str) -> None:
        pass

    def advance(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, which must be empty after each test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert list(folder.iterdir()) == []


def make_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes] = FILES, extra: tarfile.TarInfo | None = None) -> Path:
    mode = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}.get(path.suffix[1:], "w")
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if extra is not None:
            archive.addfile(extra)
    return path


def make(path: Path, files: dict[str, bytes] = FILES) -> Path:
    return (make_zip if path.suffix.lower() == ".zip" else make_tar)(path, files)


def refused(source: Path, error: type[Exception] = DataError) -> str:
    with pytest.raises(error) as caught, unpacked(source, Log()):
        pytest.fail("it was unpacked")
    return str(caught.value)


@pytest.mark.parametrize("ending", ["zip", "ZIP", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_archives_are_unpacked_and_removed(tmp_path: Path, temporary: Path, ending: str) -> None:
    log = Log()
    with unpacked(make(tmp_path / f"set.{ending}"), log) as folder:
        assert folder.parent == temporary
        assert folder.name.startswith("denetdm.")
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == FILES
    assert not folder.exists()
    assert log.steps[-1] == (f"unpacking set.{ending}", 3, 3)


def test_folders_and_tables_are_taken_as_they_are(tmp_path: Path, temporary: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n")
    for source in (tmp_path, table):
        with unpacked(source, Log()) as found:
            assert found == source
    assert table.exists()


def test_folder_members_are_made(tmp_path: Path, temporary: Path) -> None:
    folder = tarfile.TarInfo("./a/b")
    folder.type = tarfile.DIRTYPE
    with unpacked(make_tar(tmp_path / "a.tar", {"./a/x": b"1"}, folder), Log()) as root:
        assert (root / "a" / "b").is_dir()


class Stop(BaseException):
    """What is neither an error nor a KeyboardInterrupt."""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Stop])
def test_nothing_stays_after_an_error(tmp_path: Path, temporary: Path, error: type[BaseException]) -> None:
    source = make(tmp_path / "set.zip")
    with pytest.raises(error), unpacked(source, Log()):
        raise error

    class Stops(Log):
        def advance(self, what: str, done: int, total: int) -> None:
            raise Stop

    with pytest.raises(Stop), unpacked(source, Stops()):
        pytest.fail("it was unpacked")


@pytest.fixture
def nothing_written(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        pytest.fail("a folder was made")

    monkeypatch.setattr(archives, "scratch_folder", fail)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "C:/x", "a\\b", "\\x", ".."])
@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
def test_members_that_climb_out(tmp_path: Path, nothing_written: None, name: str, ending: str) -> None:
    message = refused(make(tmp_path / f"set.{ending}", {"ok": b"1", name: b"2"}))
    assert f"set.{ending}" in message
    assert "outside" in message
    assert shown(name) in message


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_tar(tmp_path: Path, nothing_written: None, kind: bytes) -> None:
    info = tarfile.TarInfo("odd")
    info.type, info.linkname = kind, "/etc/hostname"
    assert "odd is a link or a device" in refused(make_tar(tmp_path / "set.tar", FILES, info))


def test_links_and_encryption_in_zip(tmp_path: Path, nothing_written: None) -> None:
    link = zipfile.ZipInfo("odd")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/hostname")
    assert "odd is a link" in refused(tmp_path / "link.zip")
    source = make_zip(tmp_path / "secret.zip", {"locked": b"1"})
    content = bytearray(source.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    source.write_bytes(content)
    assert "locked is encrypted" in refused(source)


def test_too_many_and_too_large(tmp_path: Path, nothing_written: None, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "set.tar")
    monkeypatch.setattr(archives, "_MEMBER_LIMIT", 2)
    assert "more than 2 members" in refused(source)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    message = refused(source, StorageError)
    assert "TMPDIR" in message
    assert "0.00 GB" in message


def test_no_more_is_written_than_declared(tmp_path: Path) -> None:
    member = archives._Member("x", 3, False, None, lambda: io.BytesIO(b"12345"))
    with pytest.raises(EOFError, match="3 bytes"):
        archives._unpack(member, tmp_path)
    assert (tmp_path / "x").stat().st_size <= 3


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_bombs(tmp_path: Path, nothing_written: None, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED", 10**6)
    source = make(tmp_path / f"set.{ending}", {"a": bytes(900_000), "b": bytes(900_000)})
    if ending == "tar":  # which packs nothing
        monkeypatch.setattr(archives, "_TIMES_PACKED", 0)
    message = refused(source)
    assert f"set.{ending} is not unpacked: it holds more than 0.00 GB in {source.stat().st_size:,} bytes" in message
    assert "at most " in message
    assert "give the folder" in message


@pytest.mark.parametrize("ending", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_what_is_packed_as_tightly_as_is_allowed(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED", 0)
    with unpacked(make(tmp_path / f"set.{ending}", {"a": os.urandom(9000), "b": b"12" * 9000}), Log()) as folder:
        assert (folder / "b").read_bytes() == b"12" * 9000


def test_a_bomb_that_says_it_is_small(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that are written count, whatever was said when the members were looked at."""
    source = make_zip(tmp_path / "set.zip")
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED", 6000)
    monkeypatch.setattr(archives, "_TIMES_PACKED", 0)
    looked_at = []

    def two_faced(_: Path, limit: int) -> Iterator[archives._Member]:
        size = 5000 if looked_at else 1
        looked_at.append(limit)
        for name in "abc":
            yield archives._Member(name, size, False, None, lambda: io.BytesIO(bytes(size)))

    monkeypatch.setattr(archives, "_zip_members", two_faced)
    assert "holds more than" in refused(source)
    assert looked_at == [6000, 6000]


def test_an_endless_tail(tmp_path: Path, nothing_written: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the last member is read to its end, for the checksum, but only up to the limit."""
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED", 10**6)
    source = make_tar(tmp_path / "set.tar")
    (tmp_path / "set.tar.gz").write_bytes(gzip.compress(source.read_bytes() + bytes(3 << 20)))
    assert "holds more than" in refused(tmp_path / "set.tar.gz")


def test_a_header_that_would_fill_the_memory(tmp_path: Path, nothing_written: None) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 29
    with gzip.open(tmp_path / "set.tar.gz", "wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
    assert "damaged or cannot be read: a header says that it has 536,870,912 bytes" in refused(tmp_path / "set.tar.gz")


def test_a_disk_that_fills_up_meanwhile(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = make(tmp_path / "set.zip")
    monkeypatch.setattr(archives, "_unpack", full)
    message = refused(source, StorageError)
    assert f"Unpacking {source}: No space left on device in {temporary}." in message
    assert "TMPDIR" in message


def test_errors_name_the_member(tmp_path: Path, temporary: Path) -> None:
    source = make(tmp_path / "set.zip")
    with pytest.raises(ConfigError) as caught, unpacked(source, Log()) as folder:
        raise ConfigError(f"{folder / 'set' / 'labels.csv'}: line 3, and {folder} too.", f"Mend {folder / 'set'}.")
    assert caught.value.what == f"{source}: set/labels.csv: line 3, and {source} too."
    assert str(caught.value) == f"{caught.value.what}\nMend {source}: set."
    with pytest.raises(FileNotFoundError) as missing, unpacked(source, Log()) as folder:
        (folder / "set" / "none").read_text()
    assert missing.value.filename == f"{source}: set/none"


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def garbage(content: bytes) -> bytes:
    return b"x" * len(content)


def flipped(content: bytes) -> bytes:
    return content[:60] + bytes(255 - byte for byte in content[60:64]) + content[64:]


@pytest.mark.parametrize("damage", [cut, garbage, flipped])
@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_damaged_archives(tmp_path: Path, temporary: Path, ending: str, damage: Callable[[bytes], bytes]) -> None:
    source = make(tmp_path / f"set.{ending}", {"a": os.urandom(9000), "b": os.urandom(9000)})
    source.write_bytes(damage(source.read_bytes()))
    assert f"set.{ending} is damaged" in refused(source)


def test_tar_with_a_damaged_header_in_the_middle(tmp_path: Path, temporary: Path) -> None:
    source = make_tar(tmp_path / "set.tar", {"first": b"1" * 512, "second": b"2" * 512})
    content = bytearray(source.read_bytes())
    content[1024 + 10] ^= 0xFF
    source.write_bytes(content)
    with tarfile.open(source) as archive:
        assert archive.getnames() == ["first"], "tarfile says nothing, or the test shows nothing"
    assert "damaged" in refused(source)


def test_members_in_one_anothers_place(tmp_path: Path, temporary: Path) -> None:
    assert "damaged" in refused(make_zip(tmp_path / "set.zip", {"a": b"1", "a/b": b"2"}))


def test_other_sources(tmp_path: Path) -> None:
    (tmp_path / "set.rar").write_bytes(b"Rar!")
    assert ".zip" in refused(tmp_path / "set.rar")
    assert "does not exist" in refused(tmp_path / "none.zip")
    assert "is empty" in refused(make(tmp_path / "empty.zip", {}))
    assert "is empty" in refused(make(tmp_path / "empty.tar", {}))


# Trees


def has_mark(folder: Path) -> bool:
    return (folder / "mark").is_file()


def marked(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mark").touch()
    return folder


@pytest.mark.parametrize("below", [".", "a", "a/b"])
def test_tree_is_found_up_to_two_levels_below(tmp_path: Path, below: str) -> None:
    tree = marked(tmp_path / below)
    marked(tmp_path / "__MACOSX")
    marked(tmp_path / ".hidden")
    assert find_tree(tmp_path, has_mark, "a mark") == tree


def test_tree_that_is_not_there(tmp_path: Path) -> None:
    marked(tmp_path / "a" / "b" / "c")
    (tmp_path / "file.txt").touch()
    with pytest.raises(DataError, match=r"looked for a mark, .* found a/, file.txt\."):
        find_tree(tmp_path, has_mark, "a mark")
    with pytest.raises(DataError, match="does not exist"):
        find_tree(tmp_path / "none", has_mark, "a mark")
    with pytest.raises(DataError, match="is a file; expected a mark"):
        find_tree(tmp_path / "file.txt", has_mark, "a mark")


def test_tree_by_name_where_several_fit(tmp_path: Path) -> None:
    marked(tmp_path / "one")
    two = marked(tmp_path / "Two")
    assert find_tree(tmp_path, has_mark, "a mark", prefer="two") == two
    with pytest.raises(DataError, match="more than one a mark"):
        find_tree(tmp_path, has_mark, "a mark")


def test_image_files(tmp_path: Path) -> None:
    names = ["b.PNG", "a/z.jpeg", "a.jpg", "notes.txt", "Thumbs.db", ".DS_Store", "._b.png", ".git/x.png", "é 日.webp"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "linked.gif").symlink_to(tmp_path / "b.PNG")
    images, others = image_files(tmp_path)
    expected = ["a.jpg", "a/z.jpeg", "b.PNG", "linked.gif", "é 日.webp"]
    assert [path.relative_to(tmp_path).as_posix() for path in images] == expected
    assert [path.name for path in others] == ["notes.txt"]


def test_shown() -> None:
    assert shown("é 日 a/b") == "é 日 a/b"
    assert shown("a\nb\x1b[31m") == r"a\nb\x1b[31m"
    assert shown(os.fsdecode(b"caf\xe9")).isprintable()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_a_member_that_is_in_it_twice(tmp_path: Path, temporary: Path, ending: str) -> None:
    source = tmp_path / f"set.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(source, "w") as packed:
            for content in (b"1", b"2"):
                packed.writestr("a.png", content)
    else:
        with tarfile.open(source, "w") as tar:
            for content in (b"1", b"2"):
                member = tarfile.TarInfo("a.png")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    assert "a.png is in it twice" in refused(source)
    assert list(temporary.iterdir()) == []

import contextlib
import io
import os
import re
import signal
import struct
import tempfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from denetdm_cli.data.raw.sources import (
    Place,
    UnusableError,
    downloaded,
    first_usable,
    member_name,
    read_file,
    zip_members,
)
from denetdm_cli.utils.errors import DownloadError


def fails(reason: str) -> Callable[[], int]:
    def read() -> int:
        raise UnusableError(reason)

    return read


def test_the_first_place_that_has_it_is_taken_and_no_later_one_is_asked() -> None:
    said: list[str] = []
    places = [
        Place("disk", fails("not there")),
        Place("mirror", fails("long ago " * 40), 60.0),
        Place("index", lambda: 7, 1.5),
        Place("never", lambda: pytest.fail("asked"), 1.0),
    ]
    assert first_usable("It", places, said.append, "fix") == 7
    assert said[0] == "It: disk: not there; trying mirror, at most 60 s"
    assert said[1].startswith("It: mirror: long ago long ago")
    assert said[1].endswith(" ...; trying index, at most 1.5 s")
    assert len(said) == 2
    assert len(said[1]) < 200


def test_when_no_place_has_it_each_is_named_with_its_reason() -> None:
    with pytest.raises(DownloadError) as error:
        first_usable("It", [Place("a", fails("1")), Place("b", fails("2"), 3.0)], lambda line: None, "Do that.")
    assert error.value.what == "It could not be fetched. Tried: a: 1; b: 2."
    assert error.value.fix == "Do that."


def test_a_mistake_in_a_place_is_no_reason_to_go_on() -> None:
    with pytest.raises(ZeroDivisionError):
        first_usable("It", [Place("a", lambda: 1 // 0), Place("b", lambda: 1)], lambda line: None, "")


def test_downloaded_runs_statements_in_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "colorsys.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    with downloaded("import colorsys, os\nif True:\n    open('here', 'w').write(os.getcwd())", 30) as folder:
        assert Path((folder / "here").read_text()).resolve() == folder.resolve()
    assert not folder.exists()


def test_a_child_is_ended_when_the_program_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch, sign = tmp_path / "scratch", tmp_path / "sign"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def stop() -> None:
        until = time.monotonic() + 30
        while not sign.is_file() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stopper = threading.Thread(target=stop)
    stopper.start()
    statements = f"import os, pathlib, time\npathlib.Path('half').touch()\npathlib.Path({str(sign)!r}).touch()"
    try:
        with pytest.raises(KeyboardInterrupt), downloaded(f"{statements}\ntime.sleep(60)", 40):
            pytest.fail("it was downloaded")
    finally:
        signal.signal(signal.SIGINT, before)
        stopper.join()
    assert sign.is_file()
    assert list(scratch.iterdir()) == []


def test_files_are_named_as_seen_from_a_folder_that_is_gone() -> None:
    with pytest.raises(UnusableError) as error, downloaded("pass", 30) as folder:
        raise UnusableError(f"{folder / 'raw' / 'images.gz'} is cut off")
    assert str(error.value) == f"{Path('raw', 'images.gz')} is cut off"


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        ("raise OSError('no\\nroute   {to} host')", "OSError: no route {to} host"),
        ("import os; os._exit(3)", "exit code 3"),
        ("print('only this'); os = 1; sys.exit(1)", "only this"),
        ("import time; time.sleep(60)", "no result after 0.5 s"),
    ],
)
def test_why_a_child_failed_is_said_in_one_line(statements: str, reason: str) -> None:
    with (
        pytest.raises(UnusableError, match=f"^{re.escape(reason)}$"),
        downloaded(statements, 0.5 if "sleep" in statements else 30),
    ):
        pytest.fail("nothing was downloaded")


def test_read_file_stops_at_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(UnusableError, match="file is too large"):
        read_file(tmp_path / "file", 4)


# Archives


def make_zip(
    path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]], packing: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def read_all(path: Path, limit: int = 1000) -> dict[str, bytes]:
    with zip_members(path, limit) as members:
        return {name: read() for name, read in members.items()}


def test_zip_members(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", [("b/", b""), ("./b//c.txt", b"1"), ("d\\e", b"22"), ("b/..d", b"")])
    assert read_all(path) == {"b/c.txt": b"1", "d/e": b"22", "b/..d": b""}
    assert sorted(tmp_path.iterdir()) == [path], "nothing is unpacked onto the disk"


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "a/..", "/x", "//host/x", "\\x", "..\\x", "a\\..\\x", "C:/x", "C:x", "c:\\x"],
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "a.zip", [("fine", b""), (name, b"")])
    with pytest.raises(UnusableError, match="leads out of it") as error:
        read_all(path)
    assert repr(name) in str(error.value)
    with pytest.raises(UnusableError, match="leads out of it"):
        member_name(name, "a.tar", link=False)


def test_links_and_twins_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with pytest.raises(UnusableError, match="holds a link, 'link'"):
        read_all(make_zip(tmp_path / "a.zip", [(link, b"/etc/passwd")]))
    with pytest.raises(UnusableError, match="holds x twice"):
        read_all(make_zip(tmp_path / "b.zip", [("x", b"1"), ("./x", b"2")]))


def test_a_large_member_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", [("large", bytes(1001)), ("small", bytes(1000))])
    with zip_members(path, 1000) as members:
        assert len(members["small"]()) == 1000
        tracemalloc.start()
        with pytest.raises(UnusableError, match=r"a\.zip/large is too large \(1,001 bytes"):
            members["large"]()
        tracemalloc.stop()


def forge_sizes(path: Path, size: int) -> Path:
    """Let the zip with one member claim that it unpacks to `size` bytes."""
    content = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(magic) + offset, size)
    path.write_bytes(content)
    return path


def test_a_forged_size_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = forge_sizes(make_zip(tmp_path / "a.zip", [("bomb", bytes(1 << 27))]), 500)
    tracemalloc.start()
    try:
        with pytest.raises(UnusableError, match="bomb cannot be read"):
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def encrypted(content: bytes) -> bytes:
    changed = bytearray(content)
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        changed[changed.index(magic) + offset] |= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("packing", "change", "words"),
    [
        (zipfile.ZIP_STORED, lambda content: b"<html>", "not a zip file"),
        (zipfile.ZIP_STORED, lambda content: b"", "not a zip file"),
        (zipfile.ZIP_STORED, lambda content: content[: len(content) // 2], "not a zip file"),
        (zipfile.ZIP_STORED, lambda content: content.replace(b"abcabc", b"abcabd", 1), "a.zip/x cannot be read .*CRC"),
        (zipfile.ZIP_DEFLATED, lambda content: content[:32] + b"\xff" + content[33:], "a.zip/x cannot be read"),
        (zipfile.ZIP_STORED, encrypted, "a.zip/x cannot be read .*encrypted"),
        (zipfile.ZIP_LZMA, lambda content: content, "a.zip/x cannot be read .*neither stored nor deflated"),
    ],
)
def test_a_damaged_zip(tmp_path: Path, packing: int, change: Callable[[bytes], bytes], words: str) -> None:
    path = make_zip(tmp_path / "a.zip", [("x", b"abc" * 100)], packing)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UnusableError, match=words):
        read_all(path)


def test_no_byte_of_a_zip_can_be_changed_so_that_it_raises_something_else(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/cat/1.png", b"abc" * 30)
    path = tmp_path / "a.zip"
    for at in range(len(stream.getvalue())):
        for flip in (0x01, 0x80, 0xFF):
            content = bytearray(stream.getvalue())
            content[at] ^= flip
            path.write_bytes(content)
            with contextlib.suppress(UnusableError):
                assert list(read_all(path).values()) in ([b"abc" * 30], []), at

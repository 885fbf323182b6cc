"""Archives and images that cannot be imported: each is refused, and nothing half-written stays."""

import gzip
import io
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_sources import MAKE, is_refused, zipped
from cli_support import call, good
from own_images import class_folders, paint
from PIL import Image

from denetdm_cli.data.store import open_dataset


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where archives are unpacked to."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def tarred(file: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    """The last member is of a kind."""
    with tarfile.open(file, "w:gz") as archive:
        for number, (name, content) in enumerate(members.items(), 1):
            info = tarfile.TarInfo(name)
            if number == len(members) and kind != tarfile.REGTYPE:
                info.type, info.linkname = kind, "/etc/passwd"
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


@pytest.fixture
def members(tmp_path: Path) -> dict[str, bytes]:
    """Sound class folders, to which a test adds what is not sound."""
    folder = class_folders(tmp_path / "sound", {"": 4})
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


class TestArchives:
    @pytest.mark.parametrize("name", ["../../evil.png", "/tmp/evil.png", "cat/../../evil.png", "C:\\evil.png"])
    @pytest.mark.parametrize("make", [zipped, tarred])
    def test_members_that_climb_out(
        self, tmp_path: Path, members: dict[str, bytes], make: Callable[..., Path], name: str
    ) -> None:
        source = make(tmp_path / ("images.zip" if make is zipped else "images.tar.gz"), members | {name: b"evil"})
        is_refused(tmp_path, source, source, "would lie outside the folder", "evil.png", "Unpack it by a means")
        assert not list(tmp_path.parent.rglob("evil.png"))

    def test_links(self, tmp_path: Path, members: dict[str, bytes]) -> None:
        def link(info: zipfile.ZipInfo) -> None:
            info.external_attr = (stat.S_IFLNK | 0o777) << 16

        added = members | {"cat/evil.png": b"/etc/passwd"}
        is_refused(tmp_path, zipped(tmp_path / "a.zip", added, link), "cat/evil.png is a link or a device")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            is_refused(tmp_path, tarred(tmp_path / "a.tar.gz", added, kind), "cat/evil.png is a link or a device")

    def test_a_bomb(self, tmp_path: Path, members: dict[str, bytes]) -> None:
        def bomb(info: zipfile.ZipInfo) -> None:
            info.file_size = 1 << 50

        source = zipped(tmp_path / "bomb.zip", members | {"cat/bomb.png": b"0" * 1000}, bomb)
        limit = "holds more than 1.00 GB in "
        is_refused(tmp_path, source, source, limit, "at most 100 times its own size, or 1.00 GB, are unpacked")

    def test_an_archive_larger_than_the_disk(
        self, tmp_path: Path, members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = zipped(tmp_path / "images.zip", members)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
        is_refused(tmp_path, source, source, "are free in", "TMPDIR", code=7)

    def test_an_archive_that_holds_more_than_it_says(self, tmp_path: Path, members: dict[str, bytes]) -> None:
        def lie(info: zipfile.ZipInfo) -> None:
            info.file_size = 10

        source = zipped(tmp_path / "bomb.zip", members | {"cat/bomb.png": b"0" * 100_000}, lie)
        is_refused(tmp_path, source, source, "is damaged or cannot be read")

    @pytest.mark.parametrize("keep", [0, 10, 0.5, 0.8])
    @pytest.mark.parametrize("make", [zipped, tarred])
    def test_cut_short(self, tmp_path: Path, members: dict[str, bytes], make: Callable[..., Path], keep: float) -> None:
        source = make(tmp_path / ("images.zip" if make is zipped else "images.tar.gz"), members)
        content = source.read_bytes()
        source.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
        is_refused(tmp_path, source, source, "Get it again")

    @pytest.mark.parametrize("make", [zipped, tarred])
    def test_a_broken_image_goes_by_the_archive_and_its_name_in_it(
        self, tmp_path: Path, members: dict[str, bytes], make: Callable[..., Path]
    ) -> None:
        content = {f"set/{name}": content for name, content in members.items()} | {"set/cat/3.png": b"broken"}
        source = make(tmp_path / ("images.zip" if make is zipped else "images.tar.gz"), content)
        is_refused(tmp_path, source, f"{source}: set: 1 of 8", f"{source}: set/cat/3.png: not an image of a")
        assert str(tmp_path / "tmp") not in call(*MAKE, "--source", source).err

    def test_a_changed_byte_that_only_the_checksum_tells(self, tmp_path: Path) -> None:
        """BMP has no checksum of its own, so gzip's is all there is."""
        for path in class_folders(tmp_path / "sound", {"train": 4, "test": 2}).rglob("*.png"):
            with Image.open(path) as image:
                image.save(path.with_suffix(".bmp"))
            path.unlink()
        stored = io.BytesIO()
        with tarfile.open(fileobj=stored, mode="w") as archive:
            archive.add(tmp_path / "sound", "sound")
        content = bytearray(gzip.compress(stored.getvalue(), compresslevel=0))
        content[content.find(b"BM") + 300] ^= 0xFF
        (tmp_path / "images.tar.gz").write_bytes(content)
        is_refused(tmp_path, "images.tar.gz", "images.tar.gz", "damaged")

    @pytest.mark.parametrize(("name", "word"), [("images.rar", "no archive known"), ("images", "no archive known")])
    def test_other_files(self, tmp_path: Path, name: str, word: str) -> None:
        (tmp_path / name).write_bytes(b"Rar!")
        is_refused(tmp_path, name, name, word, ".zip")


def png_of(width: int, height: int) -> bytes:
    """A few bytes that say they are a large picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


BROKEN = {
    "cut short": (lambda content: content[: len(content) // 2], "truncated"),
    "empty": (lambda content: b"", "not an image"),
    "text": (lambda content: b"<html>404</html>", "not an image"),
    "too large to decode": (lambda content: png_of(20_000, 20_000), "pixels"),
    "far too large to decode": (lambda content: png_of(1 << 30, 1 << 30), "pixels"),
    "postscript": (lambda content: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
}  # fmt: skip


class TestBrokenImages:
    @pytest.mark.parametrize("kind", BROKEN)
    def test_one_of_few_is_refused_and_one_of_many_is_left_out(self, tmp_path: Path, kind: str) -> None:
        damage, word = BROKEN[kind]
        source = class_folders(tmp_path / "few", {"train": 5, "test": 2})
        broken = source / "train" / "dog" / "3.png"
        broken.write_bytes(damage(broken.read_bytes()))
        is_refused(tmp_path, source, "1 of 14 images cannot be read", "train/dog/3.png: ", word, "Replace these images")

        many = class_folders(tmp_path / "many", {"train": 55, "test": 3})
        (many / "train" / "dog" / "3.png").write_bytes(broken.read_bytes())
        outcome = good(*MAKE, "--source", many)
        assert "1 of 116 images cannot be read and are left out:" in outcome.err
        assert "  train/dog/3.png: " in outcome.err
        dataset = open_dataset(tmp_path / "data" / "mine")
        assert len(dataset.splits["train"].target) == 109
        assert dataset.splits["train"].target.sum() == 54, "the label of the image that is left out goes with it"
        assert dataset.manifest is not None
        assert dataset.manifest.recipe["images_left_out"] == 1

    def test_all_of_a_class(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "images", {"train": 150, "test": 50})
        source_test = source / "test" / "fox" / "0.png"
        paint(source / "train" / "fox" / "0.png", 2, 0, 0)
        source_test.parent.mkdir()
        source_test.write_bytes(b"broken")
        is_refused(tmp_path, source, "no image can be read of some classes in split test: fox")

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denetdm_cli.data.raw import frost
from denetdm_cli.data.raw.frost import load_textures
from denetdm_cli.utils.errors import DataError, DownloadError

NAMES = ["frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"]
WHEEL = "imagecorruptions-1.1.2-py3-none-any.whl"


@pytest.fixture
def textures(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Five small textures, which become the canonical ones; those of .png have an alpha channel, as the real ones."""
    contents = {}
    for number, name in enumerate(NAMES):
        random = np.random.RandomState(number)
        pixels = random.randint(0, 256, (4 + number, 9, 4 if name.endswith("png") else 3)).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG" if name.endswith("png") else "JPEG")
        contents[name] = stream.getvalue()
    digests = tuple((name, hashlib.sha256(content).hexdigest()) for name, content in contents.items())
    monkeypatch.setattr(frost, "TEXTURES", digests)
    return contents


class Pip:
    """Stands in for pip: it fails, or leaves the wheel it was given."""

    def __init__(self) -> None:
        self.wheel: bytes | None = None
        self.calls = 0

    def run(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "imagecorruptions==1.1.2"} <= set(command)
        assert options["cwd"] == command[-1]
        if self.wheel is None:
            return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no such package\n")
        (Path(command[-1]) / WHEEL).write_bytes(self.wheel)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture(autouse=True)
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip.run)
    return pip


def put(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def wheel(contents: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("imagecorruptions/__init__.py", "raise SystemExit('never imported')")
        for name, content in {**contents, "frost6.jpg": b"never read"}.items():
            archive.writestr(f"imagecorruptions/frost/{name}", content)
    return stream.getvalue()


def check(found: tuple[np.ndarray, ...], contents: dict[str, bytes]) -> None:
    assert len(found) == len(NAMES)
    for texture, name in zip(found, NAMES, strict=True):
        expected = np.asarray(Image.open(io.BytesIO(contents[name])))[..., :3]
        assert texture.dtype == np.uint8
        np.testing.assert_array_equal(texture, expected, err_msg=name)


def kept(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "frost").iterdir()} if (root / "frost").exists() else {}


def shout(line: str) -> None:
    pytest.fail(f"nothing should be said, but: {line}")


def test_the_digests_are_of_the_published_files() -> None:
    assert [name for name, _ in frost.TEXTURES] == NAMES
    assert [digest[:16] for _, digest in frost.TEXTURES] == [
        "ff9f907860bd7a83",
        "fe211a89b336999c",
        "2d0d50b4a9bb213f",
        "3f8b91ca1a9fa716",
        "5fc6a19df4a429ba",
    ]


@pytest.mark.parametrize("form", ["loose", "folder", "wheel"])
def test_a_local_copy_is_read_and_kept(tmp_path: Path, textures: dict[str, bytes], pip: Pip, form: str) -> None:
    place, root = tmp_path / "given", tmp_path / "root"
    if form == "wheel":
        place.write_bytes(wheel(textures))
    else:
        put(place / "frost" if form == "folder" else place, {**textures, "frost6.jpg": b"not read", "more": b""})
    check(load_textures(root, place, shout), textures)
    assert kept(root) == textures
    check(load_textures(root, None, shout), textures)
    assert pip.calls == 0


def test_the_wheel_is_fetched_once(tmp_path: Path, textures: dict[str, bytes], pip: Pip) -> None:
    pip.wheel = wheel(textures)
    said: list[str] = []
    check(load_textures(tmp_path, None, said.append), textures)
    assert kept(tmp_path) == textures
    assert said == [
        "The frost textures: trying the package index (pip download imagecorruptions==1.1.2), at most 120 s"
    ]
    check(load_textures(tmp_path, None, shout), textures)
    assert pip.calls == 1
    assert "imagecorruptions" not in sys.modules


@pytest.mark.parametrize("damage", ["cut off", "missing"])
def test_a_damaged_cache_is_mended(tmp_path: Path, textures: dict[str, bytes], pip: Pip, damage: str) -> None:
    put(tmp_path / "frost", textures)
    file = tmp_path / "frost" / "frost4.jpg"
    file.unlink() if damage == "missing" else file.write_bytes(textures["frost4.jpg"][:-1])
    with pytest.raises(DownloadError) as error:
        load_textures(tmp_path, None, lambda line: None)
    for words in ("frost4.jpg", "earlier download", "no such package"):
        assert words in error.value.what
    for words in ("--frost", str(tmp_path / "frost"), "imagecorruptions==1.1.2", *NAMES):
        assert words in error.value.fix
    pip.wheel = wheel(textures)
    check(load_textures(tmp_path, None, lambda line: None), textures)
    assert kept(tmp_path) == textures


@pytest.mark.parametrize("name", NAMES)
def test_other_bytes_are_refused_and_not_kept(tmp_path: Path, textures: dict[str, bytes], pip: Pip, name: str) -> None:
    wrong = {**textures, name: textures[name] + b"\0"}
    found, expected = hashlib.sha256(wrong[name]).hexdigest(), hashlib.sha256(textures[name]).hexdigest()
    with pytest.raises(DataError) as error:
        load_textures(tmp_path / "root", put(tmp_path / "given", wrong), shout)
    pip.wheel = wheel(wrong)
    with pytest.raises(DownloadError) as download_error:
        load_textures(tmp_path / "root", None, lambda line: None)
    for what in (error.value.what, download_error.value.what):
        assert f"{name} is damaged or another file: SHA-256 {found}, expected {expected}" in what
    assert "--frost" in error.value.fix
    assert kept(tmp_path / "root") == {}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["folder", "wheel"])
def test_a_missing_texture_is_named(tmp_path: Path, textures: dict[str, bytes], form: str, name: str) -> None:
    rest = {other: content for other, content in textures.items() if other != name}
    place = put(tmp_path / "given", rest) if form == "folder" else tmp_path / "given.whl"
    if form == "wheel":
        place.write_bytes(wheel(rest))
    put(tmp_path / "root" / "frost", textures)
    with pytest.raises(DataError, match=f"has no {name}") as error:
        load_textures(tmp_path / "root", place, shout)
    assert not any(other in error.value.what for other in rest)


@pytest.mark.parametrize("content", [None, b"<html>"])
def test_a_place_that_is_none(tmp_path: Path, textures: dict[str, bytes], content: bytes | None) -> None:
    place = tmp_path / "given"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read" if content else "no such file") as error:
        load_textures(tmp_path, place, shout)
    assert str(place) in error.value.what
    assert "frost1.png" in error.value.fix


def test_a_huge_file_is_not_read_whole(tmp_path: Path, textures: dict[str, bytes]) -> None:
    put(tmp_path / "given", textures)
    with (tmp_path / "given" / "frost2.png").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"frost2\.png is too large"):
        load_textures(tmp_path, tmp_path / "given", shout)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from denetdm_cli.data.importers import decode as importing
from denetdm_cli.data.importers.decode import UnreadableError, read_image

RGB = np.random.RandomState(0).randint(0, 256, (30, 41, 3)).astype(np.uint8)
GREY = np.arange(0, 65536, 53, dtype=np.uint16)[: 30 * 41].reshape(30, 41)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_rgb_is_taken_as_it_is(tmp_path: Path) -> None:
    for ending in ("png", "bmp", "tif", "ppm"):
        np.testing.assert_array_equal(read_image(saved(tmp_path / f"a.{ending}", Image.fromarray(RGB))), RGB)


def test_jpeg_is_decoded_at_full_size(tmp_path: Path) -> None:
    large = Image.fromarray(RGB).resize((800, 640))
    path = saved(tmp_path / "a.jpg", large)
    with Image.open(path) as image:
        full = np.asarray(image.convert("RGB"))
        expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read_image(path), full)
    np.testing.assert_array_equal(read_image(path, 32), expected)
    with Image.open(path) as image:
        image.draft("RGB", (32, 32))
        draft = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert (draft != expected).any(), "or the test shows nothing"


@pytest.mark.parametrize(("width", "height"), [(41, 30), (30, 41), (33, 33), (16, 40), (7, 9), (224, 100)])
@pytest.mark.parametrize("size", [16, 25])
def test_resizing_is_that_of_torchvision(tmp_path: Path, width: int, height: int, size: int) -> None:
    image = Image.fromarray(np.random.RandomState(1).randint(0, 256, (height, width, 3)).astype(np.uint8))
    path = saved(tmp_path / "a.png", image)
    stretch = transforms.Resize((size, size))
    crop = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    np.testing.assert_array_equal(read_image(path, size, "stretch"), np.asarray(stretch(image)))
    np.testing.assert_array_equal(read_image(path, size, "crop"), np.asarray(crop(image)))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_keeps_its_high_byte(tmp_path: Path, ending: str, dtype: str) -> None:
    image = Image.fromarray(GREY.astype(dtype))
    path = saved(tmp_path / f"a.{ending}", image)
    expected = np.repeat((GREY // 256).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(path), expected)
    assert read_image(path).max() > 200


def test_32_bit_pixels(tmp_path: Path) -> None:
    as_16 = saved(tmp_path / "a.tif", Image.fromarray(GREY.astype(np.int32)))
    np.testing.assert_array_equal(read_image(as_16)[..., 0], GREY // 256)
    for values in (np.full((3, 4), 1 << 20, np.int32), np.full((3, 4), -1, np.int32), np.ones((3, 4), np.float32)):
        with pytest.raises(UnreadableError, match="no known range"):
            read_image(saved(tmp_path / "b.tif", Image.fromarray(values)))


def test_grey_bits_and_palettes(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "grey.png", Image.fromarray(grey))), expected)
    bits = Image.fromarray(grey > 128)
    assert bits.mode == "1"
    np.testing.assert_array_equal(read_image(saved(tmp_path / "bits.png", bits)), np.where(expected > 128, 255, 0))
    palette = Image.fromarray(RGB).quantize(16)
    path = saved(tmp_path / "palette.png", palette)
    np.testing.assert_array_equal(read_image(path), np.asarray(palette.convert("RGB")))


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.linspace(0, 255, 30 * 41).astype(np.uint8).reshape(30, 41)
    expected = RGB * (alpha / 255.0)[..., None] + 255 * (1 - alpha / 255.0)[..., None]
    rgba = read_image(saved(tmp_path / "rgba.png", Image.fromarray(np.dstack([RGB, alpha]))))
    assert np.abs(rgba - expected).max() <= 1
    la = read_image(saved(tmp_path / "la.png", Image.fromarray(np.dstack([RGB[..., 0], alpha]), "LA")))
    assert np.abs(la[..., 0] - expected[..., 0]).max() <= 1
    palette = Image.fromarray((RGB[..., 0] // 64).astype(np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    for transparency in (2, bytes([255, 255, 0, 255])):
        found = read_image(saved(tmp_path / "p.png", palette, transparency=transparency))
        np.testing.assert_array_equal(found[RGB[..., 0] // 64 == 2], 255)
        np.testing.assert_array_equal(found[RGB[..., 0] // 64 == 1], np.broadcast_to([40, 50, 60], (350, 3)))


def test_cmyk(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("CMYK")
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.tif", image)), RGB)
    jpeg = saved(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=100)
    assert np.abs(read_image(jpeg).astype(int) - [255, 0, 0]).max() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_exif_orientation(tmp_path: Path, orientation: int, ending: str) -> None:
    turned: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(RGB), exif=exif, **options)
    np.testing.assert_array_equal(read_image(path), turned[orientation](RGB))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_reason_to_leave_an_image_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09broken")
    np.testing.assert_array_equal(read_image(path), RGB)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path), np.tile(np.uint8([255, 0, 0]), (6, 8, 1)))


@pytest.mark.parametrize(
    "make", ["truncated.jpg", "truncated.png", "truncated.gif", "text.png", "empty.jpg", "none.png"]
)
def test_damaged_images(tmp_path: Path, make: str) -> None:
    path = tmp_path / make
    if make.startswith("truncated"):
        content = saved(path, Image.fromarray(RGB)).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif make != "none.png":
        path.write_bytes(b"" if make == "empty.jpg" else b"no image")
    with pytest.raises(UnreadableError) as error:
        read_image(path)
    assert str(error.value)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    monkeypatch.setattr(importing, "_MAX_PIXELS", 1000)
    for limit in (1000, 100):  # Pillow warns beyond its limit, and refuses beyond twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnreadableError, match="more than 1,000 pixels"):
            read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    long = saved(tmp_path / "long.png", Image.new("RGB", (500, 1)))
    with pytest.raises(UnreadableError, match="too far from square"):
        read_image(long, 16, "crop")


def test_postscript_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableError, match="not an image of a known format"):
        read_image(tmp_path / "a.png")

"""Image files decoded as 8-bit RGB, and made square."""

import contextlib
import functools
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Fit = Literal["stretch", "crop"]

_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_MAX_PIXELS = 89_478_485  # Pillow's own limit, beyond which it warns of a decompression bomb


class UnreadableError(Exception):
    """An image that cannot be decoded, and why."""


def read_image(path: Path, size: int | None = None, fit: Fit = "stretch") -> NDArray[np.uint8]:
    """Decode an image as 8-bit RGB, upright as its EXIF orientation says, and make it square.

    Of 16-bit grey the high byte is kept, as Pillow does with 16-bit colours; what is transparent is laid over white; of
    an animation the first frame is taken; colour profiles are not applied.

    Args:
        path: a file in one of the raster formats that Pillow reads, up to its limit of 89 million pixels.
        size: height and width of the result; None keeps what the image has.
        fit: "stretch" changes the proportions; "crop" brings the shorter side to `size` and takes the middle. Either
            way as torchvision's Resize and CenterCrop do with Pillow images: bilinear, with antialiasing.
    Returns:
        (H, W, 3) uint8.
    Raises:
        UnreadableError: says why.
    """
    try:
        with Image.open(path, formats=raster_formats()) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} are more than {_MAX_PIXELS:,} pixels")
            image.load()
            with contextlib.suppress(Exception):  # damaged EXIF data hold no orientation
                ImageOps.exif_transpose(image, in_place=True)
            return np.array(_squared(_as_rgb(image), size, fit))
    except Exception as error:  # a damaged file can raise nearly anything
        raise UnreadableError(_reason(error)) from error


@functools.cache
def raster_formats() -> list[str]:
    """Raster formats only: others, such as EPS, would run other programs."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("pixels that are fractions have no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("32-bit pixels have no known range")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert("RGB")


def _squared(image: Image.Image, size: int | None, fit: Fit) -> Image.Image:
    if size is None:
        return image
    width = height = size
    if fit == "crop":
        shorter = min(image.size)
        width, height = (int(size * side / shorter) for side in image.size)
        if width * height > _MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} are too far from square to crop")
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size)) if fit == "crop" else image


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format, or its beginning is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {_MAX_PIXELS:,} pixels"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__

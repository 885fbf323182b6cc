"""The twenty corruptions of Corrupted CIFAR-10, on batches of images."""

import functools
import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from denetdm_cli.data.synthetic import weather
from denetdm_cli.data.synthetic.weather import (
    SIDE,
    Bytes,
    Streams,
    gaussian,
    lerp,
    motion_blur,
    to_bytes,
    zoom_positions,
)

TYPE_0 = (
    "Snow",
    "Frost",
    "Fog",
    "Brightness",
    "Contrast",
    "Spatter",
    "Elastic",
    "JPEG",
    "Pixelate",
    "Saturate",
)
"""The bias values of Corrupted CIFAR-10, type 0, in order (LfF, NeurIPS 2020)."""

TYPE_1 = (
    "Gaussian Noise",
    "Shot Noise",
    "Impulse Noise",
    "Speckle Noise",
    "Gaussian Blur",
    "Defocus Blur",
    "Glass Blur",
    "Motion Blur",
    "Zoom Blur",
    "Original",
)
"""The bias values of Corrupted CIFAR-10, type 1, in order (LfF, NeurIPS 2020)."""

CHUNK = 256
"""Images in a block: few enough to stay in the processor's cache."""

_LEVELS = 5
_PURPOSES = 2


def corrupt(
    images: Bytes,
    name: str,
    level: int,
    *,
    seed: tuple[int, ...],
    textures: Sequence[Bytes] | None = None,
    chunk: int = CHUNK,
) -> Bytes:
    """Corrupt images; the bytes depend on the images, the name, the level and the seed, and on nothing else.

    The first n of many images come out as the n alone would.

    Args:
        images: (N, 32, 32, 3) uint8, RGB.
        name: of `TYPE_0` or `TYPE_1`.
        level: 1 to 5; the papers' severity s is level s + 1.
        seed: whole numbers from 0, entropy of the random streams.
        textures: (H, W, 3) uint8, RGB; the five frost textures, needed by "Frost" alone.
        chunk: images in a block; decides time and memory only.
    Returns:
        (N, 32, 32, 3) uint8, a new array.
    Raises:
        ValueError: an unknown name, a level out of range, images of another kind, or no frost textures.
    Source: Hendrycks & Dietterich (CIFAR-10-C); its use as a bias is LfF's (NeurIPS 2020).
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 3):
        raise ValueError(f"images are {images.dtype} of shape {images.shape}, not uint8 of shape (N, 32, 32, 3)")
    if name not in _CORRUPTIONS:
        raise ValueError(f"there is no corruption {name!r}")
    if level not in range(1, _LEVELS + 1):
        raise ValueError(f"level {level} is not one of 1 to {_LEVELS}")
    function, constants = _CORRUPTIONS[name]
    arguments = constants[level - 1]
    if name == "Frost":
        arguments = (*arguments, weather.shrink(textures or ()))
    streams = [_stream(seed, name, purpose) for purpose in range(_PURPOSES)]
    corrupted = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        corrupted[part] = function(np.ascontiguousarray(images[part]), streams, *arguments)
    return corrupted


def _stream(seed: tuple[int, ...], name: str, purpose: int) -> np.random.RandomState:
    # RandomState, because numpy promises that its stream never changes; Generator's may.
    entropy = [*seed, zlib.crc32(name.encode()), purpose]
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(entropy)))


def _original(images: Bytes, _: Streams) -> Bytes:
    return images


def _gaussian_noise(images: Bytes, streams: Streams, std: float) -> Bytes:
    return to_bytes(images + 255 * std * streams[0].standard_normal(images.shape))


def _shot_noise(images: Bytes, streams: Streams, photons: int) -> Bytes:
    """Light that comes in grains; fewer photons, more noise."""
    return to_bytes(streams[0].poisson(images / 255 * photons) * 255 / photons)


def _impulse_noise(images: Bytes, streams: Streams, share: float) -> Bytes:
    """Salt and pepper, every value on its own."""
    draws = streams[0].random_sample(images.shape)
    noisy: Bytes = images.copy()
    noisy[draws < share] = 255
    noisy[draws < share / 2] = 0
    return noisy


def _speckle_noise(images: Bytes, streams: Streams, std: float) -> Bytes:
    return to_bytes(images + images * (std * streams[0].standard_normal(images.shape)))


def _gaussian_blur(images: Bytes, _: Streams, sigma: float) -> Bytes:
    return to_bytes(255 * gaussian(images / 255, sigma))


def _defocus_blur(images: Bytes, _: Streams, radius: float, sigma: float) -> Bytes:
    """Average over a disk with a softened rim."""
    offsets = np.arange(-2, 3)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    kernel = ndimage.gaussian_filter(disk / disk.sum(), sigma, mode="constant", radius=1)
    return to_bytes(255 * ndimage.correlate(images / 255, kernel[None, :, :, None], mode="mirror"))


def _glass_blur(images: Bytes, streams: Streams, sigma: float, rounds: int) -> Bytes:
    """Blur, let pixels take the place of a neighbour, and blur again."""
    pixels = to_bytes(255 * gaussian(images / 255, sigma)).reshape(-1, 3)
    moved = (len(images), rounds, SIDE - 2, SIDE - 2)
    # From itself, its left, its upper or its upper left neighbour.
    steps = np.array([0, 1, SIDE, SIDE + 1])
    choices = np.frombuffer(streams[0].bytes(int(np.prod(moved))), np.uint8).reshape(moved) & 3
    for turn in range(rounds):
        origin = np.arange(len(pixels)).reshape(images.shape[:3])
        origin[:, 2:, 2:] -= steps[choices[:, turn]]
        pixels = pixels.take(origin, axis=0).reshape(-1, 3)
    return to_bytes(255 * gaussian(pixels.reshape(images.shape) / 255, sigma))


def _motion_blur(images: Bytes, streams: Streams, radius: int, sigma: float) -> Bytes:
    return motion_blur(images, radius, sigma, streams[0].uniform(-45, 45, len(images)))


def _zoom_blur(images: Bytes, _: Streams, end: float) -> Bytes:
    """Average the image with its magnifications up to `end`."""
    columns = images.reshape(-1, SIDE * SIDE, 3).transpose(1, 0, 2).reshape(SIDE * SIDE, -1)
    # Every sum is a whole number below 2**24: exact in float32, in whatever order they are added.
    sums: NDArray[np.float32] = _zoom_matrix(end) @ columns.astype(np.float32)
    blurred: Bytes = (sums / 65536).astype(np.uint8).reshape(SIDE * SIDE, -1, 3).transpose(1, 0, 2)
    return blurred.reshape(images.shape)


@functools.cache
def _zoom_matrix(end: float) -> NDArray[np.float32]:
    """The zoom blur of a flattened image as a (1024, 1024) float32 matrix of whole numbers, 65536 in every row."""
    # How many factors there are, and the size the last zoom rounds to, hang on the rounding errors of arange.
    sides = np.stack([lerp(np.eye(SIDE), zoom_positions(factor), 0) for factor in np.arange(1, end, 0.01)])
    total = np.einsum("fij,fkl->ikjl", sides, sides).reshape(SIDE * SIDE, -1) + np.eye(SIDE * SIDE)
    weights: NDArray[np.float32] = np.rint(total * (65536 / (len(sides) + 1))).astype(np.float32)
    weights[np.diag_indices(SIDE * SIDE)] += 65536 - weights.sum(axis=1)
    return weights


def _brightness(images: Bytes, _: Streams, shift: float) -> Bytes:
    """Raise the value of HSV."""
    value = images.max(axis=3, keepdims=True).astype(np.float32)
    brighter = np.minimum(value + 255 * shift, 255).astype(np.float32)
    # Hue and saturation stay when all three are scaled alike; black is the darkest grey.
    black = value == 0
    return to_bytes((images + black) * brighter / (value + black))


def _saturate(images: Bytes, _: Streams, factor: float, shift: float) -> Bytes:
    """Scale and raise the saturation of HSV; grey has the hue of red."""
    value = images.max(axis=3, keepdims=True).astype(np.float32)
    distance = value - images
    largest = distance.max(axis=3, keepdims=True)
    grey = largest == 0
    distance += grey * np.array([0, 1, 1], np.float32)
    chroma = np.minimum(factor * largest + shift * value, value)
    return to_bytes(value - distance * chroma / (largest + grey))


def _contrast(images: Bytes, _: Streams, factor: float) -> Bytes:
    means = images.mean(axis=(1, 2), keepdims=True)
    return to_bytes((images - means) * factor + means)


def _elastic(images: Bytes, streams: Streams, strength: float, sigma: float, reach: float) -> Bytes:
    """Move three points by up to `reach` pixels, the image with them, then every pixel by a smooth random field."""
    affine, fields = streams
    rows, columns = _affine(affine.uniform(-reach, reach, (len(images), 3, 2)))
    # Beyond the border lies the mirrored image, first without and then with a copy of the border itself.
    warped = _sample(images.astype(np.float32), _fold(rows, 0.0), _fold(columns, 0.0))
    draws = fields.uniform(-1, 1, (len(images), 2, SIDE, SIDE)).reshape(-1, SIDE, SIDE)
    shifts = strength * gaussian(draws, sigma, mode="reflect", truncate=3).reshape(-1, 2, SIDE, SIDE)
    grid = np.arange(SIDE)
    rows, columns = grid[:, None] + shifts[:, 1], grid + shifts[:, 0]
    return to_bytes(_sample(warped, _fold(rows, 0.5), _fold(columns, 0.5)))


def _affine(moves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the pixels come from when (26, 26), (26, 6) and (6, 6) move: (N, 3, 2) x, y to two (N, 32, 32) y, x."""
    points = (moves + np.array([(26, 26), (26, 6), (6, 6)])).transpose(1, 2, 0)[..., None, None]
    down, right = points[0] - points[1], points[1] - points[2]
    grid = np.arange(SIDE)
    x, y = grid - points[2, 0], grid[:, None] - points[2, 1]
    # Cramer's rule: how many times `down` and `right` lie between the third point and the pixel.
    area = right[0] * down[1] - right[1] * down[0]
    rows = 6 + 20 * (right[0] * y - right[1] * x) / area
    columns = 6 + 20 * (x * down[1] - y * down[0]) / area
    return rows, columns


def _fold(positions: NDArray[np.float64], border: float) -> NDArray[np.float32]:
    """Bring positions back to 0..31 by mirrors that stand `border` beyond the outermost pixels."""
    far = SIDE - 1 + border
    folded = far - np.abs(far - (np.abs(positions + border) - border))
    return np.clip(folded, 0, SIDE - 1).astype(np.float32)


def _sample(
    images: NDArray[np.float32], rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Read (N, 32, 32, 3) float32 images at (N, 32, 32) positions in 0..31, with bilinear weights."""
    top = np.minimum(rows.astype(np.int64), SIDE - 2)
    left = np.minimum(columns.astype(np.int64), SIDE - 2)
    below, right = (rows - top)[..., None].astype(np.float32), (columns - left)[..., None].astype(np.float32)
    pixels = images.reshape(-1, 3)
    corner = SIDE * SIDE * np.arange(len(images))[:, None, None] + SIDE * top + left
    upper = pixels.take(corner, 0) * (1 - right) + pixels.take(corner + 1, 0) * right
    lower = pixels.take(corner + SIDE, 0) * (1 - right) + pixels.take(corner + SIDE + 1, 0) * right
    between: NDArray[np.float32] = upper * (1 - below) + lower * below
    return between


def _jpeg(images: Bytes, _: Streams, quality: int) -> Bytes:
    decoded = np.empty_like(images)
    for image, out in zip(images, decoded, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        out[:] = Image.open(buffer, formats=["JPEG"])
    return decoded


def _pixelate(images: Bytes, _: Streams, factor: float) -> Bytes:
    """Shrink with a box filter and blow up again: every coarse pixel is the mean of one or two."""
    size = int(SIDE * factor)
    coarse = (np.arange(SIDE) + 0.5) * size // SIDE
    first = np.ceil(coarse * SIDE / size - 0.5).astype(np.int64)
    last = np.ceil((coarse + 1) * SIDE / size - 1.5).astype(np.int64)
    for axis in (2, 1):
        images = ((images.take(first, axis).astype(np.uint16) + images.take(last, axis) + 1) // 2).astype(np.uint8)
    return images


_CORRUPTIONS: dict[str, tuple[Callable[..., Bytes], Sequence[tuple[Any, ...]]]] = {
    "Snow": (
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "Frost": (weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "Fog": (weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "Brightness": (_brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "Contrast": (_contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "Spatter": (
        weather.spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
    ),
    "Elastic": (
        _elastic,
        ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    ),
    "JPEG": (_jpeg, ((80,), (65,), (58,), (50,), (40,))),
    "Pixelate": (_pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "Saturate": (_saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
    "Gaussian Noise": (_gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.1,))),
    "Shot Noise": (_shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "Impulse Noise": (_impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "Speckle Noise": (_speckle_noise, ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,))),
    "Gaussian Blur": (_gaussian_blur, ((0.4,), (0.6,), (0.7,), (0.8,), (1,))),
    "Defocus Blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "Glass Blur": (_glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "Motion Blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "Zoom Blur": (_zoom_blur, ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))),
    "Original": (_original, ((),) * _LEVELS),
}

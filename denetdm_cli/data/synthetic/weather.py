"""Snow, frost, fog and spatter on batches of 32x32 images, and the filters they share with other corruptions."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

Streams: TypeAlias = Sequence[np.random.RandomState]
"""The random streams of a corruption, one a purpose; every draw is made in image order."""

Bytes: TypeAlias = NDArray[np.uint8]

SIDE = 32
"""Height and width of every image."""

_MUD = np.array([63.0, 42.0, 20.0], np.float32)
_WATER = np.array([175.0, 238.0, 238.0], np.float32)
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_FIX = 1 << 16


def to_bytes(levels: NDArray[np.floating[Any]]) -> Bytes:
    """Clip levels to 0..255, in place, and truncate them to uint8, as the protocol does (Hendrycks & Dietterich)."""
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)


def gaussian(
    images: NDArray[Any], sigma: float, *, mode: Literal["nearest", "reflect"] = "nearest", truncate: float = 4.0
) -> NDArray[Any]:
    """Blur the spatial axes with a Gaussian, as scikit-image does.

    Args:
        images: (N, 32, 32) or (N, 32, 32, C) floating point.
        sigma: in pixels; 0 leaves the images as they are.
        mode: what lies beyond the border, in SciPy's words.
        truncate: where the kernel ends, in sigmas.
    Returns:
        The shape and dtype of `images`.
    Source: the helpers of Hendrycks & Dietterich (CIFAR-10-C).
    """
    return ndimage.gaussian_filter(images, (0, sigma, sigma, 0)[: images.ndim], mode=mode, truncate=truncate)


def zoom_positions(factor: float) -> NDArray[np.float64]:
    """Where in the original the 32 pixels of a side come from when its centre is magnified.

    Args:
        factor: of magnification, at least 1.
    Returns:
        (32,) float64 in 0..31.
    Source: clipped_zoom of Hendrycks & Dietterich (CIFAR-10-C) on scipy.ndimage.zoom, whose end points stay in place.
    """
    crop = int(np.ceil(SIDE / factor))
    size = round(crop * factor)
    positions = (np.arange(SIDE, dtype=np.float64) + (size - SIDE) // 2) * ((crop - 1) / (size - 1))
    return np.minimum(positions, crop - 1) + (SIDE - crop) // 2


def lerp(values: NDArray[np.float64], positions: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Interpolate linearly along an axis of length 32.

    Args:
        values: float64 of any shape with 32 values along `axis`.
        positions: (P,) float64 in 0..31.
        axis: along which to interpolate.
    Returns:
        float64, P values along `axis`.
    """
    before = np.minimum(positions.astype(np.int64), SIDE - 2)
    shape = np.ones(values.ndim, np.int64)
    shape[axis] = len(positions)
    share = (positions - before).reshape(shape)
    blended: NDArray[np.float64] = values.take(before, axis) * (1 - share) + values.take(before + 1, axis) * share
    return blended


def motion_blur(images: Bytes, radius: int, sigma: float, degrees: NDArray[np.float64]) -> Bytes:
    """Smear every image to one side along an angle of its own.

    Args:
        images: (N, 32, 32, C) uint8.
        radius: half the number of pixels after the first that are averaged.
        sigma: of the one-sided Gaussian weights.
        degrees: (N,) float64.
    Returns:
        (N, 32, 32, C) uint8.
    Source: MotionBlurImage of ImageMagick at 16 bits, which Hendrycks & Dietterich use.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    steps = steps[weights > 1e-6 * weights.sum()]
    weights = 257 * weights[steps] / weights.sum()
    reach = len(steps)
    directions = np.radians(degrees)[:, None]
    right = np.ceil(steps * np.cos(directions) - 0.5).astype(np.int64) + reach
    down = np.ceil(steps * np.sin(directions) - 0.5).astype(np.int64) + reach
    count, _, _, channels = images.shape
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    width = SIDE * channels
    windows = sliding_window_view(padded.reshape(count, SIDE + 2 * reach, -1), (SIDE, width), axis=(1, 2))
    # Rows of a window lie together, so that copying a window an image is nearly as fast as reading it.
    total = np.full((count, SIDE, width), 0.5, np.float32)
    for step, weight in zip(steps, weights.astype(np.float32), strict=True):
        total += weight * windows[np.arange(count), down[:, step], right[:, step] * channels]
    return (total.astype(np.int32) // 257).astype(np.uint8).reshape(images.shape)


def snow(
    images: Bytes,
    streams: Streams,
    mean: float,
    std: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    mix: float,
) -> Bytes:
    """Whiten the images and let smeared flakes fall on them.

    Args:
        images: (N, 32, 32, 3) uint8.
        streams: flakes, angle.
        mean: of the noise the flakes are made of.
        std: of the same noise.
        zoom: magnification of the flakes.
        threshold: noise below it becomes 0.
        radius: of the motion blur.
        sigma: of the motion blur.
        mix: share of the image that is not whitened.
    Returns:
        (N, 32, 32, 3) uint8.
    Source: Hendrycks & Dietterich (CIFAR-10-C).
    """
    noise = mean + std * streams[0].standard_normal(images.shape[:3])
    flakes = lerp(lerp(noise, zoom_positions(zoom), 1), zoom_positions(zoom), 2)
    flakes[flakes < threshold] = 0
    degrees = streams[1].uniform(-135, -45, len(images))
    layer = motion_blur(to_bytes(255 * flakes)[..., None], radius, sigma, degrees).astype(np.float32)
    levels = images.astype(np.float32)
    # Not a matrix product, whose last bits depend on the library and the number of threads.
    grey = levels[..., 0] * _GREY[0] + levels[..., 1] * _GREY[1] + levels[..., 2] * _GREY[2]
    whitened = np.maximum(levels, (1.5 * grey + 127.5)[..., None])
    return to_bytes(mix * levels + (1 - mix) * whitened + (layer + layer[:, ::-1, ::-1]))


def shrink(textures: Sequence[Bytes]) -> list[Bytes]:
    """Frost textures at a fifth of their size: bilinear sampling hits every fifth pixel, from the third, exactly.

    Args:
        textures: (H, W, 3) uint8, at least 165 pixels high and wide.
    Returns:
        One (H / 5, W / 5, 3) uint8 a texture.
    Raises:
        ValueError: `textures` is empty, or one of them is too small or not RGB.
    Source: frost of Hendrycks & Dietterich (CIFAR-10-C).
    """
    small = [texture[2::5, 2::5] for texture in textures]
    for texture in small:
        if texture.dtype != np.uint8 or texture.ndim != 3 or texture.shape[2] != 3 or min(texture.shape[:2]) <= SIDE:
            raise ValueError(f"a frost texture is {texture.dtype} of shape {texture.shape} when shrunk")
    if not small:
        raise ValueError("Frost needs textures")
    return small


def frost(images: Bytes, streams: Streams, keep: float, strength: float, textures: Sequence[Bytes]) -> Bytes:
    """Add a random crop of a random texture.

    Args:
        images: (N, 32, 32, 3) uint8.
        streams: texture, row and column.
        keep: factor of the image.
        strength: factor of the texture.
        textures: as `shrink` gives them.
    Returns:
        (N, 32, 32, 3) uint8.
    Source: Hendrycks & Dietterich (CIFAR-10-C).
    """
    crops = np.empty_like(images)
    for crop, (which, down, right) in zip(crops, streams[0].random_sample((len(images), 3)), strict=True):
        texture = textures[int(which * len(textures))]
        row = int(down * (texture.shape[0] - SIDE))
        column = int(right * (texture.shape[1] - SIDE))
        crop[:] = texture[row : row + SIDE, column : column + SIDE]
    return to_bytes(keep * images + strength * crops)


def fog(images: Bytes, streams: Streams, strength: float, decay: float) -> Bytes:
    """Lay a cloudy veil over the images.

    Args:
        images: (N, 32, 32, 3) uint8.
        streams: clouds.
        strength: of the veil.
        decay: of the roughness, from each scale to the next finer one.
    Returns:
        (N, 32, 32, 3) uint8.
    Source: Hendrycks & Dietterich (CIFAR-10-C).
    """
    clouds = _plasma(streams[0].uniform(-1, 1, (len(images), SIDE * SIDE - 1)), decay)
    brightest = images.max(axis=(1, 2, 3), keepdims=True) / 255
    return to_bytes((images + 255 * strength * clouds[..., None]) * (brightest / (brightest + strength)))


def spatter(
    images: Bytes,
    streams: Streams,
    mean: float,
    std: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> Bytes:
    """Splash water or mud on the images.

    Args:
        images: (N, 32, 32, 3) uint8.
        streams: drops.
        mean: of the noise the drops are made of.
        std: of the same noise.
        sigma: of the blur of that noise.
        threshold: noise below it becomes 0.
        strength: brightness of water, blur of mud.
        mud: else water.
    Returns:
        (N, 32, 32, 3) uint8.
    Source: Hendrycks & Dietterich (CIFAR-10-C).
    """
    liquid = gaussian(mean + std * streams[0].standard_normal(images.shape[:3]), sigma)
    liquid[liquid < threshold] = 0
    if mud:
        mask = gaussian((liquid > threshold).astype(np.float32), strength)[..., None]
        mask[mask < 0.8] = 0
        return to_bytes(images * (1 - mask) + mask * _MUD)
    shine = _shine(to_bytes(255 * liquid))
    # An image without a drop has no brightest one.
    brightest = np.maximum(shine.max(axis=(1, 2), keepdims=True), 1)
    return to_bytes(images + (shine / brightest * np.float32(strength))[..., None] * _WATER)


def _plasma(draws: NDArray[np.float64], decay: float) -> NDArray[np.float64]:
    """Diamond-square clouds that wrap around: (N, 1023) draws in -1..1 to (N, 32, 32) float64 in 0..1."""
    field = np.zeros((len(draws), SIDE, SIDE))
    used = 0

    def roughen(four: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal used
        new = draws[:, used : used + four[0].size].reshape(four.shape)
        used += four[0].size
        moved: NDArray[np.float64] = four / 4 + roughness * new
        return moved

    step, roughness = SIDE, 1.0
    while step > 1:
        half = step // 2
        corners = field[:, ::step, ::step]
        right, below = np.roll(corners, -1, 2), np.roll(corners, -1, 1)
        centres = roughen(corners + right + below + np.roll(below, -1, 2))
        field[:, half::step, half::step] = centres
        field[:, ::step, half::step] = roughen(corners + right + centres + np.roll(centres, 1, 1))
        field[:, half::step, ::step] = roughen(corners + below + centres + np.roll(centres, 1, 2))
        # The protocol multiplies the noise with its own amplitude: it falls by the square.
        step, roughness = half, roughness / decay**2
    field -= field.min(axis=(1, 2), keepdims=True)
    field /= field.max(axis=(1, 2), keepdims=True)
    return field


def _shine(liquid: Bytes) -> NDArray[np.float32]:
    """How drops reflect the light, up to a factor an image, after OpenCV's functions: (N, 32, 32) uint8 to float32."""
    distances = np.minimum(_distances(_edges(liquid)), 20 * _FIX)
    relief = _equalise(_sum9(distances) // (9 * _FIX))
    kernel = np.array([[[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]])
    lit = np.clip(ndimage.correlate(relief, kernel, mode="mirror"), 0, 255)
    dazzle = ((_sum9(lit) + 4) // 9).astype(np.float32)
    return dazzle * liquid


def _sum9(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums over 3x3 pixels, the border mirrored; exact, since float64 holds them."""
    return ndimage.correlate(values, np.ones((1, 3, 3)), mode="mirror")


def _edges(images: Bytes) -> NDArray[np.bool_]:
    """Canny's edges with thresholds 50 and 150 on |dx| + |dy|: (N, 32, 32) bool, bit for bit those of OpenCV."""
    levels = images.astype(np.int32)
    gradients = []
    for axis in (2, 1):
        slope = ndimage.correlate1d(levels, [-1, 0, 1], axis, mode="nearest")
        gradients.append(ndimage.correlate1d(slope, [1, 2, 1], 3 - axis, mode="nearest"))
    across, along = gradients
    size = np.abs(across) + np.abs(along)
    padded = np.pad(size, ((0, 0), (1, 1), (1, 1)))

    def neighbour(down: int, right: int) -> NDArray[np.int32]:
        return padded[:, 1 + down : 1 + down + SIDE, 1 + right : 1 + right + SIDE]

    # 13573 / 2**15 is the tangent of 22.5 degrees, and 2 more than it that of 67.5.
    rise, run = np.abs(along) << 15, np.abs(across)
    flat, steep = rise < 13573 * run, rise > (13573 + _FIX) * run
    level = (size > neighbour(0, -1)) & (size >= neighbour(0, 1))
    upright = (size > neighbour(-1, 0)) & (size >= neighbour(1, 0))
    falling = (size > neighbour(-1, -1)) & (size > neighbour(1, 1))
    rising = (size > neighbour(-1, 1)) & (size > neighbour(1, -1))
    diagonal = np.where((across ^ along) < 0, rising, falling)
    peak = np.where(flat, level, np.where(steep, upright, diagonal))
    return ndimage.binary_propagation(peak & (size > 150), np.ones((1, 3, 3), np.bool_), mask=peak & (size > 50))


def _distances(edges: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Distance to the nearest edge with steps of 1, 1.4 and 2.1969 pixels, times 2**16: (N, 32, 32) int64.

    Two passes, down and up, as in OpenCV's distance transform with a mask of 5 pixels.
    """
    steps = {(1, 0): 65536, (1, 1): 91750, (2, 1): 143976, (1, 2): 143976}
    margin = 2
    field = np.full((len(edges), SIDE + margin, SIDE + 2 * margin), 1 << 40, np.int64)
    inner = slice(margin, -margin)
    field[:, margin:, inner] = np.where(edges, 0, 1 << 40)
    ramp = 65536 * np.arange(SIDE)
    for _ in range(2):
        for row in range(margin, SIDE + margin):
            best = field[:, row, inner]
            for (up, side), cost in steps.items():
                above = field[:, row - up]
                for shift in {-side, side}:
                    np.minimum(best, above[:, margin + shift : margin + shift + SIDE] + cost, out=best)
            # Steps along the row, in one pass: what costs one more a pixel is flat below a ramp.
            best[:] = np.minimum.accumulate(best - ramp, axis=1) + ramp
        field[:, margin:] = field[:, :1:-1, ::-1].copy()
    return field[:, margin:, inner]


def _equalise(images: NDArray[np.int64]) -> NDArray[np.int64]:
    """Spread the levels 0..20 of every image over 0..255 by their histogram, as OpenCV does: (N, 32, 32) int64."""
    codes = images + 32 * np.arange(len(images))[:, None, None]
    counts = np.bincount(codes.ravel(), minlength=32 * len(images)).reshape(-1, 32)
    lowest = np.take_along_axis(counts, (counts > 0).argmax(1)[:, None], 1)
    scale = np.float32(255) / np.maximum(SIDE * SIDE - lowest, 1).astype(np.float32)
    table: NDArray[np.float32] = (counts.cumsum(1) - lowest).astype(np.float32) * scale
    return np.rint(table.take(codes)).astype(np.int64)

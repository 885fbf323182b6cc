"""The corruptions of Corrupted CIFAR-10 once more: slow, one image at a time, to check the batched ones against.

Written from the description of the protocol, not from the code under test; only the layout of the draws is shared.
"""

import colorsys
import io
import math
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage, signal

N = 32

CONSTANTS: dict[str, list[Any]] = {
    "Gaussian Noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "Shot Noise": [500, 250, 100, 75, 50],
    "Impulse Noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "Speckle Noise": [0.06, 0.1, 0.12, 0.16, 0.2],
    "Gaussian Blur": [0.4, 0.6, 0.7, 0.8, 1],
    "Glass Blur": [(0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)],
    "Defocus Blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "Motion Blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "Zoom Blur": [(1.06, 7), (1.11, 12), (1.16, 16), (1.21, 21), (1.26, 26)],
    "Snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "Frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    "Fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "Brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "Contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "Saturate": [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
    "Elastic": [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    "Pixelate": [30, 28, 27, 24, 20],
    "JPEG": [80, 65, 58, 50, 40],
    "Spatter": [
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ],
    "Original": [None] * 5,
}


def reference(
    images: np.ndarray, name: str, level: int, seed: tuple[int, ...], textures: Sequence[np.ndarray]
) -> np.ndarray:
    """(N, 32, 32, 3) uint8 to the same, one image after the other."""
    one, two = (
        np.random.RandomState(np.random.MT19937(np.random.SeedSequence([*seed, zlib.crc32(name.encode()), purpose])))
        for purpose in (0, 1)
    )
    constants = CONSTANTS[name][level - 1]
    if name == "Frost":
        return np.stack([frost(image, constants, one, textures) for image in images])
    return np.stack([FUNCTIONS[name](image, constants, one, two) for image in images])


def truncated(x: np.ndarray) -> np.ndarray:
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def gaussian_blur(x: np.ndarray, sigma: float) -> np.ndarray:
    radius = int(4 * sigma + 0.5)
    weights = [math.exp(-((i / sigma) ** 2) / 2) for i in range(-radius, radius + 1)]
    for axis in (0, 1):
        edges = [(0, 0)] * x.ndim
        edges[axis] = (radius, radius)
        padded = np.pad(x, edges, mode="edge")
        x = sum(w / sum(weights) * padded.take(range(i, i + N), axis) for i, w in enumerate(weights))
    return x


def glass_blur(image: np.ndarray, c: tuple[float, int], draws: Any, _: Any) -> np.ndarray:
    sigma, rounds = c
    x = truncated(gaussian_blur(image / 255, sigma))
    # 900 bytes a round; bit 0 goes left, bit 1 goes up.
    moves = np.frombuffer(draws.bytes(rounds * 900), np.uint8).reshape(rounds, 30, 30)
    for turn in range(rounds):
        for h in range(31, 1, -1):
            for w in range(31, 1, -1):
                move = int(moves[turn, h - 2, w - 2])
                x[h, w] = x[h - (move >> 1 & 1), w - (move & 1)]
    return truncated(gaussian_blur(x / 255, sigma))


def defocus_blur(image: np.ndarray, c: tuple[float, float], *_: Any) -> np.ndarray:
    radius, sigma = c
    y, x = np.mgrid[-8:9, -8:9]
    disk = (x**2 + y**2 <= radius**2).astype(float)
    bell = np.exp(-(np.array([-1.0, 0, 1]) ** 2) / (2 * sigma**2))
    kernel = signal.convolve2d(disk / disk.sum(), np.outer(bell, bell) / bell.sum() ** 2, mode="same")
    padded = np.pad(image / 255, ((8, 8), (8, 8), (0, 0)), mode="reflect")
    # A flat area stays what it is whichever way the sum is rounded.
    return truncated(np.dstack([signal.correlate2d(padded[..., i], kernel, mode="valid") for i in range(3)]) + 1e-9)


def smear(image: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    angle = math.radians(degrees)
    weights = [math.exp(-i * i / (2 * sigma * sigma)) for i in range(2 * radius + 1)]
    y, x = np.mgrid[:N, :N]
    total = np.zeros(image.shape)
    for i, weight in enumerate(weights):
        down, right = math.ceil(i * math.sin(angle) - 0.5), math.ceil(i * math.cos(angle) - 0.5)
        total += weight / sum(weights) * image[np.clip(y + down, 0, N - 1), np.clip(x + right, 0, N - 1)]
    return np.floor(np.floor(257 * total + 0.5) / 257).astype(np.uint8)


def clipped_zoom(x: np.ndarray, factor: float) -> np.ndarray:
    crop = math.ceil(N / factor)
    top = (N - crop) // 2
    large = ndimage.zoom(x[top : top + crop, top : top + crop], [factor, factor, 1][: x.ndim], order=1)
    trim = (len(large) - N) // 2
    return large[trim : trim + N, trim : trim + N]


def zoom_blur(image: np.ndarray, c: tuple[float, int], *_: Any) -> np.ndarray:
    end, count = c
    zoomed = [clipped_zoom(image / 255, factor) for factor in np.arange(1, end, 0.01)]
    assert len(zoomed) == count
    return truncated((image / 255 + sum(zoomed)) / (count + 1) + 1e-9)


def snow(image: np.ndarray, c: tuple[float, ...], flakes: Any, angles: Any) -> np.ndarray:
    mean, std, factor, threshold, radius, sigma, mix = c
    layer = clipped_zoom(mean + std * flakes.standard_normal((N, N)), factor)
    layer[layer < threshold] = 0
    layer = smear(truncated(layer), int(radius), sigma, angles.uniform(-135, -45))[..., None] / 255
    x = image / 255
    grey = x @ [0.299, 0.587, 0.114]
    x = mix * x + (1 - mix) * np.maximum(x, 1.5 * grey[..., None] + 0.5)
    return truncated(x + layer + np.rot90(layer, 2))


def frost(image: np.ndarray, c: tuple[float, float], draws: Any, textures: Sequence[np.ndarray]) -> np.ndarray:
    which, down, right = draws.random_sample(3)
    texture = textures[math.floor(which * len(textures))]
    height, width = (round(side * 0.2) for side in texture.shape[:2])
    # Bilinear at a fifth of the size: output pixel i reads position 5 (i + .5) - .5 of the input, a whole number.
    small = np.array([[texture[5 * i + 2, 5 * j + 2] for j in range(width)] for i in range(height)])
    row, column = math.floor(down * (height - N)), math.floor(right * (width - N))
    return np.clip(c[0] * image + c[1] * small[row : row + N, column : column + N], 0, 255).astype(np.uint8)


def fog(image: np.ndarray, c: tuple[float, float], draws: Any, _: Any) -> np.ndarray:
    strength, decay = c
    noise = iter(draws.uniform(-1, 1, N * N - 1))
    height = {(0, 0): 0.0}
    step, wibble = N, 100.0

    def fill(at: tuple[int, int], around: list[tuple[int, int]]) -> None:
        height[at] = sum(height[y % N, x % N] for y, x in around) / 4 + wibble * wibble * next(noise)

    while step > 1:
        half = step // 2
        for y in range(0, N, step):
            for x in range(0, N, step):
                fill((y + half, x + half), [(y, x), (y, x + step), (y + step, x), (y + step, x + step)])
        for y in range(0, N, step):
            for x in range(half, N, step):
                fill((y, x), [(y, x - half), (y, x + half), (y - half, x), (y + half, x)])
        for y in range(half, N, step):
            for x in range(0, N, step):
                fill((y, x), [(y, x - half), (y, x + half), (y - half, x), (y + half, x)])
        step, wibble = half, wibble / decay
    cloud = np.array([[height[y, x] for x in range(N)] for y in range(N)])
    cloud = (cloud - cloud.min()) / (cloud.max() - cloud.min())
    x = image / 255
    return truncated((x + strength * cloud[..., None]) * x.max() / (x.max() + strength))


def hsv(image: np.ndarray, change: Callable[[float, float, float], tuple[float, float, float]]) -> np.ndarray:
    colours = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*rgb))) for rgb in (image / 255).reshape(-1, 3)]
    return truncated(np.array(colours) + 1e-9).reshape(image.shape)


def brightness(image: np.ndarray, c: float, *_: Any) -> np.ndarray:
    return hsv(image, lambda h, s, v: (h, s, min(v + c, 1)))


def saturate(image: np.ndarray, c: tuple[float, float], *_: Any) -> np.ndarray:
    return hsv(image, lambda h, s, v: (h, min(s * c[0] + c[1], 1), v))


def contrast(image: np.ndarray, c: float, *_: Any) -> np.ndarray:
    means = np.array([image[..., i].mean() / 255 for i in range(3)])
    return truncated((image / 255 - means) * c + means)


def elastic(image: np.ndarray, c: tuple[float, float, float], points: Any, fields: Any) -> np.ndarray:
    alpha, sigma, reach = (N * value for value in c)
    before = np.array([(26, 26), (26, 6), (6, 6)])
    after = before + points.uniform(-reach, reach, (3, 2))
    # (x, y, 1) of the warped image times this gives (x, y) of the original.
    matrix = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)
    y, x = np.mgrid[:N, :N]
    source = np.stack([x, y, np.ones((N, N))], -1) @ matrix
    where = [source[..., 1], source[..., 0]]
    warped = [ndimage.map_coordinates(image[..., i] / 255, where, order=1, mode="mirror") for i in range(3)]
    across, along = (
        ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3) * alpha
        for field in fields.uniform(-1, 1, (2, N, N))
    )
    where = [y + along, x + across]
    moved = [ndimage.map_coordinates(channel, where, order=1, mode="reflect") for channel in warped]
    return truncated(np.dstack(moved))


def jpeg(image: np.ndarray, quality: int, *_: Any) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0", optimize=False)
    return np.asarray(Image.open(buffer))


def pixelate(image: np.ndarray, size: int, *_: Any) -> np.ndarray:
    small = Image.fromarray(image).resize((size, size), Image.Resampling.BOX)
    return np.asarray(small.resize((N, N), Image.Resampling.BOX))


def spatter(image: np.ndarray, c: tuple[float, ...], draws: Any, _: Any) -> np.ndarray:
    mean, std, sigma, threshold, strength, mud = c
    liquid = gaussian_blur(mean + std * draws.standard_normal((N, N)), sigma)
    liquid[liquid < threshold] = 0
    x = image / 255
    if mud:
        mask = gaussian_blur(np.where(liquid > threshold, 1.0, 0.0), strength)
        mask[mask < 0.8] = 0
        return truncated(x * (1 - mask[..., None]) + mask[..., None] * np.array([63, 42, 20]) / 255)
    drops = truncated(liquid)
    if not drops.any():
        return image
    distance = np.minimum(chamfer(canny(drops)), 20)
    relief = equalise(np.floor(signal.correlate2d(mirrored(distance), np.full((3, 3), 1 / 9), mode="valid") + 1e-9))
    light = signal.correlate2d(mirrored(relief), [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], mode="valid").clip(0, 255)
    shine = drops * np.round(signal.correlate2d(mirrored(light), np.full((3, 3), 1 / 9), mode="valid"))
    return truncated(x + (strength * shine / shine.max())[..., None] * np.array([175, 238, 238]) / 255)


def mirrored(x: np.ndarray) -> np.ndarray:
    return np.pad(x, 1, mode="reflect")


def canny(image: np.ndarray) -> list[tuple[int, int]]:
    """Edge pixels, thresholds 50 and 150, of the size |dx| + |dy|, which is 0 outside the image."""

    def at(y: int, x: int) -> int:
        return int(image[min(max(y, 0), N - 1), min(max(x, 0), N - 1)])

    slopes = {}
    for y in range(N):
        for x in range(N):
            dx = sum(w * (at(y + i, x + 1) - at(y + i, x - 1)) for i, w in ((-1, 1), (0, 2), (1, 1)))
            dy = sum(w * (at(y + 1, x + i) - at(y - 1, x + i)) for i, w in ((-1, 1), (0, 2), (1, 1)))
            slopes[y, x] = dx, dy

    def size(y: int, x: int) -> int:
        return sum(map(abs, slopes.get((y, x), (0, 0))))

    peaks = set()
    for (y, x), (dx, dy) in slopes.items():
        angle = math.degrees(math.atan2(abs(dy), abs(dx)))
        here = size(y, x)
        if angle < 22.5:
            peak = here > size(y, x - 1) and here >= size(y, x + 1)
        elif angle > 67.5:
            peak = here > size(y - 1, x) and here >= size(y + 1, x)
        else:
            side = -1 if (dx < 0) != (dy < 0) else 1
            peak = here > size(y - 1, x - side) and here > size(y + 1, x + side)
        if peak and here > 50:
            peaks.add((y, x))
    found = {place for place in peaks if size(*place) > 150}
    queue = deque(found)
    while queue:
        y, x = queue.popleft()
        for place in ((y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            if place in peaks - found:
                found.add(place)
                queue.append(place)
    return sorted(found)


def chamfer(edges: list[tuple[int, int]]) -> np.ndarray:
    """Distance to the nearest edge pixel by steps of 1 (straight), 1.4 (diagonal) and 2.1969 (a knight's move)."""
    y, x = np.mgrid[:N, :N]
    nearest = np.full((N, N), np.inf)
    for row, column in edges:
        far = np.maximum(abs(y - row), abs(x - column))
        near = np.minimum(abs(y - row), abs(x - column))
        flat, steep = 2.1969 * near + (far - 2 * near), 2.1969 * (far - near) + 1.4 * (2 * near - far)
        nearest = np.minimum(nearest, np.where(far >= 2 * near, flat, steep))
    return nearest


def equalise(levels: np.ndarray) -> np.ndarray:
    values = levels.astype(int).ravel().tolist()
    lowest = values.count(min(values))
    table = {value: round((sum(v <= value for v in values) - lowest) * 255 / (N * N - lowest)) for value in set(values)}
    return np.array([table[value] for value in values]).reshape(N, N)


def noise(formula: Callable[[np.ndarray, Any, Any], np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda image, c, draws, _: truncated(formula(image / 255, c, draws))


def impulse(x: np.ndarray, share: float, draws: Any) -> np.ndarray:
    u = draws.random_sample(x.shape)
    return np.select([u < share / 2, u < share], [0.0, 1.0], x)


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "Gaussian Noise": noise(lambda x, c, draws: x + c * draws.standard_normal(x.shape)),
    "Shot Noise": noise(lambda x, c, draws: draws.poisson(x * c) / c),
    "Impulse Noise": noise(impulse),
    "Speckle Noise": noise(lambda x, c, draws: x + x * c * draws.standard_normal(x.shape)),
    "Gaussian Blur": lambda image, c, *_: truncated(gaussian_blur(image / 255, c)),
    "Glass Blur": glass_blur,
    "Defocus Blur": defocus_blur,
    "Motion Blur": lambda image, c, draws, _: smear(image, *c, draws.uniform(-45, 45)),
    "Zoom Blur": zoom_blur,
    "Original": lambda image, *_: image,
    "Snow": snow,
    "Fog": fog,
    "Brightness": brightness,
    "Contrast": contrast,
    "Spatter": spatter,
    "Elastic": elastic,
    "JPEG": jpeg,
    "Pixelate": pixelate,
    "Saturate": saturate,
}

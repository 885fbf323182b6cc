"""Colored MNIST: digits whose colour is, for most training images, that of their class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denetdm_cli.config.schema import ColoredMnistConfig
from denetdm_cli.data.raw.mnist import Mnist
from denetdm_cli.data.recipe import EVALUATION_RATIO, Recipe, bias_labels, command
from denetdm_cli.data.store import Scalar, Split, StoredDataset
from denetdm_cli.data.writer import write_dataset

MEAN_COLOURS: NDArray[np.float64] = np.array(
    [
        (0.9837, 0.3125, 0.1686),
        (0.9905, 0.9156, 0.3515),
        (0.6730, 0.4611, 0.5798),
        (0.7833, 0.8316, 0.6013),
        (0.0880, 0.7780, 0.9818),
        (0.3214, 0.9611, 0.4464),
        (0.0246, 0.2357, 0.7587),
        (0.5552, 0.1016, 0.7618),
        (0.2077, 0.3929, 0.0187),
        (0.8337, 0.2024, 0.2669),
    ]
)
"""Mean colour (R, G, B in 0..1) of every bias value of Colored MNIST (LfF, NeurIPS 2020)."""
MEAN_COLOURS.flags.writeable = False

STD_BY_SEVERITY = {1: 0.05, 2: 0.02, 3: 0.01, 4: 0.005, 5: 0.002}
"""Standard deviation of the colour noise of Colored MNIST (LfF, NeurIPS 2020)."""

COLOUR_NAMES = ("orange", "yellow", "mauve", "sage", "sky", "green", "blue", "purple", "olive", "crimson")
"""What the mean colours look like, for manifests and contact sheets."""

_CLASSES = 10
_PAINT_CHUNK = 512


def colored_mnist_folder(root: Path, ratio: float, severity: int) -> Path:
    """The folder of one Colored MNIST below the data root, named as LfF names it (LfF, NeurIPS 2020)."""
    return root / f"ColoredMNIST-Skewed{float(ratio)}-Severity{severity}"


def colored_mnist_recipe(config: ColoredMnistConfig, load: Callable[[], Mnist]) -> Recipe:
    """How to make a Colored MNIST from what `load` gives; it is called only when the set has to be made."""
    path = colored_mnist_folder(Path(config.root), config.ratio, config.severity)

    def make(replace: bool) -> StoredDataset:
        return make_colored_mnist(
            load(), path, ratio=config.ratio, severity=config.severity, seed=config.seed, replace=replace
        )

    settings = _settings(config.ratio, config.severity, config.seed)
    return Recipe(path, settings, make, command(config), classes=_CLASSES, balanced=True)


def make_colored_mnist(
    mnist: Mnist, path: Path, *, ratio: float, severity: int, seed: int, replace: bool
) -> StoredDataset:
    """Colour MNIST by the recipe of LfF and write it: `train` from its training images, `valid` from its test images.

    Args:
        mnist: images and labels.
        path: the folder to make.
        ratio: share of bias-conflicting training images; the evaluation split always has 0.9.
        severity: 1 (most colour noise) to 5.
        seed: of the colour noise; the same seed gives the same bytes on every machine.
        replace: put it in the place of an existing data set.
    Raises:
        DataError: `path` exists and may not be replaced; a label out of range.
        OSError: the disk is full or may not be written; nothing half-written stays.
    Source: the data recipe of LfF (NeurIPS 2020).
    """
    settings = _settings(ratio, severity, seed)
    parts = [
        ("train", mnist.train_images, mnist.train_labels, ratio),
        ("valid", mnist.test_images, mnist.test_labels, EVALUATION_RATIO),
    ]
    splits = {}
    for number, (name, grey, labels, split_ratio) in enumerate(parts):
        bias = bias_labels(labels, split_ratio)
        colours = _draw_colours(bias, STD_BY_SEVERITY[severity], seed, number)
        splits[name] = Split(_paint(grey, colours), labels, bias)
    return write_dataset(
        path,
        splits,
        recipe=settings | {f"md5 {name}": md5 for name, md5 in mnist.md5s().items()},
        attribute_names=("digit", "color"),
        class_names=[str(digit) for digit in range(_CLASSES)],
        bias_names=COLOUR_NAMES,
        replace=replace,
    )


def _settings(ratio: float, severity: int, seed: int) -> dict[str, Scalar]:
    """Every setting that decides the bytes of one Colored MNIST."""
    return {
        "name": "coloredmnist",
        "conflict_ratio": float(ratio),
        "evaluation_conflict_ratio": EVALUATION_RATIO,
        "severity": severity,
        "colour_std": STD_BY_SEVERITY[severity],
        "seed": seed,
        "generator": "numpy.random.RandomState(MT19937(SeedSequence([seed, split])))",
    }


def _draw_colours(bias: NDArray[np.uint8], std: float, seed: int, split: int) -> NDArray[np.float64]:
    # RandomState, because numpy promises that its stream never changes; Generator's may.
    sequence = np.random.SeedSequence([seed, split])
    noise = np.random.RandomState(np.random.MT19937(sequence)).standard_normal((len(bias), 3))
    colours: NDArray[np.float64] = np.clip(MEAN_COLOURS[bias] + std * noise, 0.0, 1.0)
    return colours


def _paint(grey: NDArray[np.uint8], colours: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(N, H, W) uint8 times (N, 3) float64 in 0..1, truncated: (N, H, W, 3) uint8."""
    images = np.zeros((*grey.shape, 3), np.uint8)
    for start in range(0, len(grey), _PAINT_CHUNK):
        chunk = slice(start, start + _PAINT_CHUNK)
        flat = grey[chunk].reshape(len(grey[chunk]), -1)
        # Four pixels of five are black and stay so: only the others are computed.
        lit = np.flatnonzero(flat)
        image = lit // flat.shape[1]
        value = flat.ravel()[lit].astype(np.float64)
        pixels = images[chunk].reshape(-1, 3)
        for channel in range(3):
            pixels[lit, channel] = (value * colours[chunk, channel][image]).astype(np.uint8)
    return images

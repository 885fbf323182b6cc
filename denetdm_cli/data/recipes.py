"""How biased data sets are made from raw images."""

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denetdm_cli.data.sources import Mnist
from denetdm_cli.data.store import (
    Scalar,
    Split,
    StoredDataset,
    looks_like_dataset,
    open_dataset,
    require_groups,
    write_dataset,
)
from denetdm_cli.errors import ConfigError, DataError

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
_EVALUATION_RATIO = 0.9
_PAINT_CHUNK = 512


def bias_labels(targets: NDArray[np.integer], ratio: float, classes: int = _CLASSES) -> NDArray[np.uint8]:
    """Give every image a bias value by its place among the images of its class.

    Args:
        targets: (N,) integers in 0..classes-1, in data-set order.
        ratio: share of bias-conflicting images in every class, spread evenly over the other bias values.
        classes: number of classes and of bias values.
    Returns:
        (N,) uint8.
    Raises:
        DataError: a target is out of range.
    Source: the data recipe of LfF (NeurIPS 2020).
    """
    if len(targets) and not 0 <= targets.min() <= targets.max() < classes:
        raise DataError(
            f"Class labels: found {targets.min()} to {targets.max()}; expected 0 to {classes - 1}.",
            "Use the labels that belong to these images.",
        )
    bias = np.empty(len(targets), np.uint8)
    for label in range(classes):
        members = np.flatnonzero(targets == label)
        shares = np.full(classes, ratio / (classes - 1))
        shares[label] = 1 - ratio
        milestones = np.round(len(members) * np.cumsum(shares))
        bias[members] = np.searchsorted(milestones, np.arange(len(members)), side="right")
    return bias


def coloured_mnist_folder(root: Path, ratio: float, severity: int) -> Path:
    """The folder of one Colored MNIST below the data root, named as LfF names it (LfF, NeurIPS 2020)."""
    return root / f"ColoredMNIST-Skewed{float(ratio)}-Severity{severity}"


def coloured_mnist_settings(ratio: float, severity: int, seed: int) -> dict[str, Scalar]:
    """Every setting that decides the bytes of one Colored MNIST, as its manifest holds them.

    Raises:
        ConfigError: ratio outside (0, 1), severity outside 1..5 or a negative seed.
    """
    if not 0 < ratio < 1:
        raise ConfigError(
            f"Conflict ratio {ratio} is not between 0 and 1.",
            "Give the share of bias-conflicting images, such as 0.05, 0.02, 0.01 or 0.005.",
        )
    if severity not in STD_BY_SEVERITY:
        raise ConfigError(
            f"Severity {severity} is not one of 1 to 5.", "Give 1 (most colour noise) to 5; the papers use 4."
        )
    if seed < 0:
        raise ConfigError(f"Seed {seed} is negative.", "Give a whole number from 0.")
    return {
        "name": "coloredmnist",
        "conflict_ratio": float(ratio),
        "evaluation_conflict_ratio": _EVALUATION_RATIO,
        "severity": severity,
        "colour_std": STD_BY_SEVERITY[severity],
        "seed": seed,
        "generator": "numpy.random.RandomState(MT19937(SeedSequence([seed, split])))",
    }


def make_coloured_mnist(
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
        ConfigError: a setting out of range.
        DataError: `path` exists and may not be replaced; a label out of range.
        OSError: the disk is full or may not be written; nothing half-written stays.
    Source: the data recipe of LfF (NeurIPS 2020).
    """
    settings = coloured_mnist_settings(ratio, severity, seed)
    parts = [
        ("train", mnist.train_images, mnist.train_labels, ratio),
        ("valid", mnist.test_images, mnist.test_labels, _EVALUATION_RATIO),
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


def ensure_coloured_mnist(
    root: Path, *, ratio: float, severity: int, seed: int, load: Callable[[], Mnist], force: bool = False
) -> tuple[StoredDataset, bool]:
    """Open one Colored MNIST below the data root, or make it where there is none.

    Args:
        root: the data root.
        ratio: share of bias-conflicting training images.
        severity: 1 to 5.
        seed: of the colour noise.
        load: gives MNIST; called only when the folder has to be made (see `sources.lazy_mnist`).
        force: make it anew even where there is one.
    Returns:
        The data set, and whether it was made now. A folder of another tool (no manifest) is opened as it is.
    Raises:
        ConfigError: a setting out of range.
        DataError: the folder is damaged, was made with other settings, or is something else than a data set.
        DownloadError: MNIST could not be had.
    """
    settings = coloured_mnist_settings(ratio, severity, seed)
    path = coloured_mnist_folder(root, ratio, severity)
    if path.exists() and not looks_like_dataset(path):
        raise DataError(
            f"{path} exists and is not a data set folder (no manifest.json, no train/images.npy); it is left as it is.",
            "Move it away, or choose another `--data-root`.",
        )
    if force or not path.exists():
        try:
            return make_coloured_mnist(load(), path, ratio=ratio, severity=severity, seed=seed, replace=force), True
        except (DataError, OSError):
            # Unless another process made it in the meantime.
            if force or not path.exists():
                raise
    dataset = open_dataset(path, classes=_CLASSES)
    if dataset.manifest is not None:
        recipe = dataset.manifest.recipe
        differing = [
            f"{key} {recipe.get(key)!r}, asked for {value!r}"
            for key, value in settings.items()
            if recipe.get(key) != value
        ]
        if differing:
            raise DataError(
                f"Data set {path} was made with other settings: {'; '.join(differing)}.",
                f"To train on it as it is: `--set dataset.seed={recipe.get('seed')}`. To replace it: "
                f"`denetdm make-data coloredmnist --data-root {shlex.quote(str(root))} --ratio {ratio} "
                f"--severity {severity} --seed {seed} "
                "--force`. Or choose another `--data-root`.",
            )
    require_groups(dataset.splits["valid"], f"valid of {path}", _CLASSES)
    return dataset, False


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

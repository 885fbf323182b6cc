"""Corrupted CIFAR-10: photographs whose corruption is, for most training images, that of their class."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denetdm_cli.config.schema import CorruptedCifar10Config
from denetdm_cli.data.raw.cifar10 import CLASS_NAMES, Cifar10
from denetdm_cli.data.recipe import EVALUATION_RATIO, Recipe, bias_labels, command
from denetdm_cli.data.store import Scalar, Split, StoredDataset
from denetdm_cli.data.synthetic.corruptions import TYPE_0, TYPE_1, corrupt
from denetdm_cli.data.writer import write_dataset
from denetdm_cli.utils.progress import Reporter

CORRUPTIONS = (TYPE_0, TYPE_1)
"""The ten corruptions, in the order of the classes they are tied to, by type (LfF, NeurIPS 2020)."""

Textures = Sequence[NDArray[np.uint8]]


def corrupted_cifar10_recipe(
    config: CorruptedCifar10Config,
    load: Callable[[], Cifar10],
    load_textures: Callable[[], Textures],
    reporter: Reporter,
) -> Recipe:
    """How to make a Corrupted CIFAR-10; `load` and `load_textures` are called only when the set has to be made."""
    folder = f"CorruptedCIFAR10-Type{config.type}-Skewed{float(config.ratio)}-Severity{config.severity}"
    path = Path(config.root) / folder

    def make(replace: bool) -> StoredDataset:
        cifar = load()  # first: a mistake in --source is reported before the textures are downloaded
        textures = load_textures() if "Frost" in CORRUPTIONS[config.type] else ()
        return make_corrupted_cifar10(cifar, textures, path, config, replace=replace, reporter=reporter)

    return Recipe(path, _settings(config), make, command(config), classes=len(CLASS_NAMES), balanced=True)


def make_corrupted_cifar10(
    cifar: Cifar10,
    textures: Textures,
    path: Path,
    config: CorruptedCifar10Config,
    *,
    replace: bool,
    reporter: Reporter,
) -> StoredDataset:
    """Corrupt CIFAR-10 by the recipe of LfF: `train` from its training images, `valid` from its test images.

    Args:
        cifar: images and labels.
        textures: the five frost textures; only type 0 needs them.
        path: the folder to make.
        config: type, severity (the corruptions are those of CIFAR-10-C at severity + 1), conflict ratio and seed.
        replace: put it in the place of an existing data set.
        reporter: receives the number of corrupted images.
    Raises:
        DataError: `path` exists and may not be replaced; a label out of range.
        OSError: the disk is full or may not be written; nothing half-written stays.
    Source: the data recipe of LfF (NeurIPS 2020).
    """
    parts = [
        ("train", cifar.train_images, cifar.train_labels, config.ratio),
        ("valid", cifar.test_images, cifar.test_labels, EVALUATION_RATIO),
    ]
    total = sum(len(labels) for _, _, labels, _ in parts)
    done = 0
    splits = {}
    for number, (name, clean, labels, ratio) in enumerate(parts):
        bias = bias_labels(labels, ratio)
        images = np.empty_like(clean)
        for value, corruption in enumerate(CORRUPTIONS[config.type]):
            reporter.advance(f"corrupting: {corruption}", done, total)
            rows = np.flatnonzero(bias == value)
            images[rows] = corrupt(
                clean[rows], corruption, config.severity + 1, seed=(config.seed, number), textures=textures
            )
            done += len(rows)
        splits[name] = Split(images, labels, bias)
    reporter.advance("corrupting", done, total)
    return write_dataset(
        path,
        splits,
        recipe=_settings(config)
        | {"source": cifar.origin}
        | {f"sha256 {name}": digest for name, digest in cifar.digests().items()},
        attribute_names=("object", "corruption"),
        class_names=CLASS_NAMES,
        bias_names=[name.lower() for name in CORRUPTIONS[config.type]],
        replace=replace,
    )


def _settings(config: CorruptedCifar10Config) -> dict[str, Scalar]:
    """Every setting that decides the bytes of one Corrupted CIFAR-10, but for the images it is made from."""
    return {
        "name": "corruptedcifar10",
        "type": config.type,
        "conflict_ratio": float(config.ratio),
        "evaluation_conflict_ratio": EVALUATION_RATIO,
        "severity": config.severity,
        "seed": config.seed,
        "generator": "numpy.random.RandomState(MT19937(SeedSequence([seed, split, corruption, purpose])))",
    }

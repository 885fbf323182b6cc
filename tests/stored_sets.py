"""Small data sets on the disk, as we and as LfF write them."""

import pickle
from pathlib import Path

import numpy as np

from denetdm_cli.data.store import Split, StoredDataset
from denetdm_cli.data.writer import write_dataset

CLASSES = 3


def make_split(count: int, start: int = 0) -> Split:
    images = (np.arange(start, start + count * 4 * 5 * 3) % 251).astype(np.uint8).reshape(count, 4, 5, 3)
    order = np.arange(count)
    return Split(images, (order % CLASSES).astype(np.uint8), (order // CLASSES % CLASSES).astype(np.uint8))


SPLITS = {"train": make_split(30), "valid": make_split(18, 7)}


def write(path: Path, *, replace: bool = False, seed: int = 0, splits: dict[str, Split] = SPLITS) -> StoredDataset:
    return write_dataset(
        path,
        splits,
        recipe={"name": "toy", "seed": seed, "ratio": 0.5, "note": "[\n 1\n]"},
        attribute_names=("digit", "color"),
        class_names=["a", "b", "c"],
        bias_names=["x", "y", "z"],
        replace=replace,
    )


def write_like_lff(path: Path, splits: dict[str, Split] = SPLITS) -> None:
    for name, split in splits.items():
        (path / name).mkdir(parents=True)
        np.save(path / name / "images.npy", split.images)
        np.save(path / name / "attrs.npy", np.stack([split.target, split.bias], axis=1))
    (path / "attr_names.pkl").write_bytes(pickle.dumps(["digit", "color"]))

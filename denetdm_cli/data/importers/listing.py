"""What an importer gives: the images of a source with their labels, before any is read."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denetdm_cli.utils.text import first_few

INCOMPLETE = "Give a complete copy of the published data set."
"""The remedy for a published data set of which something is missing or altered."""


@dataclass(frozen=True)
class Item:
    """One image of a listing; `bias` is None where nobody labelled it."""

    path: Path
    target: int
    bias: int | None


Splits = dict[str, list[Item]]


@dataclass(frozen=True)
class Listing:
    """What a source holds, before an image is read.

    Args:
        root: the folder that the layout was found in.
        splits: images in the order in which they are written, by "train" and "valid", "test" or both.
        class_names: one a class.
        bias_names: one a bias value; empty without bias labels.
        aligned: the bias value tied to each class; empty without bias labels.
        attribute_names: of target and bias.
        notes: warnings about the source, a line each.
    """

    root: Path
    splits: Splits
    class_names: tuple[str, ...]
    bias_names: tuple[str, ...]
    aligned: tuple[int, ...]
    attribute_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 over the names of labels and the split, path below the root, labels and size of every image."""
        digest = hashlib.sha256("\0".join([*self.class_names, "", *self.bias_names, "\n"]).encode())
        for name, items in self.splits.items():
            for item in items:
                size = item.path.stat().st_size if item.path.is_file() else None
                line = f"{name}\0{self.short(item)}\0{item.target}\0{item.bias}\0{size}\n"
                digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()

    def short(self, item: Item) -> str:
        """The path of an image, seen from the root."""
        return Path(os.path.relpath(item.path, self.root)).as_posix()


def count_notes(splits: Splits, published: Mapping[str, int]) -> tuple[str, ...]:
    """A warning for every split whose number of images is not the published one."""
    return tuple(
        f"Split {name} has {len(splits[name]):,} images; that of the published data set has {count:,}."
        for name, count in published.items()
        if len(splits[name]) != count
    )


def gap_notes(listing: Listing) -> tuple[str, ...]:
    """A warning for every evaluation split that lacks a class."""
    found = []
    for name in sorted(listing.splits.keys() - {"train"}, reverse=True):
        present = {item.target for item in listing.splits[name]}
        lacking = [label for number, label in enumerate(listing.class_names) if number not in present]
        if lacking:
            found.append(f"Split {name} has no image of {first_few(lacking)}, so no figure on it counts them.")
    return tuple(found)


@dataclass(frozen=True)
class Importer:
    """How a data set is imported.

    Args:
        list: the images of a source, from the folder (or .csv file) it is in and the `dataset` section.
        folder: the data set's folder below the data root, from the `dataset` section.
    """

    list: Callable[[Path, Any], Listing]
    folder: Callable[[Any], str] = lambda config: str(config.name)

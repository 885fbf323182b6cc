"""Write a data set folder: split by split, block by block, and whole or not at all."""

import dataclasses
import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denetdm_cli import __version__
from denetdm_cli.data.store import (
    ATTRS,
    FILES,
    FORMAT,
    IMAGES,
    MANIFEST,
    Manifest,
    Scalar,
    Split,
    StoredDataset,
    check_images,
    check_labels,
    check_one_size,
    checksums_of,
    digest_of,
    looks_like_dataset,
    open_split,
    record_of,
)
from denetdm_cli.utils.errors import DataError
from denetdm_cli.utils.files import atomic_folder

_ATTR_NAMES = "attr_names.pkl"


class SplitWriter:
    """One split that is being written; blocks of images follow one another in its files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._file = (folder / IMAGES).open("wb")
        self._shape: tuple[int, ...] | None = None
        self._attrs: list[NDArray[np.uint8]] = []
        self._files: list[str] = []

    def add(
        self,
        images: NDArray[np.uint8],
        target: NDArray[np.uint8],
        bias: NDArray[np.uint8] | None,
        files: Sequence[str] = (),
    ) -> None:
        """Append a block.

        Args:
            images: (n, H, W, 3) uint8; H and W as in the blocks before.
            target: (n,) uint8.
            bias: (n,) uint8; None, in every block or in none, without bias labels.
            files: names of the n files the images come from, where they come from files.
        Raises:
            OSError: the disk is full.
        """
        if self._shape is None:
            self._shape = images.shape[1:]
            self._file.write(self._header(0))
        if images.shape[1:] != self._shape:
            raise ValueError(f"images of {images.shape[1:]} after images of {self._shape}")
        self._file.write(np.ascontiguousarray(images).data)
        self._attrs.append(np.stack([target] if bias is None else [target, bias], axis=1))
        self._files += files

    def close(self) -> None:
        """Complete both files."""
        if self._shape is None:
            raise ValueError(f"no image was written to {self._folder}")
        attrs = np.concatenate(self._attrs)
        self._file.seek(0)
        self._file.write(self._header(len(attrs)))
        self._file.close()
        # Not np.save: it hides the error number when the disk is full.
        with (self._folder / ATTRS).open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(attrs))
            stream.write(attrs.data)
        if self._files:
            (self._folder / FILES).write_text(json.dumps(self._files, indent=0) + "\n", encoding="utf-8")

    def _header(self, count: int) -> bytes:
        """The .npy header, of one length for any number of images: 128 bytes, as numpy itself writes."""
        shape = (count, *(self._shape or ()))
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
        return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


class DatasetWriter:
    """A data set folder that is being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._splits: list[str] = []

    @contextmanager
    def split(self, name: str) -> Iterator[SplitWriter]:
        """Write one split: "train", "valid" or "test"."""
        writer = SplitWriter(self._folder / name)
        try:
            yield writer
            writer.close()
        finally:
            writer._file.close()
        self._splits.append(name)

    def describe(
        self,
        *,
        recipe: Mapping[str, Scalar],
        attribute_names: Sequence[str],
        class_names: Sequence[str],
        bias_names: Sequence[str],
        aligned: Sequence[int] | None = None,
    ) -> None:
        """Check what was written and add the manifest.

        Args:
            recipe: name and settings.
            attribute_names: of target and bias, for the readers of LfF.
            class_names: one a class.
            bias_names: one a bias value; empty without bias labels.
            aligned: the bias value tied to each class; by default the same number.
        Raises:
            DataError: arrays that do not fit.
        """
        classes, biases = len(class_names), len(bias_names)
        splits = {name: open_split(self._folder, name) for name in self._splits}
        for name, split in splits.items():
            check_images(split.images, f"images of split {name}")
            check_labels(split, f"labels of split {name}", classes, biases)
        check_one_size(splits, str(self._folder))
        # LfF opens this pickle; we never do.
        (self._folder / _ATTR_NAMES).write_bytes(pickle.dumps(list(attribute_names), protocol=2))
        checksums = checksums_of(self._folder, splits)
        manifest = Manifest(
            format=FORMAT,
            tool_version=__version__,
            recipe=dict(recipe),
            attribute_names=tuple(attribute_names),
            class_names=tuple(class_names),
            bias_names=tuple(bias_names),
            aligned=tuple((range(classes) if biases else ()) if aligned is None else aligned),
            splits={name: record_of(name, split, classes, biases, checksums) for name, split in splits.items()},
            digest=digest_of(checksums),
        )
        (self._folder / MANIFEST).write_text(_to_json(manifest), encoding="utf-8")
        self.written = manifest, checksums


@contextmanager
def new_dataset(path: Path, *, replace: bool) -> Iterator[DatasetWriter]:
    """Write a data set to a temporary folder; it is renamed to `path` when the body ends without an error.

    Args:
        path: the folder to make.
        replace: put it in the place of an existing data set.
    Raises:
        DataError: `path` exists and is no data set, or is one and `replace` is false.
        OSError: the disk is full or may not be written; nothing half-written stays.
    Source: the folder layout of LfF (NeurIPS 2020).
    """
    if path.exists():
        _check_replaceable(path, replace)
    with atomic_folder(path.resolve(), replace=replace) as folder:
        yield DatasetWriter(folder)


def write_dataset(
    path: Path,
    splits: Mapping[str, Split],
    *,
    recipe: Mapping[str, Scalar],
    attribute_names: Sequence[str],
    class_names: Sequence[str],
    bias_names: Sequence[str],
    replace: bool,
) -> StoredDataset:
    """Write a data set that is in memory, and open it.

    Args:
        path: the folder to make.
        splits: "train" and "valid", "test" or both.
        recipe: as for `DatasetWriter.describe`, and so the names.
        attribute_names: of target and bias.
        class_names: one a class.
        bias_names: one a bias value.
        replace: put it in the place of an existing data set.
    Raises:
        DataError: arrays that do not fit; `path` exists and is no data set, or is one and `replace` is false.
        OSError: the disk is full or may not be written; nothing half-written stays.
    """
    for name, split in splits.items():
        check_images(split.images, f"images of split {name}")
        check_labels(split, f"labels of split {name}", len(class_names), len(bias_names))
    check_one_size(splits, str(path))
    with new_dataset(path, replace=replace) as writer:
        for name, split in splits.items():
            with writer.split(name) as out:
                out.add(split.images, split.target, split.bias)
        writer.describe(recipe=recipe, attribute_names=attribute_names, class_names=class_names, bias_names=bias_names)
    return opened(path, writer)


def opened(path: Path, writer: DatasetWriter) -> StoredDataset:
    """The data set that was just written, without computing its digests again."""
    manifest, checksums = writer.written
    splits = {name: open_split(path, name) for name in manifest.splits}
    return StoredDataset(path, splits, manifest.digest, manifest, checksums)


def _check_replaceable(path: Path, replace: bool) -> None:
    if not looks_like_dataset(path):
        raise DataError(
            f"{path} exists and is not a data set folder (no {MANIFEST}, no train/{IMAGES}); it is left as it is.",
            "Move it away or choose another folder (`--data-root`).",
        )
    if not replace:
        raise DataError(
            f"Data set folder {path} exists already; it is left as it is.",
            "Say `--force` to replace it, or choose another folder (`--data-root`).",
        )


def _to_json(manifest: Manifest) -> str:
    text = json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"
    # One line a row of numbers; a string cannot match, since its line breaks are escaped.
    return re.sub(r"\[\n([\d,\s]+)\]", lambda match: f"[{' '.join(match[1].split())}]", text)

"""The data set on the disk: the folder layout of LfF and DeNetDM, plus a manifest of how it was made."""

import dataclasses
import hashlib
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from denetdm_cli import __version__
from denetdm_cli.errors import DataError
from denetdm_cli.files import atomic_folder, sha256

MANIFEST = "manifest.json"
SPLITS = ("train", "valid", "test")
EVALUATION = "valid"
"""The folder that holds the evaluation split; LfF's layout calls it so."""

Scalar: TypeAlias = str | int | float | bool | None
"""What a recipe may hold: the JSON values that are not containers."""

_FORMAT = 1
_REQUIRED = ("train", "valid")
_IMAGES = "images.npy"
_ATTRS = "attrs.npy"
_ATTR_NAMES = "attr_names.pkl"
_FIX = "Make the data set again (`denetdm make-data ... --force`) or put back a complete copy of the folder."
_HASHING_THREADS = 4


@dataclass(frozen=True)
class Split:
    """One split of a data set, image by image.

    Args:
        images: (N, H, W, 3) uint8, RGB; memory-mapped when opened from the disk.
        target: (N,) uint8, the class.
        bias: (N,) uint8, the value of the bias attribute.
    """

    images: NDArray[np.uint8]
    target: NDArray[np.uint8]
    bias: NDArray[np.uint8]

    def group_counts(self, classes: int) -> NDArray[np.int64]:
        """Images per group, as a (classes, classes) int64 table indexed [target, bias].

        Raises:
            ValueError: a label is not below `classes`.
        """
        if max(self.target.max(initial=0), self.bias.max(initial=0)) >= classes:
            raise ValueError(f"a label is not below {classes}")
        pairs = self.target.astype(np.int64) * classes + self.bias
        return np.bincount(pairs, minlength=classes * classes).astype(np.int64).reshape(classes, classes)


@dataclass(frozen=True)
class SplitRecord:
    """What the manifest says of one split; `sha256` is by file name."""

    images: int
    image_shape: tuple[int, ...]
    group_counts: tuple[tuple[int, ...], ...]
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """How a data set was made and what is in it; the recipe holds every setting that decides a byte."""

    format: int
    tool_version: str
    recipe: Mapping[str, Scalar]
    attribute_names: tuple[str, ...]
    class_names: tuple[str, ...]
    bias_names: tuple[str, ...]
    splits: Mapping[str, SplitRecord]
    digest: str


@dataclass(frozen=True)
class StoredDataset:
    """A data set opened from the disk and checked.

    Args:
        path: its folder.
        splits: by folder name: "train", "valid" and, where there is one, "test".
        digest: SHA-256 over the bytes on the disk, as `sha256sum */*.npy | sha256sum` in the folder gives it.
        manifest: None for a folder made by another tool.
        checksums: SHA-256 by file, such as "valid/images.npy".
    """

    path: Path
    splits: dict[str, Split]
    digest: str
    manifest: Manifest | None
    checksums: Mapping[str, str]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; their numbers where another tool made the folder."""
        return self.manifest.class_names if self.manifest else self._numbers("target")

    @property
    def bias_names(self) -> tuple[str, ...]:
        """Names of the bias values; their numbers where another tool made the folder."""
        return self.manifest.bias_names if self.manifest else self._numbers("bias")

    @property
    def evaluation_digest(self) -> str:
        """SHA-256 of the evaluation images; the same for all conflict ratios of a recipe and seed."""
        return self.checksums[f"{EVALUATION}/{_IMAGES}"]

    def _numbers(self, attribute: str) -> tuple[str, ...]:
        highest = max(int(getattr(split, attribute).max()) for split in self.splits.values())
        return tuple(str(value) for value in range(highest + 1))


def looks_like_dataset(path: Path) -> bool:
    """Whether `path` is a folder that may be taken for a data set, whole or damaged."""
    return (path / MANIFEST).is_file() or (path / "train" / _IMAGES).is_file()


def write_dataset(
    path: Path,
    splits: Mapping[str, Split],
    *,
    recipe: Mapping[str, Scalar],
    attribute_names: tuple[str, str],
    class_names: Sequence[str],
    bias_names: Sequence[str],
    replace: bool,
) -> StoredDataset:
    """Write a data set to a temporary folder, rename it to `path` and open it.

    Args:
        path: the folder to make.
        splits: "train", "valid" and perhaps "test".
        recipe: name and settings, for the manifest.
        attribute_names: of target and bias, for the readers of LfF.
        class_names: one a class.
        bias_names: one a bias value; as many as classes.
        replace: put it in the place of an existing data set.
    Raises:
        DataError: arrays that do not fit; `path` exists and is no data set, or is one and `replace` is false.
        OSError: the disk is full or may not be written; nothing half-written stays.
    Source: the folder layout of LfF (NeurIPS 2020).
    """
    classes = len(class_names)
    for name, split in splits.items():
        _check_images(split.images, f"images of split {name}")
        _check_labels(split, f"labels of split {name}", classes)
    _check_one_size(splits, str(path))
    if path.exists():
        _check_replaceable(path, replace)
    with atomic_folder(path.resolve(), replace=replace) as folder:
        for name, split in splits.items():
            (folder / name).mkdir()
            _save(folder / name / _IMAGES, split.images)
            _save(folder / name / _ATTRS, np.stack([split.target, split.bias], axis=1))
        # LfF opens this pickle; we never do.
        (folder / _ATTR_NAMES).write_bytes(pickle.dumps(list(attribute_names), protocol=2))
        checksums = _checksums(folder, splits)
        manifest = Manifest(
            format=_FORMAT,
            tool_version=__version__,
            recipe=dict(recipe),
            attribute_names=tuple(attribute_names),
            class_names=tuple(class_names),
            bias_names=tuple(bias_names),
            splits={name: _record(name, split, classes, checksums) for name, split in splits.items()},
            digest=_digest(checksums),
        )
        (folder / MANIFEST).write_text(_to_json(manifest), encoding="utf-8")
    return StoredDataset(path, {name: _open_split(path, name) for name in splits}, manifest.digest, manifest, checksums)


def open_dataset(path: Path, *, classes: int | None = None) -> StoredDataset:
    """Open a data set folder, ours or another tool's, and check all of it.

    Args:
        path: the folder that holds `train/` and `valid/`.
        classes: labels must be below this, when given.
    Raises:
        DataError: something is missing, is not what the layout says, or has changed since the manifest was written.
    Source: the folder layout of LfF (NeurIPS 2020).
    """
    if not path.is_dir():
        found = "is a file, not a folder" if path.exists() else "does not exist"
        raise DataError(
            f"Data set folder {path} {found}.",
            "Make it (`denetdm make-data`) or give the folder that holds train/ and valid/.",
        )
    names = [name for name in SPLITS if name in _REQUIRED or (path / name).is_dir()]
    splits = {name: _open_split(path, name) for name in names}
    _check_one_size(splits, str(path))
    if classes is not None:
        for name, split in splits.items():
            _check_labels(split, f"{path / name / _ATTRS}", classes)
    checksums = _checksums(path, splits)
    manifest = _read_manifest(path / MANIFEST) if (path / MANIFEST).exists() else None
    if manifest is not None:
        _check_manifest(path, manifest, splits, checksums)
    return StoredDataset(path, splits, _digest(checksums), manifest, checksums)


def require_groups(split: Split, name: str, classes: int) -> None:
    """Refuse a split in which a (target, bias) group has no image, since its accuracy would have no value.

    Raises:
        DataError: names the missing groups, or the label that is out of range.
    """
    _check_labels(split, f"labels of split {name}", classes)
    missing = [(int(target), int(bias)) for target, bias in np.argwhere(split.group_counts(classes) == 0)]
    if missing:
        shown = ", ".join(str(group) for group in missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise DataError(
            f"Split {name} has no image in {len(missing)} of {classes * classes} (target, bias) groups: {shown}.",
            "Evaluation averages over groups: use a split with at least one image in every group.",
        )


def _open_split(path: Path, name: str) -> Split:
    images = _load(path / name / _IMAGES, memory_mapped=True)
    _check_images(images, str(path / name / _IMAGES))
    attrs = _load(path / name / _ATTRS, memory_mapped=False)
    where = f"{path / name / _ATTRS}"
    if attrs.ndim != 2 or attrs.shape[1] != 2 or not np.issubdtype(attrs.dtype, np.integer):
        _refuse(where, _describe(attrs), "whole numbers of shape (N, 2): target and bias of every image")
    if len(attrs) != len(images):
        _refuse(where, f"labels of {len(attrs)} images", f"{len(images)}, as many as {_IMAGES} beside it holds")
    if attrs.min() < 0 or attrs.max() > 255:
        _refuse(where, f"labels from {attrs.min()} to {attrs.max()}", "labels from 0 to 255")
    target, bias = np.ascontiguousarray(attrs.T, dtype=np.uint8)
    return Split(images, target, bias)


def _load(file: Path, *, memory_mapped: bool) -> NDArray[Any]:
    if not file.is_file():
        raise DataError(f"{file} is missing.", _FIX)
    try:
        array: Any = np.load(file, mmap_mode="r" if memory_mapped else None, allow_pickle=False)
    except (ValueError, EOFError, OverflowError, BadZipFile, MemoryError) as error:
        raise DataError(f"{file} is damaged or is not a .npy array: {_one_line(error)}", _FIX) from error
    if isinstance(array, np.ndarray):
        return array
    raise DataError(f"{file}: found an archive of arrays (.npz); expected one array (.npy).", _FIX)


def _save(file: Path, array: NDArray[np.uint8]) -> None:
    # Not np.save: it hides the error number when the disk is full.
    array = np.ascontiguousarray(array)
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.data)


def _check_images(images: NDArray[Any], where: str) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        _refuse(where, _describe(images), "uint8 of shape (N, H, W, 3) with at least one image")


def _check_labels(split: Split, where: str, classes: int) -> None:
    for attribute, labels in (("target", split.target), ("bias", split.bias)):
        if labels.dtype != np.uint8 or labels.shape != split.images.shape[:1]:
            _refuse(where, f"{attribute} {_describe(labels)}", f"uint8 of shape ({len(split.images)},)")
        if labels.max() >= classes:
            _refuse(where, f"{attribute} label {labels.max()}", f"labels from 0 to {classes - 1}")


def _check_one_size(splits: Mapping[str, Split], where: str) -> None:
    sizes = {name: split.images.shape[1:3] for name, split in splits.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
        _refuse(where, f"images of different sizes: {found}", "one height and width over all splits")


def _check_replaceable(path: Path, replace: bool) -> None:
    if not looks_like_dataset(path):
        raise DataError(
            f"{path} exists and is not a data set folder (no {MANIFEST}, no train/{_IMAGES}); it is left as it is.",
            "Move it away or choose another folder (`--data-root`).",
        )
    if not replace:
        raise DataError(
            f"Data set folder {path} exists already; it is left as it is.",
            "Say `--force` to replace it, or choose another folder (`--data-root`).",
        )


def _checksums(path: Path, splits: Mapping[str, Split]) -> dict[str, str]:
    names = sorted(f"{split}/{file}" for split in splits for file in (_ATTRS, _IMAGES))
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: sha256(path / name), names), strict=True))


def _digest(checksums: Mapping[str, str]) -> str:
    lines = "".join(f"{checksum}  {name}\n" for name, checksum in sorted(checksums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _record(name: str, split: Split, classes: int, checksums: Mapping[str, str]) -> SplitRecord:
    return SplitRecord(
        images=len(split.images),
        image_shape=tuple(split.images.shape[1:]),
        group_counts=tuple(tuple(row) for row in split.group_counts(classes).tolist()),
        sha256={file: checksums[f"{name}/{file}"] for file in (_ATTRS, _IMAGES)},
    )


def _to_json(manifest: Manifest) -> str:
    text = json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"
    # One line a row of numbers; a string cannot match, since its line breaks are escaped.
    return re.sub(r"\[\n([\d,\s]+)\]", lambda match: f"[{' '.join(match[1].split())}]", text)


def _read_manifest(file: Path) -> Manifest:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        version = raw["format"]
        if version == _FORMAT:
            return Manifest(
                format=version,
                tool_version=str(raw["tool_version"]),
                recipe=dict(raw["recipe"]),
                attribute_names=tuple(raw["attribute_names"]),
                class_names=tuple(raw["class_names"]),
                bias_names=tuple(raw["bias_names"]),
                splits={name: _read_record(record) for name, record in raw["splits"].items()},
                digest=str(raw["digest"]),
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else _one_line(error)
        raise DataError(f"{file} is damaged or is not a manifest of denetdm: {reason}", _FIX) from error
    raise DataError(
        f"{file} has format {version!r}, expected {_FORMAT} (this is denetdm {__version__}).",
        "Use the version of denetdm that made the data set, or make it again (`denetdm make-data ... --force`).",
    )


def _read_record(raw: Mapping[str, Any]) -> SplitRecord:
    return SplitRecord(
        images=raw["images"],
        image_shape=tuple(raw["image_shape"]),
        group_counts=tuple(tuple(row) for row in raw["group_counts"]),
        sha256=dict(raw["sha256"]),
    )


def _check_manifest(path: Path, manifest: Manifest, splits: Mapping[str, Split], checksums: Mapping[str, str]) -> None:
    where = path / MANIFEST
    if set(manifest.splits) != set(splits):
        _refuse(str(path), f"splits {', '.join(splits)}", f"{', '.join(manifest.splits)}, as {MANIFEST} says")
    for name, checksum in checksums.items():
        folder, file = name.split("/")
        noted = manifest.splits[folder].sha256.get(file)
        if noted != checksum:
            raise DataError(
                f"{path / name} has changed since the data set was made: SHA-256 {checksum}, {MANIFEST} says {noted}.",
                _FIX,
            )
    classes = len(manifest.class_names)
    for name, split in splits.items():
        _check_labels(split, f"{path / name / _ATTRS}", classes)
        if manifest.splits[name] != _record(name, split, classes, checksums):
            _refuse(str(where), f"counts or shape of split {name} that differ", "those of the files beside it")
    if manifest.digest != _digest(checksums):
        _refuse(str(where), f"digest {manifest.digest}", _digest(checksums))


def _refuse(where: str, found: str, expected: str) -> None:
    raise DataError(f"{where}: found {found}; expected {expected}.", _FIX)


def _describe(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

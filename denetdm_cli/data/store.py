"""The data set on the disk: the folder layout of LfF and DeNetDM, plus a manifest of how it was made."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from denetdm_cli import __version__
from denetdm_cli.utils.errors import DataError
from denetdm_cli.utils.files import sha256, write_text

MANIFEST = "manifest.json"
SPLITS = ("train", "valid", "test")
IMAGES = "images.npy"
ATTRS = "attrs.npy"
FILES = "files.json"
FORMAT = 1

Scalar: TypeAlias = str | int | float | bool | None
"""What a recipe may hold: the JSON values that are not containers."""

_VERIFIED = ".verified.json"
_LARGE = 1 << 30
_FIX = "Make the data set again (`denetdm make-data ... --force`) or put back a complete copy of the folder."
_HASHING_THREADS = 4


@dataclass(frozen=True)
class Split:
    """One split of a data set, image by image.

    Args:
        images: (N, H, W, 3) uint8, RGB; memory-mapped when opened from the disk.
        target: (N,) uint8, the class.
        bias: (N,) uint8, the value of the bias attribute; None where nobody labelled it.
    """

    images: NDArray[np.uint8]
    target: NDArray[np.uint8]
    bias: NDArray[np.uint8] | None

    def group_counts(self, classes: int, biases: int) -> NDArray[np.int64]:
        """Images per group, as a (classes, biases) int64 table indexed [target, bias]; one column without bias labels.

        Raises:
            ValueError: a label is out of range.
        """
        bias = np.zeros_like(self.target) if self.bias is None else self.bias
        columns = 1 if self.bias is None else biases
        if self.target.max(initial=0) >= classes or bias.max(initial=0) >= columns:
            raise ValueError(f"a label is not below {classes} (target) or {columns} (bias)")
        pairs = self.target.astype(np.int64) * columns + bias
        return np.bincount(pairs, minlength=classes * columns).astype(np.int64).reshape(classes, columns)


@dataclass(frozen=True)
class SplitRecord:
    """What the manifest says of one split; `sha256` is by file name."""

    images: int
    image_shape: tuple[int, ...]
    group_counts: tuple[tuple[int, ...], ...]
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """How a data set was made and what is in it; the recipe holds every setting that decides a byte.

    `aligned` is the bias value tied to each class; `bias_names` and `aligned` are empty without bias labels.
    """

    format: int
    tool_version: str
    recipe: Mapping[str, Scalar]
    attribute_names: tuple[str, ...]
    class_names: tuple[str, ...]
    bias_names: tuple[str, ...]
    aligned: tuple[int, ...]
    splits: Mapping[str, SplitRecord]
    digest: str


@dataclass(frozen=True)
class StoredDataset:
    """A data set opened from the disk and checked.

    Args:
        path: its folder.
        splits: by folder name: "train" and "valid", "test" or both.
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
        """Names of the bias values; their numbers where another tool made the folder, none without bias labels."""
        return self.manifest.bias_names if self.manifest else self._numbers("bias")

    @property
    def aligned(self) -> tuple[int, ...]:
        """The bias value tied to each class; the same number where another tool made the folder."""
        return self.manifest.aligned if self.manifest else tuple(range(len(self.class_names)))

    @property
    def evaluation_name(self) -> str:
        """The split that results are reported on: `test`, or `valid` where it is the only one (LfF's layout)."""
        return "test" if "test" in self.splits else "valid"

    @property
    def evaluation(self) -> Split:
        """The split that results are reported on."""
        return self.splits[self.evaluation_name]

    @property
    def held_out(self) -> Split | None:
        """The split to select on, where the data set has one of its own beside the evaluation split."""
        return self.splits["valid"] if "test" in self.splits and "valid" in self.splits else None

    @property
    def evaluation_digest(self) -> str:
        """SHA-256 of the evaluation images; the same for all conflict ratios of a recipe and seed."""
        return self.checksums[f"{self.evaluation_name}/{IMAGES}"]

    @property
    def valid_digest(self) -> str | None:
        """SHA-256 of the images of the split to select on, where it is one of its own."""
        return None if self.held_out is None else self.checksums[f"valid/{IMAGES}"]

    def files(self, split: str) -> list[str] | None:
        """Names of the files that the images of a split come from; None where that is not known."""
        path = self.path / split / FILES
        try:
            names = [str(name) for name in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            return None
        return names if len(names) == len(self.splits[split].target) else None

    def _numbers(self, attribute: str) -> tuple[str, ...]:
        found = [labels for split in self.splits.values() if (labels := getattr(split, attribute)) is not None]
        return tuple(str(value) for value in range(max((int(labels.max()) for labels in found), default=-1) + 1))


def looks_like_dataset(path: Path) -> bool:
    """Whether `path` is a folder that may be taken for a data set, whole or damaged."""
    return (path / MANIFEST).is_file() or (path / "train" / IMAGES).is_file()


def open_dataset(path: Path, *, classes: int | None = None, thorough: bool = False) -> StoredDataset:
    """Open a data set folder, ours or another tool's, and check all of it.

    Args:
        path: the folder that holds `train/` and `valid/` or `test/`.
        classes: target labels must be below this, when given.
        thorough: read again also a file over 1 GiB that has not been touched since its digest was last computed.
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
    names = [name for name in SPLITS if (path / name).is_dir()]
    if "train" not in names or len(names) == 1:
        raise DataError(
            f"Data set folder {path} has no folder {'train' if 'train' not in names else 'valid or test'}.", _FIX
        )
    splits = {name: open_split(path, name) for name in names}
    check_one_size(splits, str(path))
    if classes is not None:
        for name, split in splits.items():
            check_labels(split, f"{path / name / ATTRS}", classes)
    checksums = checksums_of(path, splits, thorough=thorough)
    manifest = _read_manifest(path / MANIFEST) if (path / MANIFEST).exists() else None
    if manifest is not None:
        _check_manifest(path, manifest, splits, checksums)
    return StoredDataset(path, splits, digest_of(checksums), manifest, checksums)


def require_groups(split: Split, name: str, classes: int) -> None:
    """Refuse a split in which a (target, bias) group has no image, where a recipe promises that there are none.

    Raises:
        DataError: names the missing groups, or the label that is out of range.
    """
    check_labels(split, f"labels of split {name}", classes, classes)
    missing = [(int(target), int(bias)) for target, bias in np.argwhere(split.group_counts(classes, classes) == 0)]
    if missing:
        shown = ", ".join(str(group) for group in missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise DataError(
            f"Split {name} has no image in {len(missing)} of {classes * classes} (target, bias) groups: {shown}.",
            "Evaluation averages over groups: use a split with at least one image in every group.",
        )


def open_split(path: Path, name: str) -> Split:
    """Map the images of one split and read its labels.

    Raises:
        DataError: a file is missing or is not what the layout says.
    """
    images = _load(path / name / IMAGES, memory_mapped=True)
    check_images(images, str(path / name / IMAGES))
    attrs = _load(path / name / ATTRS, memory_mapped=False)
    where = f"{path / name / ATTRS}"
    if attrs.ndim != 2 or attrs.shape[1] not in (1, 2) or not np.issubdtype(attrs.dtype, np.integer):
        _refuse(where, _describe(attrs), "whole numbers of shape (N, 2): target and bias of every image")
    if len(attrs) != len(images):
        _refuse(where, f"labels of {len(attrs)} images", f"{len(images)}, as many as {IMAGES} beside it holds")
    if attrs.min() < 0 or attrs.max() > 255:
        _refuse(where, f"labels from {attrs.min()} to {attrs.max()}", "labels from 0 to 255")
    columns = np.ascontiguousarray(attrs.T, dtype=np.uint8)
    return Split(images, columns[0], columns[1] if len(columns) == 2 else None)


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


def check_images(images: NDArray[Any], where: str) -> None:
    """Refuse what is no stack of RGB images, naming `where`."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        _refuse(where, _describe(images), "uint8 of shape (N, H, W, 3) with at least one image")


def check_labels(split: Split, where: str, classes: int, biases: int | None = None) -> None:
    """Refuse labels of another shape, or that are not below `classes` (target) and `biases` (bias)."""
    for attribute, labels, limit in (("target", split.target, classes), ("bias", split.bias, biases)):
        if labels is None:
            continue
        if labels.dtype != np.uint8 or labels.shape != split.images.shape[:1]:
            _refuse(where, f"{attribute} {_describe(labels)}", f"uint8 of shape ({len(split.images)},)")
        if limit is not None and labels.max() >= limit:
            _refuse(where, f"{attribute} label {labels.max()}", f"labels from 0 to {limit - 1}")


def check_one_size(splits: Mapping[str, Split], where: str) -> None:
    """Refuse splits whose images differ in height or width."""
    sizes = {name: split.images.shape[1:3] for name, split in splits.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
        _refuse(where, f"images of different sizes: {found}", "one height and width over all splits")


def checksums_of(path: Path, splits: Mapping[str, Split], *, thorough: bool = False) -> dict[str, str]:
    """SHA-256 by file; that of an untouched file over 1 GiB is remembered in the folder unless `thorough`."""
    names = sorted(f"{split}/{file}" for split in splits for file in (ATTRS, IMAGES))
    stamps = {name: [(status := (path / name).stat()).st_size, status.st_mtime_ns] for name in names}
    known: dict[str, Any] = {}
    if not thorough:
        with contextlib.suppress(OSError, ValueError):
            known = dict(json.loads((path / _VERIFIED).read_text(encoding="utf-8")))

    stopped = threading.Event()

    def checksum(name: str) -> str:
        if stamps[name][0] > _LARGE and known.get(name, {}).get("stamp") == stamps[name]:
            return str(known[name]["sha256"])
        return sha256(path / name, stopped.is_set)

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        try:
            found = dict(zip(names, pool.map(checksum, names), strict=True))
        finally:
            stopped.set()  # or one who stops the program would wait for gigabytes to be read
    remembered = {name: {"stamp": stamp, "sha256": found[name]} for name, stamp in stamps.items() if stamp[0] > _LARGE}
    if remembered and remembered != known:
        with contextlib.suppress(OSError):  # a folder that may only be read is hashed every time
            write_text(path / _VERIFIED, json.dumps(remembered, indent=2) + "\n")
    return found


def digest_of(checksums: Mapping[str, str]) -> str:
    """One SHA-256 for all files, as `sha256sum */*.npy | sha256sum` gives it."""
    lines = "".join(f"{checksum}  {name}\n" for name, checksum in sorted(checksums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def record_of(name: str, split: Split, classes: int, biases: int, checksums: Mapping[str, str]) -> SplitRecord:
    """What the manifest says of a split."""
    return SplitRecord(
        images=len(split.images),
        image_shape=tuple(split.images.shape[1:]),
        group_counts=tuple(tuple(row) for row in split.group_counts(classes, biases).tolist()),
        sha256={file: checksums[f"{name}/{file}"] for file in (ATTRS, IMAGES)},
    )


def _read_manifest(file: Path) -> Manifest:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        version = raw["format"]
        if version == FORMAT:
            return Manifest(
                format=version,
                tool_version=str(raw["tool_version"]),
                recipe=dict(raw["recipe"]),
                attribute_names=tuple(raw["attribute_names"]),
                class_names=tuple(raw["class_names"]),
                bias_names=tuple(raw["bias_names"]),
                # The first manifests, all of them of Colored MNIST, lack this field.
                aligned=tuple(raw.get("aligned", range(len(raw["bias_names"])))),
                splits={name: _read_record(record) for name, record in raw["splits"].items()},
                digest=str(raw["digest"]),
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else _one_line(error)
        raise DataError(f"{file} is damaged or is not a manifest of denetdm: {reason}", _FIX) from error
    raise DataError(
        f"{file} has format {version!r}, expected {FORMAT} (this is denetdm {__version__}).",
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
    classes, biases = len(manifest.class_names), len(manifest.bias_names)
    if len(manifest.aligned) not in (0, classes) or not all(value in range(biases) for value in manifest.aligned):
        _refuse(str(where), f"aligned bias values {manifest.aligned}", f"one below {biases} for each class")
    for name, split in splits.items():
        check_labels(split, f"{path / name / ATTRS}", classes, biases)
        if manifest.splits[name] != record_of(name, split, classes, biases, checksums):
            _refuse(str(where), f"counts or shape of split {name} that differ", "those of the files beside it")
    if manifest.digest != digest_of(checksums):
        _refuse(str(where), f"digest {manifest.digest}", digest_of(checksums))


def _refuse(where: str, found: str, expected: str) -> None:
    raise DataError(f"{where}: found {found}; expected {expected}.", _FIX)


def _describe(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

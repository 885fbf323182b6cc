"""CIFAR-10 from its pickled batches, their archive, or a tree of class folders."""

import functools
import hashlib
import io
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from denetdm_cli.data.raw.sources import (
    Files,
    Place,
    UnusableError,
    downloaded,
    first_usable,
    is_litter,
    load_arrays,
    member_name,
    read_file,
    zip_members,
)
from denetdm_cli.utils.errors import DataError
from denetdm_cli.utils.files import atomic_file

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

BATCHES = (
    ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
    ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
    ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
    ("data_batch_4", "634d18415352ddfa80567beed471001a"),
    ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    ("test_batch", "40351d587109b95175f43aff81a1287e"),
)
"""The canonical CIFAR-10: name and MD5 of the pickled batches; the last is the test set."""

ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"

_FOLDER = "cifar-10-batches-py"
_ARCHIVE = "cifar-10-python.tar.gz"
_BATCH_LIMIT = 1 << 25
_CHUNK = 1 << 20
_DOWNLOAD_SECONDS = 300.0
_DOWNLOAD_CODE = """
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_url
download_url(CIFAR10.url, sys.argv[1], CIFAR10.filename, CIFAR10.tgz_md5)
"""

_SPLITS = ("train", "test")
_SUFFIXES = (".jpg", ".jpeg", ".png")
_IMAGE_LIMIT = 1 << 20
_SIDE = 32
_TREE = f"class folders (train/{CLASS_NAMES[0]}/*.png ... test/{CLASS_NAMES[-1]}/*.png; .jpg as well)"


@dataclass(frozen=True)
class Cifar10:
    """The whole of CIFAR-10, or a smaller copy with at least one image a class and split.

    Args:
        train_images: (50000, 32, 32, 3) uint8, RGB.
        train_labels: (50000,) uint8, indices into `CLASS_NAMES`.
        test_images: (10000, 32, 32, 3) uint8, RGB.
        test_labels: (10000,) uint8.
        origin: "batches" (the canonical bytes) or "class folders" (whatever was in them).
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    origin: str

    def digests(self) -> dict[str, str]:
        """SHA-256 of the bytes of the four arrays, by the names of the fields."""
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return {name: hashlib.sha256(np.ascontiguousarray(getattr(self, name)).data).hexdigest() for name in names}


def load_cifar10(root: Path, source: Path | None, info: Callable[[str], None]) -> Cifar10:
    """Read CIFAR-10 from the first place that has it; batches are checked against the canonical bytes.

    Args:
        root: the data root; an earlier download lies in it, and a new one is kept there.
        source: the folder of the batches or the one around it, their .tar.gz, a folder of class folders or a .zip of
            such a folder; when given, nothing else is tried.
        info: called with one line on what takes long.
    Raises:
        DataError: `source` is missing, incomplete, damaged or another data set.
        DownloadError: no place has it; lists each with its reason.
    """
    if source is not None:
        return _from_source(source, info)
    folder, archive = root / _FOLDER, root / _ARCHIVE
    places: list[Place[Cifar10]] = []
    if any((folder / name).is_file() for name, _ in BATCHES):
        places.append(Place("earlier copy", lambda: _read_batch_folder(folder)))
    if archive.is_file():
        places.append(Place("earlier download", lambda: _read_archive(archive)))
    places.append(Place("torchvision's downloader (170 MB)", lambda: _download(archive), _DOWNLOAD_SECONDS))
    fix = (
        f"Get {_ARCHIVE} (MD5 {ARCHIVE_MD5}) from anywhere and say `--source FILE`, or put it into {root}. "
        f"A folder or a .zip of {_TREE} does as well."
    )
    return first_usable("CIFAR-10", places, info, fix)


def lazy_cifar10(root: Path, source: Path | None, info: Callable[[str], None]) -> Callable[[], Cifar10]:
    """A function that calls `load_cifar10` the first time it is called and remembers the result."""
    return functools.cache(lambda: load_cifar10(root, source, info))


def _from_source(source: Path, info: Callable[[str], None]) -> Cifar10:
    fix = (
        f"Give the folder {_FOLDER} or the one that holds it, {_ARCHIVE} (MD5 {ARCHIVE_MD5}), or a folder or .zip of "
        f"{_TREE}; or leave `--source` out to download CIFAR-10."
    )
    if not source.exists():
        raise DataError(f"CIFAR-10 source {source} does not exist.", fix)
    try:
        return _read_source_folder(source, info) if source.is_dir() else _read_source_file(source, info)
    except UnusableError as error:
        raise DataError(f"CIFAR-10 source {source}: {error}.", fix) from error


def _read_source_folder(source: Path, info: Callable[[str], None]) -> Cifar10:
    for folder in (source, source / _FOLDER):
        if any((folder / name).is_file() for name, _ in BATCHES):
            return _read_batch_folder(folder)
    if (source / _ARCHIVE).is_file():
        return _read_archive(source / _ARCHIVE)
    if not any((source / split).is_dir() for split in _SPLITS):
        raise UnusableError("the folder holds neither batches nor train/ and test/")
    return _read_tree({name: partial(read_file, path, _IMAGE_LIMIT) for name, path in _tree_files(source)}, info)


def _read_source_file(source: Path, info: Callable[[str], None]) -> Cifar10:
    with source.open("rb") as file:
        start = file.read(2)
    if start == b"\x1f\x8b":
        return _read_archive(source)
    if start != b"PK":
        raise UnusableError(f"the file is neither a .tar.gz nor a .zip (it starts with {start.hex() or 'nothing'})")
    with zip_members(source, _IMAGE_LIMIT) as members:
        return _read_tree(_without_leading_folder(members), info)


# Batches


def _download(archive: Path) -> Cifar10:
    with downloaded(_DOWNLOAD_CODE, _DOWNLOAD_SECONDS) as folder:
        cifar = _read_archive(folder / _ARCHIVE)
        with atomic_file(archive) as temporary:
            shutil.copyfile(folder / _ARCHIVE, temporary)
    return cifar


def _read_batch_folder(folder: Path) -> Cifar10:
    missing = [name for name, _ in BATCHES if not (folder / name).is_file()]
    if missing:
        raise UnusableError(f"{folder} has no {', '.join(missing)}")
    return _read_batches({name: partial(read_file, folder / name, _BATCH_LIMIT) for name, _ in BATCHES})


def _read_archive(path: Path) -> Cifar10:
    if not path.is_file():
        raise UnusableError(f"there is no {path.name}")
    with path.open("rb") as file:
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != ARCHIVE_MD5:
        raise UnusableError(
            f"{path.name} is cut off, damaged or another file: MD5 {digest.hexdigest()}, expected {ARCHIVE_MD5}"
        )
    wanted = {f"{_FOLDER}/{name}": name for name, _ in BATCHES}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member_name(member.name, path.name, link=member.issym() or member.islnk())
                if member.size > _BATCH_LIMIT:
                    raise UnusableError(f"{path.name}/{name} is too large ({member.size:,} bytes)")
                if name in wanted and (content := archive.extractfile(member)) is not None:
                    contents[wanted[name]] = content.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UnusableError(f"{path.name} cannot be read ({error})") from None
    missing = [name for name, _ in BATCHES if name not in contents]
    if missing:
        raise UnusableError(f"{path.name} has no {', '.join(missing)} in {_FOLDER}/")
    return _read_batches({name: partial(contents.__getitem__, name) for name in contents})


def _read_batches(files: Files) -> Cifar10:
    read = [_read_batch(name, md5, files[name]()) for name, md5 in BATCHES]
    images, labels = ([batch[part] for batch in read] for part in (0, 1))
    return Cifar10(np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1], "batches")


def _read_batch(name: str, md5: str, content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The images (N, 32, 32, 3) and labels (N,) of one batch, which is unpickled only if its MD5 is right."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UnusableError(f"{name} is cut off, damaged or another file: MD5 {found}, expected {md5}")
    try:
        batch = load_arrays(content)
        data, labels = batch["data"], np.array(batch["labels"])
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UnusableError(f"{name} is not the pickle expected ({error})") from None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (labels.size, 3 * _SIDE * _SIDE):
        raise UnusableError(f"{name} does not hold one row of {3 * _SIDE * _SIDE} bytes for each label")
    if labels.ndim != 1 or not np.isin(labels, range(len(CLASS_NAMES))).all():
        raise UnusableError(f"{name} has labels other than 0 to {len(CLASS_NAMES) - 1}")
    images = data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.uint8)


# Class folders


def _tree_files(source: Path) -> Iterator[tuple[str, Path]]:
    for split in _SPLITS:
        kinds = (source / split).iterdir() if (source / split).is_dir() else ()
        for folder in kinds:
            if folder.is_dir():
                yield from ((f"{split}/{folder.name}/{path.name}", path) for path in folder.iterdir())


def _without_leading_folder(files: Files) -> Files:
    names = [name.split("/") for name in files]
    if any(parts[0] in _SPLITS for parts in names):
        return files
    leading = {parts[0] for parts in names if len(parts) > 2 and parts[1] in _SPLITS and not any(map(is_litter, parts))}
    if len(leading) != 1:
        raise UnusableError("the .zip does not hold train/ and test/, by themselves or in one folder")
    start = f"{leading.pop()}/"
    return {name.removeprefix(start): read for name, read in files.items() if name.startswith(start)}


def _read_tree(files: Files, info: Callable[[str], None]) -> Cifar10:
    """Decode the images of a tree, class by class and sorted by name, whatever order they are listed in."""
    folders = _by_class(files)
    info(f"CIFAR-10: decoding {sum(map(len, folders.values())):,} images")
    (train_images, train_labels), (test_images, test_labels) = (_decode_split(files, folders, name) for name in _SPLITS)
    return Cifar10(train_images, train_labels, test_images, test_labels, "class folders")


def _decode_split(
    files: Files, folders: dict[tuple[str, str], list[str]], split: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    counts = [len(folders[split, kind]) for kind in CLASS_NAMES]
    images = np.empty((sum(counts), _SIDE, _SIDE, 3), np.uint8)
    names = (name for kind in CLASS_NAMES for name in folders[split, kind])
    # One after the other: the images are so small that threads only wait for each other.
    for image, name in zip(images, names, strict=True):
        image[:] = _decode(files[name](), name)
    return images, np.repeat(np.arange(len(CLASS_NAMES), dtype=np.uint8), counts)


def _by_class(files: Files) -> dict[tuple[str, str], list[str]]:
    """The sorted names of the images by split and class; files outside the class folders are not looked at."""
    folders: dict[tuple[str, str], list[str]] = {(split, kind): [] for split in _SPLITS for kind in CLASS_NAMES}
    for name in sorted(files):
        parts = name.split("/")
        if len(parts) < 3 or parts[0] not in _SPLITS or any(map(is_litter, parts)):
            continue
        if parts[1] not in CLASS_NAMES:
            raise UnusableError(f"{parts[0]}/{parts[1]} is no class of CIFAR-10 (they are {', '.join(CLASS_NAMES)})")
        if len(parts) > 3 or not name.lower().endswith(_SUFFIXES):
            raise UnusableError(f"{name} is not a .jpg or .png file of a class folder")
        folders[parts[0], parts[1]].append(name)
    missing = [f"{split}/{kind}" for (split, kind), names in folders.items() if not names]
    if missing:
        raise UnusableError(f"there are no images in {', '.join(missing)}")
    return folders


def _decode(content: bytes, name: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.size != (_SIDE, _SIDE):
                width, height = image.size
                raise UnusableError(f"{name} has {width}x{height} pixels, expected {_SIDE}x{_SIDE}")
            if image.mode.startswith(("I", "F")):
                raise UnusableError(f"{name} has more than 8 bits a pixel and channel")
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except UnusableError:
        raise
    except Exception as error:  # a damaged image can raise nearly anything
        raise UnusableError(f"{name} is not a readable JPEG or PNG image ({error})") from None

"""The frost textures of Corrupted CIFAR-10 from a local copy, an earlier download or the package index."""

import hashlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from denetdm_cli.data.raw.sources import (
    Files,
    Place,
    UnusableError,
    downloaded_wheel,
    first_usable,
    read_file,
    zip_members,
)
from denetdm_cli.utils.errors import DataError
from denetdm_cli.utils.files import atomic_file

TEXTURES = (
    ("frost1.png", "ff9f907860bd7a835d459e32f9d588062b7f61ee267343cc7222b56753a14755"),
    ("frost2.png", "fe211a89b336999c207a852ce05818d4545d0b57c5beadd824b4cc9d9a9b6137"),
    ("frost3.png", "2d0d50b4a9bb213f38b024ef7768731bb83cc08d2f26b5766bbc167cdfa0e504"),
    ("frost4.jpg", "3f8b91ca1a9fa7167b09e773da53f5ae60d0a1fd88f02a783f6e328a72887f6e"),
    ("frost5.jpg", "5fc6a19df4a429ba68abdcc8f8a4278d4c9f81c9ccafd2c92ab0c8cf8992ebd2"),
)
"""Name and SHA-256 of the files, in the order of their numbers; the published code never draws its sixth."""

_FOLDER = "frost"
_WHEEL = "imagecorruptions==1.1.2"
_WHEEL_FOLDER = "imagecorruptions/frost"
_PIP_SECONDS = 120.0
_FILE_LIMIT = 1 << 22


def load_textures(root: Path, folder: Path | None, info: Callable[[str], None]) -> tuple[NDArray[np.uint8], ...]:
    """Read the five textures from the first place that has them, and check their bytes.

    Args:
        root: the data root; the textures are kept in `frost` below it, wherever they came from.
        folder: holds them, or holds them in `frost`; or the wheel of imagecorruptions 1.1.2 itself; when given,
            nothing else is tried.
        info: called with one line on what is tried next.
    Returns:
        (H, W, 3) uint8, RGB, each of its own size.
    Raises:
        DataError: `folder` is missing, incomplete or holds other files.
        DownloadError: no place has them; lists each with its reason.
    Source: Hendrycks and Dietterich (ICLR 2019), as packaged in imagecorruptions 1.1.2 (Apache-2.0).
    """
    cache = root / _FOLDER
    names = ", ".join(name for name, _ in TEXTURES)
    if folder is not None:
        return _decode(_keep(_from_folder(folder, names), cache))
    places = [Place(f"the package index (pip download {_WHEEL})", lambda: _keep(_download(), cache), _PIP_SECONDS)]
    if any((cache / name).is_file() for name, _ in TEXTURES):
        places.insert(0, Place("earlier download", lambda: _read_folder(cache)))
    fix = (
        f"Get the wheel of imagecorruptions 1.1.2 where there is a network (`pip download --no-deps {_WHEEL}`) and say "
        f"`--frost WHEEL`, or put {names} from it into {cache}."
    )
    return _decode(first_usable("The frost textures", places, info, fix))


def _from_folder(folder: Path, names: str) -> dict[str, bytes]:
    fix = (
        f"Give a folder that holds {names} of imagecorruptions 1.1.2, or its wheel; or leave `--frost` out to "
        "download them."
    )
    if not folder.exists():
        raise DataError(f"Frost textures {folder}: there is no such file or folder.", fix)
    try:
        if folder.is_file():
            return _read_wheel(folder)
        inside = folder / _FOLDER
        return _read_folder(inside if any((inside / name).is_file() for name, _ in TEXTURES) else folder)
    except UnusableError as error:
        raise DataError(f"Frost textures {folder}: {error}.", fix) from error


def _download() -> dict[str, bytes]:
    with downloaded_wheel(_WHEEL, _PIP_SECONDS) as wheel:
        return _read_wheel(wheel)


def _read_wheel(wheel: Path) -> dict[str, bytes]:
    with zip_members(wheel, _FILE_LIMIT) as members:
        start = f"{_WHEEL_FOLDER}/"
        files = {name.removeprefix(start): read for name, read in members.items() if name.startswith(start)}
        return _read(files, f"{wheel.name}/{_WHEEL_FOLDER}")


def _read_folder(folder: Path) -> dict[str, bytes]:
    paths = {name: folder / name for name, _ in TEXTURES}
    files = {name: partial(read_file, path, _FILE_LIMIT) for name, path in paths.items() if path.is_file()}
    return _read(files, str(folder))


def _read(files: Files, where: str) -> dict[str, bytes]:
    missing = [name for name, _ in TEXTURES if name not in files]
    if missing:
        raise UnusableError(f"{where} has no {', '.join(missing)}")
    contents = {name: files[name]() for name, _ in TEXTURES}
    for name, expected in TEXTURES:
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise UnusableError(f"{where}/{name} is damaged or another file: SHA-256 {found}, expected {expected}")
    return contents


def _keep(contents: dict[str, bytes], cache: Path) -> dict[str, bytes]:
    for name, content in contents.items():
        path = cache / name
        if not path.is_file() or path.read_bytes() != content:
            with atomic_file(path) as temporary:
                temporary.write_bytes(content)
    return contents


def _decode(contents: dict[str, bytes]) -> tuple[NDArray[np.uint8], ...]:
    textures = []
    for name, _ in TEXTURES:
        with Image.open(io.BytesIO(contents[name]), formats=("JPEG", "PNG")) as image:
            textures.append(np.asarray(image.convert("RGB")))
    return tuple(textures)

"""Folders of images: the files in them, and the folder that has a published layout."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from denetdm_cli.data.raw.sources import is_litter
from denetdm_cli.utils.errors import DataError
from denetdm_cli.utils.text import first_few

IMAGE_ENDINGS = frozenset(
    (
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    )
)
"""What the names of images end in, in lower case."""


def find_tree(root: Path, fits: Callable[[Path], bool], layout: str, prefer: str = "") -> Path:
    """The folder that has a layout: the root, or one that lies up to two levels below.

    Args:
        root: where to look.
        fits: whether a folder has the layout.
        layout: what is looked for, in words.
        prefer: the name, in lower case, of the folder to take where several fit on one level.
    Raises:
        DataError: no folder fits, or several do.
    """
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"Source {root} {state}; expected {layout}.", "Give the folder or the archive that holds it.")
    level = [root]
    for _ in range(3):
        found = [folder for folder in level if fits(folder)]
        named = [folder for folder in found if folder.name.lower() == prefer]
        if len(named) == 1 or len(found) == 1:
            return (named or found)[0]
        if found:
            refuse(
                f"Source {root} holds more than one {layout}",
                (str(path) for path in found),
                "Give the one you mean.",
            )
        level = [path for folder in level for path in entries(folder) if path.is_dir()]
    raise DataError(
        f"Source {root}: looked for {layout}, there and up to two folders below; found {found_in(root)}.",
        "Give the folder or the archive that holds it.",
    )


def entries(folder: Path) -> list[Path]:
    """The entries of a folder, by name, without hidden files and those that operating systems create."""
    return sorted(path for path in folder.iterdir() if not is_litter(path.name))


def found_in(folder: Path) -> str:
    """The first names in a folder, for messages."""
    return first_few((f"{path.name}/" if path.is_dir() else path.name) for path in entries(folder)) or "nothing"


def image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """All files below a folder, by path: those with the endings of images, and the others.

    Links are followed, each folder once.
    """
    images: list[Path] = []
    others: list[Path] = []
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_litter(name))
        for name in files:
            if not is_litter(name):
                file = Path(path, name)
                (images if file.suffix.lower() in IMAGE_ENDINGS else others).append(file)
    return sorted(images, key=Path.as_posix), sorted(others, key=Path.as_posix)


def refuse(what: str, problems: Iterable[str], fix: str) -> NoReturn:
    """Raise a DataError that names the first of several problems."""
    raise DataError(f"{what}: {first_few(problems)}.", fix)

"""BAR, whose classes are in the names of files or folders."""

from pathlib import Path
from typing import Literal

from denetdm_cli.config.schema import BarConfig
from denetdm_cli.data.importers.file_names import LABELS, percent_folder, require_images, require_ratio
from denetdm_cli.data.importers.listing import INCOMPLETE, Item, Listing, Splits, count_notes
from denetdm_cli.data.importers.tree import entries, find_tree, refuse
from denetdm_cli.utils.errors import DataError

_CLASSES = ("climbing", "diving", "fishing", "pole vaulting", "racing", "throwing")
_WORDS = ("climbing", "diving", "fishing", "vaulting", "racing", "throwing")
_OTHER_PLACE = len(_CLASSES)


def list_bar(root: Path, config: BarConfig) -> Listing:
    """BAR: the original, or the 1 % and 5 % versions with bias-conflicting training images.

    The original's training images have no bias labels. Otherwise a bias value is the typical place of a class, or the
    last one, "other place", which all test images have. The class is in the name of the file or of its folder; where
    there are only numbers, they are taken for the classes in alphabetical order.

    Args:
        root: the folder with `train` and `test`, or one up to two levels above it.
        config: `ratio` is the share of bias-conflicting training images, 0.01 or 0.05; None for the original.
    Raises:
        DataError: another layout, the other kind of version, or images of no class.
    Source: LfF (NeurIPS 2020); the versions by share: BiasEnsemble (AAAI 2023),
        `train/align/<class>`, `train/conflict/<1pct|5pct>/<class>`, `valid/<class>`, `test/<class>`.
    """
    ratio = config.ratio
    layout = "the layout of BAR (the folders train and test, beside one another)"
    tree = find_tree(root, lambda folder: (folder / "train").is_dir() and (folder / "test").is_dir(), layout, "bar")
    align, conflict = tree / "train" / "align", tree / "train" / "conflict"
    if ratio is None and align.is_dir():
        raise DataError(f"{tree} is a version of BAR by share.", "Say `--ratio 0.01` or `--ratio 0.05`.")
    if ratio is not None and not align.is_dir():
        raise DataError(
            f"{tree} has no folder train/align: it is the original BAR, which has no bias labels.",
            "Leave out `--ratio`, or give a version with train/align and train/conflict.",
        )
    notes: tuple[str, ...] = ()
    splits: Splits = {}
    if ratio is None:
        splits["train"] = _images(tree / "train", None)
        expected = {"train": 1_941, "test": 654}
    else:
        shares = [folder for folder in entries(conflict) if folder.name.endswith("pct")] if conflict.is_dir() else []
        splits["train"] = _images(align, "typical")
        splits["train"] += _images(conflict / percent_folder(ratio) if shares else conflict, "other")
        require_ratio(splits["train"], ratio, tree / "train")
        valid = tree / "valid"
        if (valid / "align").is_dir():
            splits["valid"] = _images(valid / "align", "typical")
            splits["valid"] += _images(valid / "conflict", "other")
        elif valid.is_dir():
            splits["valid"] = _images(valid, None)
        expected = {}
    splits["test"] = _images(tree / "test", "other")
    if any(not _named_classes(item.path) for items in splits.values() for item in items):
        notes = ("Classes that go by number are taken in alphabetical order: " + ", ".join(_CLASSES),)
    return Listing(
        root=tree,
        splits=splits,
        class_names=_CLASSES,
        bias_names=(*(f"{name} place" for name in _CLASSES), "other place"),
        aligned=tuple(range(len(_CLASSES))),
        attribute_names=("action", "place"),
        notes=notes + count_notes(splits, expected),
    )


def bar_folder(config: BarConfig) -> str:
    """The data set's folder below the data root."""
    return config.name if config.ratio is None else f"{config.name}-{config.ratio}"


def _images(folder: Path, place: Literal["typical", "other"] | None) -> list[Item]:
    """The images below a folder of BAR, all of them in the typical place of their class, in another, or in either."""
    images = require_images(folder)
    numbered = not any(_named_classes(path) for path in images)
    items, wrong = [], []
    for path in images:
        targets = _numbered_classes(path) if numbered else _named_classes(path)
        if len(targets) == 1:
            items.append(Item(path, targets[0], {"typical": targets[0], "other": _OTHER_PLACE}.get(place or "")))
        else:
            wrong.append(str(path.relative_to(folder)))
    if wrong:
        refuse(f"{folder}: names of files and folders that do not name exactly one class of BAR", wrong, INCOMPLETE)
    return items


def _named_classes(path: Path) -> list[int]:
    text = f"{path.parent.name} {path.stem}".lower()
    return [number for number, word in enumerate(_WORDS) if word in text]


def _numbered_classes(path: Path) -> list[int]:
    match = LABELS.search(path.stem)
    text = path.parent.name if path.parent.name.isdecimal() else match[1] if match else ""
    return [number for number in range(len(_CLASSES)) if str(number) == text]

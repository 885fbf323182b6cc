"""The published data sets as they come; here those whose labels are in the names of files: BFFHQ, BAR, DFA's."""

import re
from pathlib import Path
from typing import Literal

from denetdm_cli.data.archives import entries, find_tree, found_in, image_files, refuse
from denetdm_cli.data.cifar import CLASS_NAMES as CIFAR10_CLASSES
from denetdm_cli.data.importing import Item, Listing, Splits, count_notes
from denetdm_cli.data.table_layouts import list_celeba, list_waterbirds
from denetdm_cli.errors import DataError

__all__ = ["list_bar", "list_bffhq", "list_celeba", "list_dfa", "list_waterbirds"]

_FIX = "Give a complete copy of the published data set."
_LABELS = re.compile(r"_(\d+)_(\d+)$")
_RATIO_TOLERANCE = 1.5

_BAR_CLASSES = ("climbing", "diving", "fishing", "pole vaulting", "racing", "throwing")
_BAR_WORDS = ("climbing", "diving", "fishing", "vaulting", "racing", "throwing")
_OTHER_PLACE = len(_BAR_CLASSES)


def list_bffhq(root: Path) -> Listing:
    """BFFHQ in DFA's layout or in that of DeNetDM's copy; the labels are in the file names.

    Classes: 0 young (10 to 29 years), 1 old (40 to 59). Which gender is 0 is not published; it is that of most of the
    young.

    Args:
        root: the folder `bffhq`, or one up to two levels above it.
    Raises:
        DataError: another layout, labels missing or out of range, or images in the wrong one of align and conflict.
    Source: DFA (NeurIPS 2021), DeNetDM's released code.
    """

    def train(folder: Path) -> Path | None:
        parts = (folder / name for name in ("0.5pct", "train"))
        return next((part for part in parts if (part / "align").is_dir()), None)

    layout = "the layout of BFFHQ (bffhq/0.5pct/align or bffhq/train/align, bffhq/valid and bffhq/test)"
    tree = find_tree(root, lambda folder: train(folder) is not None, layout, prefer="bffhq")
    splits = {
        "train": _align_and_conflict(train(tree) or tree, 2),
        "valid": _labelled(tree / "valid", 2),
        "test": _labelled(tree / "test", 2),
    }
    return Listing(
        root=tree,
        splits=splits,
        class_names=("young", "old"),
        bias_names=("gender 0", "gender 1"),
        aligned=(0, 1),
        attribute_names=("age", "gender"),
        notes=count_notes(splits, {"train": 19_200, "valid": 1_000, "test": 1_000}),
    )


def list_dfa(root: Path, name: str, ratio: float) -> Listing:
    """Colored MNIST (`cmnist`) or Corrupted CIFAR-10 (`cifar10c`) as DFA publishes it; labels are in the file names.

    Which colours and corruptions the bias values are is not published: they go by number.

    Args:
        root: the folder `name`, or one up to two levels above it.
        name: "cmnist" or "cifar10c".
        ratio: share of bias-conflicting training images: 0.005, 0.01, 0.02 or 0.05.
    Raises:
        DataError: another layout or ratio, labels missing or out of range, or images in the wrong one of align and
            conflict.
    Source: DFA (NeurIPS 2021).
    """
    part = _percent(ratio)
    others = {"cmnist", "cifar10c"} - {name}
    tree = find_tree(
        root,
        lambda folder: (folder / part / "align").is_dir() and folder.name.lower() not in others,
        f"the layout of DFA ({name}/{part}/align, {name}/{part}/conflict, {name}/{part}/valid and {name}/test)",
        prefer=name,
    )
    splits = {
        "train": _align_and_conflict(tree / part, 10),
        "valid": _labelled(tree / part / "valid", 10),
        "test": _labelled(tree / "test", 10),
    }
    _check_ratio(splits["train"], ratio, tree / part)
    bias = "colour" if name == "cmnist" else "corruption"
    return Listing(
        root=tree,
        splits=splits,
        class_names=tuple(str(digit) for digit in range(10)) if name == "cmnist" else CIFAR10_CLASSES,
        bias_names=tuple(f"{bias} {value}" for value in range(10)),
        aligned=tuple(range(10)),
        attribute_names=("digit", "color") if name == "cmnist" else ("object", "corruption"),
    )


def list_bar(root: Path, ratio: float | None) -> Listing:
    """BAR: the original, or the 1 % and 5 % versions with bias-conflicting training images.

    The original's training images have no bias labels. Otherwise a bias value is the typical place of a class, or the
    last one, "other place", which all test images have. The class is in the name of the file or of its folder; where
    there are but numbers, they are taken for the classes in alphabetical order.

    Args:
        root: the folder with `train` and `test`, or one up to two levels above it.
        ratio: share of bias-conflicting training images, 0.01 or 0.05; None for the original.
    Raises:
        DataError: another layout, the other kind of version, or images of no class.
    Source: LfF (NeurIPS 2020); the versions by share: BiasEnsemble (AAAI 2023),
        `train/align/<class>`, `train/conflict/<1pct|5pct>/<class>`, `valid/<class>`, `test/<class>`.
    """
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
        splits["train"] = _bar_images(tree / "train", None)
        expected = {"train": 1_941, "test": 654}
    else:
        shares = [folder for folder in entries(conflict) if folder.name.endswith("pct")] if conflict.is_dir() else []
        splits["train"] = _bar_images(align, "typical")
        splits["train"] += _bar_images(conflict / _percent(ratio) if shares else conflict, "other")
        _check_ratio(splits["train"], ratio, tree / "train")
        valid = tree / "valid"
        if (valid / "align").is_dir():
            splits["valid"] = _bar_images(valid / "align", "typical")
            splits["valid"] += _bar_images(valid / "conflict", "other")
        elif valid.is_dir():
            splits["valid"] = _bar_images(valid, None)
        expected = {}
    splits["test"] = _bar_images(tree / "test", "other")
    if any(not _bar_words(item.path) for items in splits.values() for item in items):
        notes = ("Classes that go by number are taken in alphabetical order: " + ", ".join(_BAR_CLASSES),)
    return Listing(
        root=tree,
        splits=splits,
        class_names=_BAR_CLASSES,
        bias_names=(*(f"{name} place" for name in _BAR_CLASSES), "other place"),
        aligned=tuple(range(len(_BAR_CLASSES))),
        attribute_names=("action", "place"),
        notes=notes + count_notes(splits, expected),
    )


def _percent(ratio: float) -> str:
    return f"{100 * ratio:g}pct"


def _images_in(folder: Path) -> list[Path]:
    images = image_files(folder)[0] if folder.is_dir() else []
    if not images:
        found = f"; found {found_in(folder)}" if folder.is_dir() else ""
        raise DataError(f"{folder} {'holds no images' if folder.is_dir() else 'is missing'}{found}.", _FIX)
    return images


def _labelled(folder: Path, values: int) -> list[Item]:
    """The images below a folder; class and bias value, both below `values`, are the last two fields of their names."""
    items, wrong = [], []
    for path in _images_in(folder):
        match = _LABELS.search(path.stem)
        target, bias = (int(match[1]), int(match[2])) if match else (values, values)
        if max(target, bias) < values:
            items.append(Item(path, target, bias))
        else:
            wrong.append(str(path.relative_to(folder)))
    if wrong:
        refuse(
            f"{folder}: file names that do not end in _CLASS_BIAS.png, both from 0 to {values - 1}",
            wrong,
            "Give the published data set, with its file names as they are.",
        )
    return items


def _align_and_conflict(folder: Path, values: int) -> list[Item]:
    align, conflict = _labelled(folder / "align", values), _labelled(folder / "conflict", values)
    wrong = [item for item in align if item.bias != item.target] + [
        item for item in conflict if item.bias == item.target
    ]
    if wrong:
        refuse(
            f"{folder}: under align both labels must be the same, under conflict they must differ",
            (str(item.path.relative_to(folder)) for item in wrong),
            _FIX,
        )
    return align + conflict


def _check_ratio(train: list[Item], ratio: float, folder: Path) -> None:
    """Refuse training images of which another share is bias-conflicting than was asked for."""
    conflicting = sum(item.bias != item.target for item in train)
    share = conflicting / len(train)
    if not ratio / _RATIO_TOLERANCE <= share <= ratio * _RATIO_TOLERANCE:
        raise DataError(
            f"{folder}: {conflicting:,} of {len(train):,} training images are bias-conflicting, {share:.2%}; "
            f"asked for {ratio:.2%}.",
            "Give another `--ratio`, or a complete copy of the version that has it.",
        )


def _bar_images(folder: Path, place: Literal["typical", "other"] | None) -> list[Item]:
    """The images below a folder of BAR, all of them in the typical place of their class, in another, or in either."""
    images = _images_in(folder)
    numbered = not any(_bar_words(path) for path in images)
    items, wrong = [], []
    for path in images:
        targets = _bar_numbers(path) if numbered else _bar_words(path)
        if len(targets) == 1:
            items.append(Item(path, targets[0], {"typical": targets[0], "other": _OTHER_PLACE}.get(place or "")))
        else:
            wrong.append(str(path.relative_to(folder)))
    if wrong:
        refuse(f"{folder}: names of files and folders from which no one class of BAR can be told", wrong, _FIX)
    return items


def _bar_words(path: Path) -> list[int]:
    text = f"{path.parent.name} {path.stem}".lower()
    return [number for number, word in enumerate(_BAR_WORDS) if word in text]


def _bar_numbers(path: Path) -> list[int]:
    match = _LABELS.search(path.stem)
    text = path.parent.name if path.parent.name.isdecimal() else match[1] if match else ""
    return [number for number in range(len(_BAR_CLASSES)) if str(number) == text]

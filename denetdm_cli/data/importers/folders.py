"""The user's own images: class folders, or a CSV file that names images and their labels."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from denetdm_cli.config.schema import FolderConfig
from denetdm_cli.data.importers.listing import Item, Listing
from denetdm_cli.data.importers.tables import read_table
from denetdm_cli.data.importers.tree import entries, found_in, image_files, refuse
from denetdm_cli.utils.errors import ConfigError, DataError
from denetdm_cli.utils.log import shown
from denetdm_cli.utils.text import first_few

_SPLITS = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
_MOST_VALUES = 256
_FIX_TABLE = "Mend the file; its columns are path, label and, if need be, bias and split (train, valid or test)."
_FIX_FOLDERS = (
    "Give a folder with a folder of images for each class, or such folders below train, valid and test, "
    "or a .csv file with the columns path, label and, if need be, bias and split."
)


@dataclass(frozen=True)
class _Row:
    """An image with its labels in words; `split` is None where the source says nothing of it."""

    path: Path
    label: str
    bias: str | None
    split: str | None


def list_folder(source: Path, config: FolderConfig) -> Listing:
    """List images of one's own.

    Class folders: `train/<class>/...` with `valid` (or `val`) and `test` if need be, or `<class>/...`; images may lie
    in further folders below the class. A CSV file has the columns `path` (relative to its folder), `label` and, if need
    be, `bias` and `split`. Where there is neither `valid` nor `test`, images are drawn for them, class by class and,
    where the bias is known, value by value; a lone `valid` is what results are reported on.

    Args:
        source: the folder, also one that holds nothing but it, or the .csv file.
        config: shares to draw for validation and test, and the seed.
    Raises:
        ConfigError: the shares leave nothing to train on.
        DataError: the source is not as described, or its classes cannot be learnt from it.
    """
    if config.valid_share + config.test_share >= 1:
        raise ConfigError(
            f"dataset.valid_share {config.valid_share} and dataset.test_share {config.test_share} leave nothing to "
            "train on.",
            "Lower them: together they must be below 1.",
        )
    root, rows, notes = _read_folders(source) if source.is_dir() else _read_table(source)
    classes = _values("classes", (row.label for row in rows), source)
    biases = _values("bias values", (row.bias for row in rows if row.bias is not None), source)
    if len(classes) == 1:
        beside = sorted(root.glob("*.csv")) if source.is_dir() else []
        tables = f" Beside the images lies {shown(beside[0].name)}: to use it, give that file." if beside else ""
        raise DataError(f"{source} has one class only: {shown(classes[0])}.{tables}", _FIX_FOLDERS)
    splits: dict[str, list[Item]] = {name: [] for name in ("train", "valid", "test")}
    numbers = {name: number for number, name in enumerate(classes)}
    bias_numbers = {name: number for number, name in enumerate(biases)}
    for row in sorted(rows, key=lambda row: row.path.as_posix()):
        bias = None if row.bias is None else bias_numbers[row.bias]
        splits[row.split or "train"].append(Item(row.path, numbers[row.label], bias))
    taught = {item.target for item in splits["train"]}
    if untaught := [name for name in classes if numbers[name] not in taught]:
        refuse(f"{source}: classes without a training image", untaught, "Add training images, or take them out.")
    if not splits["valid"] and not splits["test"]:
        splits, drawn = _drawn(splits["train"], config, source, classes, biases)
        notes += drawn
    return Listing(
        root=root,
        splits={name: items for name, items in splits.items() if items},
        class_names=classes,
        bias_names=biases,
        aligned=_commonest_bias(splits["train"], len(classes)) if biases else (),
        attribute_names=("label", "bias") if biases else ("label",),
        notes=tuple(notes),
    )


def _read_folders(source: Path) -> tuple[Path, list[_Row], list[str]]:
    root = source
    for _ in range(2):  # an archive may hold the folder rather than what is in it
        inside = _folders(root)
        if len(inside) == 1 and inside[0].name.lower() not in _SPLITS and _folders(inside[0]):
            root = inside[0]
    rows: list[_Row] = []
    ignored: list[Path] = []
    empty = []
    for split, part in _parts(root).items():
        ignored += [path for path in entries(part) if not path.is_dir()]
        for folder in _folders(part):
            images, others = image_files(folder)
            ignored += others
            rows += [_Row(path, folder.name, None, split) for path in images]
            if not images:
                empty.append(folder.relative_to(root).as_posix())
    if empty:
        refuse(f"{root}: class folders without an image", empty, "Add images, or take the folders out.")
    if not rows:
        raise DataError(f"{root} has no class folders; found {found_in(root)}.", _FIX_FOLDERS)
    names = first_few(path.relative_to(root).as_posix() for path in ignored)
    what = "file that is no image of a class is" if len(ignored) == 1 else "files that are no images of a class are"
    notes = [f"{len(ignored):,} {what} left out: {names}"] if ignored else []
    return root, rows, notes


def _parts(root: Path) -> dict[str | None, Path]:
    """The folders that hold class folders, by split."""
    folders = _folders(root)
    named = [folder for folder in folders if folder.name.lower() in _SPLITS]
    if not named:
        return {None: root}
    parts: dict[str | None, Path] = {_SPLITS[folder.name.lower()]: folder for folder in named}
    if "train" not in parts or len(named) < len(folders) or len(parts) < len(named):
        raise DataError(
            f"{root} holds {found_in(root)}; where there are folders named after splits, there must be train, and "
            "beside it only valid (or val) and test.",
            _FIX_FOLDERS,
        )
    return parts


def _folders(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if path.is_dir()]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _read_table(file: Path) -> tuple[Path, list[_Row], list[str]]:
    table = read_table(file, ["path", "label"], ["bias", "split"])
    _require(file, "no path", (f"line {line}" for line, row in table if not row[0]))
    _require(file, "no label", (f"line {line}" for line, row in table if not row[1]))
    if any(row[3] for _, row in table):
        _require(file, "no split, while others have one", (f"line {line}" for line, row in table if not row[3]))
    splits = [_SPLITS.get(row[3].lower(), row[3]) for _, row in table]
    with_bias = {split for split, (_, row) in zip(splits, table, strict=True) if row[2]}
    _require(
        file,
        "no bias, while others of the same split have one"
        + (" (val and valid are the same split)" if {"val", "valid"} <= {row[3].lower() for _, row in table} else ""),
        (
            f"line {line}"
            for split, (line, row) in zip(splits, table, strict=True)
            if not row[2] and split in with_bias  # a whole split may have no bias labels
        ),
    )
    wrong = (f"line {line}: {row[3]}" for line, row in table if row[3] and row[3].lower() not in _SPLITS)
    _require(file, "split is not train, valid (or val) or test", wrong)
    paths = [Path(os.path.normpath(file.parent / row[0])) for _, row in table]
    missing = (f"line {line}: {row[0]}" for (line, row), path in zip(table, paths, strict=True) if not _is_file(path))
    _require(file, "no such file", missing)
    first: dict[Path, int] = {}
    _require(
        file,
        "an image has a second row",
        (
            f"line {line}: {row[0]}, as line {first[path]}"
            for (line, row), path in zip(table, map(Path.resolve, paths), strict=True)  # links to one image are one
            if first.setdefault(path, line) != line
        ),
    )
    rows = [
        _Row(path, label, bias or None, _SPLITS[split.lower()] if split else None)
        for path, (_, (_, label, bias, split)) in zip(paths, table, strict=True)
    ]
    return file.parent, rows, []


def _require(file: Path, what: str, problems: Iterable[str]) -> None:
    if found := list(problems):
        refuse(f"{file}: {what}", found, _FIX_TABLE)


def _values(what: str, names: Iterable[str], source: Path) -> tuple[str, ...]:
    """Different names in order: by number where all are whole numbers, else by letter."""
    found = set(names)
    if odd := sorted(name for name in found if not name.isprintable()):
        refuse(f"{source}: names of {what} with letters that cannot be shown", odd, "Rename them.")
    if len(found) > _MOST_VALUES:
        raise DataError(
            f"{source} has {len(found):,} {what}, more than the {_MOST_VALUES} that are possible: "
            f"{first_few(sorted(found))}.",
            "Join some, or check that the right column or folder names them.",
        )
    if all(name.removeprefix("-").isdecimal() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def _drawn(
    items: list[Item], config: FolderConfig, source: Path, classes: tuple[str, ...], biases: tuple[str, ...]
) -> tuple[dict[str, list[Item]], list[str]]:
    """Draw from every group its share for validation and test; a group of two or more has at least one for test."""
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        groups[item.target, item.bias if item.bias is not None else -1].append(number)
    random = np.random.RandomState(config.seed)
    split_of = ["train"] * len(items)
    for group in sorted(groups):
        members = random.permutation(groups[group]).tolist()
        test, valid = _shares(len(members), config)
        for number in members[:test]:
            split_of[number] = "test"
        for number in members[test : test + valid]:
            split_of[number] = "valid"
    splits = {
        name: [item for item, split in zip(items, split_of, strict=True) if split == name]
        for name in ("train", "valid", "test")
    }
    if not splits["test"]:
        raise DataError(f"{source} has but one image a class: none is left to test on.", "Add images.")
    counts = ", ".join(f"{name} {len(part):,}" for name, part in splits.items() if part)
    notes = [f"The source has no valid or test; drawn with seed {config.seed}: {counts} images."]
    lone = [
        classes[target] + (f" with {biases[bias]}" if bias >= 0 else "")
        for target, bias in sorted(groups)
        if len(groups[target, bias]) == 1
    ]
    if lone:
        notes.append(f"Only one image, which is in train: {first_few(lone)}.")
    return splits, notes


def _shares(count: int, config: FolderConfig) -> tuple[int, int]:
    """Images for test and validation, of `count`; at least one stays for training."""
    test = min(max(1, int(count * config.test_share + 0.5)), count - 1)
    valid = max(int(config.valid_share > 0), int(count * config.valid_share + 0.5))
    return test, min(valid, count - 1 - test)


def _commonest_bias(train: list[Item], classes: int) -> tuple[int, ...]:
    if any(item.bias is None for item in train):
        return ()  # which value goes with a class is not known
    counts = [Counter(item.bias for item in train if item.target == target) for target in range(classes)]
    return tuple(min((-number, bias) for bias, number in count.items() if bias is not None)[1] for count in counts)

"""The published data sets whose labels are in tables, CelebA and Waterbirds; and how tables are read."""

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from denetdm_cli.data.archives import entries, find_tree, found_in, image_files, refuse
from denetdm_cli.data.importing import Item, Listing, Splits, count_notes
from denetdm_cli.errors import DataError
from denetdm_cli.logs import shown

_FIX = "Give a complete copy of the published data set."
_TABLES = (".txt", ".csv")
_PARTITIONS = {"0": "train", "1": "valid", "2": "test"}
_KEPT_OF_COMMONEST = 2000


def read_table(
    file: Path, required: Sequence[str], optional: Sequence[str] | None = None
) -> list[tuple[int, list[str]]]:
    """Read a CSV file with a line of column names.

    Args:
        file: UTF-8, with or without a byte order mark.
        required: columns that must be there.
        optional: columns that may be there besides; None lets any be there, and leaves them out.
    Returns:
        Line number and values of every row, in the order of `required` and `optional`; "" for a column not there.
    Raises:
        DataError: no file, other columns, rows of another length, or no rows.
    """
    fix = "Mend the file; the first line names the columns, separated by commas, and the text is UTF-8."
    wanted = [*required, *(optional or ())]
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            names = [name.strip() for name in next(reader, [])]
            problems = [f"no column {name}" for name in required if name not in names]
            problems += [f"column {name} twice" for name, count in Counter(names).items() if count > 1]
            if optional is not None:
                problems += [f"unknown column {name!r}" for name in names if name not in wanted]
            if problems:
                allowed = ", ".join(required) + (f" and, if need be, {', '.join(optional)}" if optional else "")
                found = shown(", ".join(names)) or "(none)"
                refuse(f"{file}, line 1: columns {found}; expected {allowed}", problems, fix)
            lines = ((reader.line_num, [value.strip() for value in row]) for row in reader if any(row))
            rows = _columns(file, lines, names, wanted, fix)
    except FileNotFoundError:
        raise DataError(f"{file} is missing.", "Give the folder that holds it.") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as a table: {error}.", fix) from error
    if not rows:
        raise DataError(f"{file} has no rows.", fix)
    return rows


def _columns(
    file: Path, lines: Iterable[tuple[int, list[str]]], names: Sequence[str], wanted: Sequence[str], fix: str
) -> list[tuple[int, list[str]]]:
    """Some values of each row, "" for a column not there; no more is kept in memory."""
    places = [names.index(name) if name in names else None for name in wanted]
    rows, wrong = [], []
    for number, row in lines:
        if len(row) == len(names):
            rows.append((number, ["" if place is None else row[place] for place in places]))
        else:
            wrong.append(f"line {number}: {len(row)} values")
    if wrong:
        refuse(f"{file}: rows that do not have {len(names)} values, one a column", wrong, fix)
    return rows


def list_celeba(root: Path, subsample: bool, seed: int) -> Listing:
    """CelebA: blond hair by gender, in the official partition.

    Args:
        root: the folder with `list_attr_celeba` and `list_eval_partition` (.txt as published or .csv as on Kaggle) and
            `img_align_celeba`, or one up to two levels above it. Each may lie in a folder of its own.
        subsample: keep only 2,000, drawn at random, of the largest group of the training images, not blond and female,
            so that those who are not blond are mostly male.
        seed: of the drawing.
    Raises:
        DataError: a file or a column is missing, or images and rows differ.
    Source: Liu et al. (ICCV 2015); `subsample`: Hong and Yang (NeurIPS 2021), released code, which then splits these
        training images once more, 80 to 20; here the official validation partition is used instead.
    """
    layout = "CelebA's list_attr_celeba.txt (or .csv)"
    tree = find_tree(root, lambda folder: _beside(folder, "list_attr_celeba", _TABLES) is not None, layout)
    attributes = _required(tree, "list_attr_celeba", _TABLES)
    partition = _required(tree, "list_eval_partition", _TABLES)
    images = _required(tree, "img_align_celeba", [""])
    if (images / images.name).is_dir():  # as Kaggle's archive has it
        images /= images.name
    labels = _celeba_table(attributes, ["Blond_Hair", "Male"], {"-1", "0", "1"})
    parts = _celeba_table(partition, ["partition"], set(_PARTITIONS))
    _require_all(partition, set(labels), set(parts), f"rows of {attributes.name} without a row there")
    _require_all(attributes, set(parts), set(labels), f"rows of {partition.name} without a row there")
    _require_images(attributes, images, set(labels))
    splits: Splits = {name: [] for name in _PARTITIONS.values()}
    for name in sorted(labels):
        blond, male = (int(value == "1") for value in labels[name])
        splits[_PARTITIONS[parts[name][0]]].append(Item(images / name, blond, 1 - male))
    _require_splits(partition, splits)
    notes = count_notes(splits, {"train": 162_770, "valid": 19_867, "test": 19_962})
    if subsample:
        splits["train"] = _subsampled(splits["train"], seed)
    return Listing(
        root=images,
        splits=splits,
        class_names=("not blond", "blond"),
        bias_names=("male", "female"),
        aligned=(0, 1),
        attribute_names=("hair", "gender"),
        notes=notes,
    )


def list_waterbirds(root: Path) -> Listing:
    """Waterbirds: birds pasted on backgrounds, most training images on the one where they live.

    Args:
        root: the folder with `metadata.csv`, or one up to two levels above it.
    Raises:
        DataError: `metadata.csv` or a column of it is missing, or images and rows differ.
    Source: Sagawa et al. (ICLR 2020).
    """
    tree = find_tree(root, lambda folder: (folder / "metadata.csv").is_file(), "Waterbirds' metadata.csv")
    table = tree / "metadata.csv"
    rows = read_table(table, ["img_filename", "y", "split", "place"])
    wrong = [
        f"line {line}: {', '.join(row[1:])}"
        for line, row in rows
        if row[2] not in _PARTITIONS or not {row[1], row[3]} <= {"0", "1"}
    ]
    if wrong:
        refuse(f"{table}: y, split and place must be 0 or 1, 0 to 2, 0 or 1", wrong, _FIX)
    _require_unique(table, [row[0] for _, row in rows])
    _require_images(table, tree, {row[0] for _, row in rows})
    splits: Splits = {name: [] for name in _PARTITIONS.values()}
    for name, target, split, bias in sorted(row for _, row in rows):
        splits[_PARTITIONS[split]].append(Item(tree / name, int(target), int(bias)))
    _require_splits(table, splits)
    return Listing(
        root=tree,
        splits=splits,
        class_names=("landbird", "waterbird"),
        bias_names=("land", "water"),
        aligned=(0, 1),
        attribute_names=("bird", "place"),
        notes=count_notes(splits, {"train": 4_795, "valid": 1_199, "test": 5_794}),
    )


def _beside(folder: Path, name: str, endings: Sequence[str]) -> Path | None:
    """What has a name and one of the endings, in a folder or in one that lies in it."""
    folders = [folder, *(path for path in entries(folder) if path.is_dir())]
    candidates = (place / f"{name}{ending}" for place in folders for ending in endings)
    return next((path for path in candidates if (path.is_file() if path.suffix else path.is_dir())), None)


def _required(folder: Path, name: str, endings: Sequence[str]) -> Path:
    found = _beside(folder, name, endings)
    if found is None:
        wanted = " or ".join(f"{name}{ending or '/'}" for ending in endings)
        raise DataError(f"{folder}: looked for {wanted}, there and one folder below; found {found_in(folder)}.", _FIX)
    return found


def _celeba_table(file: Path, columns: Sequence[str], allowed: Collection[str]) -> dict[str, list[str]]:
    """Values of some columns by the name of the image, all of them among `allowed`."""
    read = read_table if file.suffix == ".csv" else _read_celeba_text
    rows = read(file, ["image_id", *columns])
    wrong = [f"line {line}: {', '.join(row[1:])}" for line, row in rows if not set(row[1:]) <= set(allowed)]
    if wrong:
        refuse(f"{file}: {', '.join(columns)} must be one of {', '.join(sorted(allowed))}", wrong, _FIX)
    _require_unique(file, [row[0] for _, row in rows])
    return {row[0]: row[1:] for _, row in rows}


def _read_celeba_text(file: Path, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """As `read_table`, for CelebA's own files: number of rows, names of the attributes, rows; or rows alone."""
    try:
        with file.open(encoding="utf-8") as stream:
            start = [stream.readline().split() for _ in range(2)]
            has_head = len(start[0]) == 1
            names = ["image_id", *(start[1] if has_head else ["partition"])]
            if missing := [f"no column {name}" for name in columns if name not in names]:
                refuse(f"{file}: columns", missing, _FIX)
            if not has_head:
                stream.seek(0)
            lines = ((number, line.split()) for number, line in enumerate(stream, 3 if has_head else 1) if line.strip())
            rows = _columns(file, lines, names, columns, _FIX)
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not text: {error}.", _FIX) from error
    if has_head and start[0] != [str(len(rows))]:
        raise DataError(f"{file}: the first line says {shown(start[0][0])} rows, but there are {len(rows):,}.", _FIX)
    return rows


def _require_unique(table: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        refuse(f"{table}: images with more than one row", twice, _FIX)


def _require_images(table: Path, folder: Path, named: set[str]) -> None:
    there = {path.relative_to(folder).as_posix() for path in image_files(folder)[0]}
    _require_all(table, named, there, f"rows naming images that are not in {folder}")
    _require_all(table, there, named, f"images in {folder} without a row")


def _require_all(table: Path, some: set[str], others: set[str], what: str) -> None:
    if missing := sorted(some - others):
        refuse(f"{table}: {len(missing):,} {what}", missing, _FIX)


def _require_splits(table: Path, splits: Splits) -> None:
    if empty := [name for name, items in splits.items() if not items]:
        refuse(f"{table}: no image of some splits", empty, _FIX)


def _subsampled(train: list[Item], seed: int) -> list[Item]:
    commonest = [number for number, item in enumerate(train) if (item.target, item.bias) == (0, 1)]
    kept = set(np.random.RandomState(seed).permutation(commonest)[:_KEPT_OF_COMMONEST].tolist())
    return [item for number, item in enumerate(train) if (item.target, item.bias) != (0, 1) or number in kept]

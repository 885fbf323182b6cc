"""Labels in tables: reading them, and comparing them with the images in a folder."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from denetdm_cli.data.importers.listing import INCOMPLETE, Splits
from denetdm_cli.data.importers.tree import image_files, refuse
from denetdm_cli.utils.errors import DataError
from denetdm_cli.utils.log import shown

PARTITIONS = {"0": "train", "1": "valid", "2": "test"}
"""Splits by their number in published tables."""


def read_table(
    file: Path, required: Sequence[str], optional: Sequence[str] | None = None
) -> list[tuple[int, list[str]]]:
    """Read a CSV file with a line of column names.

    Args:
        file: UTF-8, with or without a byte order mark.
        required: columns the file must have.
        optional: columns the file may have; None allows any others, and leaves them out.
    Returns:
        Line number and values of every row, in the order of `required` and `optional`; "" for a missing column.
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
            rows = select_columns(file, lines, names, wanted, fix)
    except FileNotFoundError:
        raise DataError(f"{file} is missing.", "Give the folder that holds it.") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as a table: {error}.", fix) from error
    if not rows:
        raise DataError(f"{file} has no rows.", fix)
    return rows


def select_columns(
    file: Path, lines: Iterable[tuple[int, list[str]]], names: Sequence[str], wanted: Sequence[str], fix: str
) -> list[tuple[int, list[str]]]:
    """Some values of each row, "" for a missing column; no more is kept in memory."""
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


def require_unique(table: Path, names: Sequence[str]) -> None:
    """Refuse a table with several rows for one image."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        refuse(f"{table}: images with more than one row", twice, INCOMPLETE)


def require_same_images(table: Path, folder: Path, named: set[str]) -> None:
    """Refuse a table that does not name exactly the images below a folder."""
    present = {path.relative_to(folder).as_posix() for path in image_files(folder)[0]}
    require_all(table, named, present, f"rows naming images that are not in {folder}")
    require_all(table, present, named, f"images in {folder} without a row")


def require_all(table: Path, some: set[str], others: set[str], what: str) -> None:
    """Refuse names in `some` that are not in `others`; `what` describes them."""
    if missing := sorted(some - others):
        refuse(f"{table}: {len(missing):,} {what}", missing, INCOMPLETE)


def require_no_empty_split(table: Path, splits: Splits) -> None:
    """Refuse a table that leaves a split without an image."""
    if empty := [name for name, items in splits.items() if not items]:
        refuse(f"{table}: no image of some splits", empty, INCOMPLETE)

"""Labels in the names of files: `anything_CLASS_BIAS.png`."""

import re
from pathlib import Path

from denetdm_cli.data.importers.listing import INCOMPLETE, Item
from denetdm_cli.data.importers.tree import found_in, image_files, refuse
from denetdm_cli.utils.errors import DataError

LABELS = re.compile(r"_(\d+)_(\d+)$")
_RATIO_TOLERANCE = 1.5


def percent_folder(ratio: float) -> str:
    """The folder of a conflict ratio, such as `0.5pct`."""
    return f"{100 * ratio:g}pct"


def require_images(folder: Path) -> list[Path]:
    """The images below a folder, by path; a DataError where it has none."""
    images = image_files(folder)[0] if folder.is_dir() else []
    if not images:
        found = f"; found {found_in(folder)}" if folder.is_dir() else ""
        raise DataError(f"{folder} {'holds no images' if folder.is_dir() else 'is missing'}{found}.", INCOMPLETE)
    return images


def labelled_by_name(folder: Path, values: int) -> list[Item]:
    """The images below a folder; the last two fields of their names are class and bias value, both below `values`."""
    items, wrong = [], []
    for path in require_images(folder):
        match = LABELS.search(path.stem)
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


def align_and_conflict(folder: Path, values: int) -> list[Item]:
    """The images below `align` (bias value equal to the class), then those below `conflict` (different)."""
    align, conflict = labelled_by_name(folder / "align", values), labelled_by_name(folder / "conflict", values)
    wrong = [item for item in align if item.bias != item.target] + [
        item for item in conflict if item.bias == item.target
    ]
    if wrong:
        refuse(
            f"{folder}: under align both labels must be the same, under conflict they must differ",
            (str(item.path.relative_to(folder)) for item in wrong),
            INCOMPLETE,
        )
    return align + conflict


def require_ratio(train: list[Item], ratio: float, folder: Path) -> None:
    """Refuse training images of which another share is bias-conflicting than was asked for."""
    conflicting = sum(item.bias != item.target for item in train)
    share = conflicting / len(train)
    if not ratio / _RATIO_TOLERANCE <= share <= ratio * _RATIO_TOLERANCE:
        raise DataError(
            f"{folder}: {conflicting:,} of {len(train):,} training images are bias-conflicting, {share:.2%}; "
            f"asked for {ratio:.2%}.",
            "Give another `--ratio`, or a complete copy of the version that has it.",
        )

"""Waterbirds, whose labels are in a table."""

from pathlib import Path

from denetdm_cli.data.importers.archives import find_tree, refuse
from denetdm_cli.data.importers.pack import Item, Listing, Splits, count_notes
from denetdm_cli.data.importers.tables import (
    _FIX,
    _PARTITIONS,
    _require_images,
    _require_splits,
    _require_unique,
    read_table,
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

"""Waterbirds, whose labels are in a table."""

from pathlib import Path

from denetdm_cli.config.schema import WaterbirdsConfig
from denetdm_cli.data.importers.listing import INCOMPLETE, Item, Listing, Splits, count_notes
from denetdm_cli.data.importers.tables import (
    PARTITIONS,
    read_table,
    require_no_empty_split,
    require_same_images,
    require_unique,
)
from denetdm_cli.data.importers.tree import find_tree, refuse


def list_waterbirds(root: Path, _: WaterbirdsConfig) -> Listing:
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
        if row[2] not in PARTITIONS or not {row[1], row[3]} <= {"0", "1"}
    ]
    if wrong:
        refuse(f"{table}: y, split and place must be 0 or 1, 0 to 2, 0 or 1", wrong, INCOMPLETE)
    require_unique(table, [row[0] for _, row in rows])
    require_same_images(table, tree, {row[0] for _, row in rows})
    splits: Splits = {name: [] for name in PARTITIONS.values()}
    for name, target, split, bias in sorted(row for _, row in rows):
        splits[PARTITIONS[split]].append(Item(tree / name, int(target), int(bias)))
    require_no_empty_split(table, splits)
    return Listing(
        root=tree,
        splits=splits,
        class_names=("landbird", "waterbird"),
        bias_names=("land", "water"),
        aligned=(0, 1),
        attribute_names=("bird", "place"),
        notes=count_notes(splits, {"train": 4_795, "valid": 1_199, "test": 5_794}),
    )

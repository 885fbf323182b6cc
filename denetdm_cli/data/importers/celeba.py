"""CelebA, whose labels are in tables."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from denetdm_cli.config.schema import CelebaConfig
from denetdm_cli.data.importers.listing import INCOMPLETE, Item, Listing, Splits, count_notes
from denetdm_cli.data.importers.tables import (
    PARTITIONS,
    read_table,
    require_all,
    require_no_empty_split,
    require_same_images,
    require_unique,
    select_columns,
)
from denetdm_cli.data.importers.tree import entries, find_tree, found_in, refuse
from denetdm_cli.utils.errors import DataError
from denetdm_cli.utils.log import shown

_TABLES = (".txt", ".csv")
_KEPT_OF_COMMONEST = 2000


def list_celeba(root: Path, config: CelebaConfig) -> Listing:
    """CelebA: blond hair by gender, in the official partition.

    Args:
        root: the folder with `list_attr_celeba` and `list_eval_partition` (.txt as published or .csv as on Kaggle) and
            `img_align_celeba`, or one up to two levels above it. Each may lie in a folder of its own.
        config: `subsample` keeps only 2,000, drawn at random with `seed`, of the largest group of the training images,
            not blond and female, so that those who are not blond are mostly male.
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
    parts = _celeba_table(partition, ["partition"], set(PARTITIONS))
    require_all(partition, set(labels), set(parts), f"rows of {attributes.name} without a row there")
    require_all(attributes, set(parts), set(labels), f"rows of {partition.name} without a row there")
    require_same_images(attributes, images, set(labels))
    splits: Splits = {name: [] for name in PARTITIONS.values()}
    for name in sorted(labels):
        blond, male = (int(value == "1") for value in labels[name])
        splits[PARTITIONS[parts[name][0]]].append(Item(images / name, blond, 1 - male))
    require_no_empty_split(partition, splits)
    notes = count_notes(splits, {"train": 162_770, "valid": 19_867, "test": 19_962})
    if config.subsample:
        splits["train"] = _subsampled(splits["train"], config.seed)
    return Listing(
        root=images,
        splits=splits,
        class_names=("not blond", "blond"),
        bias_names=("male", "female"),
        aligned=(0, 1),
        attribute_names=("hair", "gender"),
        notes=notes,
    )


def celeba_folder(config: CelebaConfig) -> str:
    """The data set's folder below the data root."""
    return "celeba-subsampled" if config.subsample else config.name


def _beside(folder: Path, name: str, endings: Sequence[str]) -> Path | None:
    """What has a name and one of the endings, in a folder or in one that lies in it."""
    folders = [folder, *(path for path in entries(folder) if path.is_dir())]
    candidates = (place / f"{name}{ending}" for place in folders for ending in endings)
    return next((path for path in candidates if (path.is_file() if path.suffix else path.is_dir())), None)


def _required(folder: Path, name: str, endings: Sequence[str]) -> Path:
    found = _beside(folder, name, endings)
    if found is None:
        wanted = " or ".join(f"{name}{ending or '/'}" for ending in endings)
        raise DataError(
            f"{folder}: looked for {wanted}, there and one folder below; found {found_in(folder)}.", INCOMPLETE
        )
    return found


def _celeba_table(file: Path, columns: Sequence[str], allowed: Collection[str]) -> dict[str, list[str]]:
    """Values of some columns by the name of the image, all of them among `allowed`."""
    read = read_table if file.suffix == ".csv" else _read_celeba_text
    rows = read(file, ["image_id", *columns])
    wrong = [f"line {line}: {', '.join(row[1:])}" for line, row in rows if not set(row[1:]) <= set(allowed)]
    if wrong:
        refuse(f"{file}: {', '.join(columns)} must be one of {', '.join(sorted(allowed))}", wrong, INCOMPLETE)
    require_unique(file, [row[0] for _, row in rows])
    return {row[0]: row[1:] for _, row in rows}


def _read_celeba_text(file: Path, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """As `read_table`, for CelebA's own files: number of rows, names of the attributes, rows; or rows alone."""
    try:
        with file.open(encoding="utf-8") as stream:
            start = [stream.readline().split() for _ in range(2)]
            has_head = len(start[0]) == 1
            names = ["image_id", *(start[1] if has_head else ["partition"])]
            if missing := [f"no column {name}" for name in columns if name not in names]:
                refuse(f"{file}: columns", missing, INCOMPLETE)
            if not has_head:
                stream.seek(0)
            lines = ((number, line.split()) for number, line in enumerate(stream, 3 if has_head else 1) if line.strip())
            rows = select_columns(file, lines, names, columns, INCOMPLETE)
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not text: {error}.", INCOMPLETE) from error
    if has_head and start[0] != [str(len(rows))]:
        raise DataError(
            f"{file}: the first line says {shown(start[0][0])} rows, but there are {len(rows):,}.", INCOMPLETE
        )
    return rows


def _subsampled(train: list[Item], seed: int) -> list[Item]:
    commonest = [number for number, item in enumerate(train) if (item.target, item.bias) == (0, 1)]
    kept = set(np.random.RandomState(seed).permutation(commonest)[:_KEPT_OF_COMMONEST].tolist())
    return [item for number, item in enumerate(train) if (item.target, item.bias) != (0, 1) or number in kept]

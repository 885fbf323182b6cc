"""BFFHQ, whose labels are in the names of files."""

from pathlib import Path

from denetdm_cli.config.schema import BffhqConfig
from denetdm_cli.data.importers.file_names import align_and_conflict, labelled_by_name
from denetdm_cli.data.importers.listing import Listing, count_notes
from denetdm_cli.data.importers.tree import find_tree


def list_bffhq(root: Path, _: BffhqConfig) -> Listing:
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
        "train": align_and_conflict(train(tree) or tree, 2),
        "valid": labelled_by_name(tree / "valid", 2),
        "test": labelled_by_name(tree / "test", 2),
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

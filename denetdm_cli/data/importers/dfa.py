"""Colored MNIST and Corrupted CIFAR-10 as DFA publishes them, labels in the names of files."""

from pathlib import Path

from denetdm_cli.config.schema import DfaConfig
from denetdm_cli.data.importers.file_names import align_and_conflict, labelled_by_name, percent_folder, require_ratio
from denetdm_cli.data.importers.listing import Listing
from denetdm_cli.data.importers.tree import find_tree
from denetdm_cli.data.raw.cifar10 import CLASS_NAMES as CIFAR10_CLASSES


def list_dfa(root: Path, config: DfaConfig) -> Listing:
    """Colored MNIST (`cmnist`) or Corrupted CIFAR-10 (`cifar10c`) as DFA publishes it; labels are in the file names.

    Which colours and corruptions the bias values are is not published: they go by number.

    Args:
        root: the folder `cmnist` or `cifar10c`, or one up to two levels above it.
        config: `name` is "cmnist" or "cifar10c", `ratio` the share of bias-conflicting training images: 0.005, 0.01,
            0.02 or 0.05.
    Raises:
        DataError: another layout or ratio, labels missing or out of range, or images in the wrong one of align and
            conflict.
    Source: DFA (NeurIPS 2021).
    """
    name, ratio = config.name, config.ratio
    part = percent_folder(ratio)
    others = {"cmnist", "cifar10c"} - {name}
    tree = find_tree(
        root,
        lambda folder: (folder / part / "align").is_dir() and folder.name.lower() not in others,
        f"the layout of DFA ({name}/{part}/align, {name}/{part}/conflict, {name}/{part}/valid and {name}/test)",
        prefer=name,
    )
    splits = {
        "train": align_and_conflict(tree / part, 10),
        "valid": labelled_by_name(tree / part / "valid", 10),
        "test": labelled_by_name(tree / "test", 10),
    }
    require_ratio(splits["train"], ratio, tree / part)
    bias = "colour" if name == "cmnist" else "corruption"
    return Listing(
        root=tree,
        splits=splits,
        class_names=tuple(str(digit) for digit in range(10)) if name == "cmnist" else CIFAR10_CLASSES,
        bias_names=tuple(f"{bias} {value}" for value in range(10)),
        aligned=tuple(range(10)),
        attribute_names=("digit", "color") if name == "cmnist" else ("object", "corruption"),
    )


def dfa_folder(config: DfaConfig) -> str:
    """The data set's folder below the data root."""
    return f"{config.name}-{config.ratio}"

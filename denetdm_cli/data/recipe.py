"""Data sets that are made or imported: the rule of the bias labels, and opening one that exists or making it."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.config.schema import DatasetConfig
from denetdm_cli.data.store import Scalar, StoredDataset, looks_like_dataset, open_dataset, require_groups
from denetdm_cli.utils.errors import DataError
from denetdm_cli.utils.files import recover

EVALUATION_RATIO = 0.9
"""Conflict ratio of the evaluation split of the sets of LfF: with ten bias values, all of them equally frequent."""


OPTIONS = {"folder": "--name", "ratio": "--ratio", "severity": "--severity", "type": "--type", "size": "--size",
           "seed": "--seed"}  # fmt: skip
"""The options of make-data by the key of `dataset` that each sets; a data set has those whose keys it has."""

_NOT_IN_THE_NAME = ("seed", "size", "fit", "valid_share", "test_share")
"""Keys of `dataset` that are not in the folder name: a run may take their values from an existing data set."""


def command(config: DatasetConfig) -> str:
    """The `denetdm make-data` command that asks for a data set with these settings."""
    preset: Mapping[str, object] = load_config(preset_path(config.name)).dataset.model_dump()
    words = ["denetdm", "make-data", config.name, "--data-root", config.root]
    for key, value in config.model_dump(exclude={"name", "root"}).items():
        if key in OPTIONS and (value != preset[key] or key in ("ratio", "type", "severity", "seed")):
            words += [OPTIONS[key], str(value)] if value is not None else []
        elif value != preset[key]:
            words += ["--set", f"dataset.{key}={str(value).lower() if isinstance(value, bool) else value}"]
    return shlex.join(words)


@dataclass(frozen=True)
class Recipe:
    """A data set that can be made.

    Attributes:
        path: its folder.
        settings: every setting that decides a byte, as the manifest holds them.
        make: makes it; the argument says whether it may replace an existing one.
        again: the command that makes it again, without --force.
        classes: number of classes, where it is known before.
        balanced: whether every (target, bias) group of the evaluation split has an image.
    """

    path: Path
    settings: Mapping[str, Scalar]
    make: Callable[[bool], StoredDataset]
    again: str
    classes: int | None = None
    balanced: bool = False


def ensure(recipe: Recipe, *, force: bool = False) -> tuple[StoredDataset, bool]:
    """Open a data set, or make it where it does not exist.

    Args:
        recipe: the data set.
        force: make it again even where it exists.
    Returns:
        The data set, and whether it was made now. A folder of another tool (no manifest) is opened as it is.
    Raises:
        DataError: the folder is damaged, was made with other settings, or is something else than a data set.
        DownloadError: the raw images could not be downloaded.
    """
    path = recipe.path
    recover(path)
    if path.exists() and not looks_like_dataset(path):
        raise DataError(
            f"{path} exists and is not a data set folder (no manifest.json, no train/images.npy); it is left as it is.",
            "Move it away, or choose another `--data-root`.",
        )
    if force or not path.exists():
        try:
            return recipe.make(force), True
        except (DataError, OSError):
            # Unless another process made it in the meantime.
            if force or not path.exists():
                raise
    dataset = open_dataset(path, classes=recipe.classes)
    _require_settings(dataset, recipe)
    if recipe.balanced and recipe.classes:
        require_groups(dataset.evaluation, f"{dataset.evaluation_name} of {path}", recipe.classes)
    return dataset, False


def _require_settings(dataset: StoredDataset, recipe: Recipe) -> None:
    if dataset.manifest is None:
        return
    made_with, wanted = dataset.manifest.recipe, recipe.settings
    other = f"To replace it: `{recipe.again} --force`. Or choose another `--data-root`."
    name = made_with.get("name")
    if name != wanted["name"]:
        own = ["folder", "--set", f"dataset.folder={dataset.path.name}"]
        training = shlex.join(["--dataset", *(own if name == "folder" else [str(name)])])
        raise DataError(
            f"{dataset.path} holds another data set: {name}, asked for {wanted['name']}.",
            f"To train on it: `{training}`. {other}",
        )
    differing = [key for key, value in wanted.items() if made_with.get(key) != value]
    if differing:
        found = "; ".join(f"{key} {made_with.get(key)!r}, asked for {wanted[key]!r}" for key in differing)
        takes = " ".join(f"--set dataset.{key}={made_with.get(key)}" for key in differing)
        as_it_is = f"To train on it as it is: `{takes}`. " if set(differing) <= set(_NOT_IN_THE_NAME) else ""
        raise DataError(f"Data set {dataset.path} was made with other settings: {found}.", as_it_is + other)


def bias_labels(targets: NDArray[np.integer], ratio: float, classes: int = 10) -> NDArray[np.uint8]:
    """Give every image a bias value by its place among the images of its class.

    Args:
        targets: (N,) integers in 0..classes-1, in data-set order.
        ratio: share of bias-conflicting images in every class, spread evenly over the other bias values.
        classes: number of classes and of bias values.
    Returns:
        (N,) uint8.
    Raises:
        DataError: a target is out of range.
    Source: the data recipe of LfF (NeurIPS 2020).
    """
    if len(targets) and not 0 <= targets.min() <= targets.max() < classes:
        raise DataError(
            f"Class labels: found {targets.min()} to {targets.max()}; expected 0 to {classes - 1}.",
            "Use the labels that belong to these images.",
        )
    bias = np.empty(len(targets), np.uint8)
    for label in range(classes):
        members = np.flatnonzero(targets == label)
        shares = np.full(classes, ratio / (classes - 1))
        shares[label] = 1 - ratio
        milestones = np.round(len(members) * np.cumsum(shares))
        bias[members] = np.searchsorted(milestones, np.arange(len(members)), side="right")
    return bias

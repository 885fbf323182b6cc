"""What must hold before a stage trains, and before a checkpoint is judged on data."""

from pathlib import Path
from typing import Any

from denetdm_cli.config.load import differences
from denetdm_cli.config.schema import (
    PLACE,
    SELECTION_RULES,
    BranchConfig,
    Config,
    MethodSettings,
    SelectionRule,
    section_of,
)
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.evaluation.evaluator import Evaluation
from denetdm_cli.evaluation.metrics import LABEL_METRICS, group_metrics
from denetdm_cli.methods import METHODS
from denetdm_cli.methods.base import Method
from denetdm_cli.models.factory import build_branch, learns_from_one_image
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.utils.errors import CheckpointError, ConfigError, DataError
from denetdm_cli.utils.seed import seeded


def require_same_data(metadata: dict[str, Any], dataset: StoredDataset, path: Path) -> None:
    """Refuse a data set that is not the one a checkpoint was trained on.

    Raises:
        CheckpointError: the digests differ.
    """
    trained_on = metadata["dataset"]["digest"]
    if dataset.digest != trained_on:
        raise CheckpointError(
            f"{path} was trained on other data than {dataset.path} holds: "
            f"digest {trained_on[:16]} there, {dataset.digest[:16]} here",
            "Give the data set it was trained on with --data-root; to evaluate on another one, evaluate --data DIR.",
        )


def require_bias_labels(kind: type[Method], dataset: StoredDataset) -> None:
    """Refuse a method that trains on bias labels where the training images have none.

    Raises:
        DataError: they have none.
    """
    if kind.needs_bias and dataset.splits["train"].bias is None:
        raise DataError(
            f"{kind.name} trains on bias labels, and the training images of {dataset.path} have none",
            f"Use a method without: {', '.join(name for name, other in METHODS.items() if not other.needs_bias)}.",
        )


def require_full_batch(kind: type[Method], config: Config, dataset: StoredDataset) -> None:
    """Refuse batches larger than the data, and those of one image where a branch in training cannot do with it.

    Raises:
        ConfigError: the batch does not fit.
    """
    settings, section = config.settings(kind.name), section_of(kind.name)
    images, height, width, channels = dataset.splits["train"].images.shape
    if settings.batch_size > images:
        raise ConfigError(
            f"{section}.batch_size: {settings.batch_size} is larger than the training split, which has {images} images",
            f"Give a smaller --batch-size ({section} alone: --set {section}.batch_size=...).",
        )
    of_one = settings.batch_size == 1
    if not of_one and (settings.drop_last or images % settings.batch_size != 1):
        return
    for name in kind.branches:
        branch: BranchConfig = getattr(config.model, name)
        with seeded(0, "a trial"):
            network = build_branch(branch, (channels, height, width), key=f"model.{name}")
        if learns_from_one_image(network, (channels, height, width)):
            continue
        batches = "makes batches of one image" if of_one else f"leaves a last batch of one of the {images} images"
        raise ConfigError(
            f"{section}.batch_size: {settings.batch_size} {batches}, and the batch normalisation of model.{name} "
            f"({branch.name}) needs two, for it reduces {width}x{height} pixels to one",
            "Give a larger --batch-size."
            if of_one
            else f"Give another --batch-size, or --set {section}.drop_last=true.",
        )


def require_networks(name: str, config: Config, dataset: StoredDataset) -> None:
    """Refuse, before a method trains, networks that a method which starts from it could not build.

    ImageNet weights are not asked for: they may be fetched until then.

    Raises:
        ConfigError: torchvision has no such network, or it cannot take such images.
        CheckpointError: the file of start weights is missing, damaged or of another network.
    """
    height, width, channels = dataset.evaluation.images.shape[1:]
    for kind in METHODS.values():
        if kind.starts_from != name:
            continue
        for branch in kind.branches:
            network: BranchConfig = getattr(config.model, branch)
            offline = getattr(network, "weights", None) != "imagenet"
            with seeded(0, "a trial"):
                build_branch(network, (channels, height, width), start_weights=offline, key=f"model.{branch}")


def metrics_by_rule(
    settings: MethodSettings, name: str, dataset: StoredDataset, evaluation: Evaluation
) -> dict[SelectionRule, str]:
    """What each selection rule maximises: the metric of the configuration; `valid`, where its images lack the bias
    labels that this needs, accuracy.

    Raises:
        ConfigError: says what to select by instead.
    """
    metric, section = settings.selection_metric, section_of(name)
    predictor, figure = metric.split(".")
    found: dict[SelectionRule, str] = dict.fromkeys(SELECTION_RULES, metric)
    if figure in LABEL_METRICS:
        return found
    for part in ("evaluation", "valid"):
        name, rows = evaluation.parts[part]
        batches = evaluation.batches[name]
        chosen = slice(None) if rows is None else rows
        target = batches.target[chosen]
        if batches.bias is None:
            lack = f"needs bias labels, and {name} of {dataset.path} has none"
        elif group_metrics(target, batches.bias[chosen], target, evaluation.groups)[figure] is None:
            lack = f"has no value, for {name} of {dataset.path} has no image that it is measured on"
        else:
            continue
        if part == "valid":
            found["valid"] = f"{predictor}.accuracy"
            continue
        raise ConfigError(
            f"{section}.selection_metric: {metric!r} {lack}",
            f"Use one that needs class labels only: --set {section}.selection_metric={predictor}.accuracy "
            f"(or {predictor}.worst_class).",
        )
    return found


def require_same_settings(name: str, config: Config, teacher: RunFolder) -> None:
    """Refuse a configuration that differs from that of the teacher's run in what is not the method's own.

    Raises:
        ConfigError: names each setting.
    """
    kind, before = METHODS[name], METHODS[name].starts_from or name
    other_methods = (f"{section_of(other)}." for other in METHODS if other != before)
    networks = (f"model.{branch}." for branch in kind.branches)
    free = (*other_methods, *networks, "selection", "compute.", *PLACE)
    fixed = [d for d in differences(config, teacher.config()) if not d[0].startswith(free)]
    if fixed:
        lines = "".join(f"\n  {key}: {theirs!r} in {before}, {ours!r} now" for key, ours, theirs in fixed)
        raise ConfigError(
            f"these settings were fixed when {before} was trained in {teacher.path}:{lines}",
            f"Leave them out here, or train {before} with them first.",
        )


def require_same_networks(method: Method, config: Config, trained: Config, path: Path) -> None:
    """Refuse a checkpoint whose networks are not those of the configuration beside it.

    Raises:
        CheckpointError: names each setting.
    """
    networks = tuple(f"model.{branch}." for branch in method.branches)
    different = [d for d in differences(config, trained) if d[0].startswith(networks)]
    if different:
        lines = "".join(f"\n  {key}: {theirs!r} there, {ours!r} in config.yaml" for key, ours, theirs in different)
        raise CheckpointError(
            f"{path} has another architecture than config.yaml beside it says:{lines}",
            "Bring back the checkpoint that was trained there, or train it again with --force.",
        )

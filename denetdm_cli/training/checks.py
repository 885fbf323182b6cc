"""What must hold before a stage trains, and before a checkpoint is judged on data."""

from pathlib import Path
from typing import Any

from denetdm_cli.config.load import differences
from denetdm_cli.config.schema import (
    PLACE,
    SELECTION_RULES,
    BranchConfig,
    Config,
    DistillConfig,
    ModelConfig,
    SelectionRule,
    StageConfig,
    TrainPoeConfig,
)
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.evaluation.evaluator import Evaluation
from denetdm_cli.evaluation.metrics import LABEL_METRICS, group_metrics
from denetdm_cli.models.factory import build_branch, learns_from_one_image
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.utils.errors import CheckpointError, ConfigError
from denetdm_cli.utils.seed import seeded

_FREE_IN_STAGE_2 = ("distill.", "model.target.", "selection", "compute.", *PLACE)

_TRAINED = {"train_poe": ("shallow", "deep"), "distill": ("target",)}
"""The branches of each stage in which batch normalisation takes its statistics from the batch."""


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


def require_full_batch(settings: StageConfig, section: str, dataset: StoredDataset, model: ModelConfig) -> None:
    """Refuse batches larger than the data, and those of one image where a branch in training cannot do with it.

    Raises:
        ConfigError: the batch does not fit.
    """
    images, height, width, channels = dataset.splits["train"].images.shape
    if settings.batch_size > images:
        raise ConfigError(
            f"{section}.batch_size: {settings.batch_size} is larger than the training split, which has {images} images",
            f"Give a smaller --batch-size ({section} alone: --set {section}.batch_size=...).",
        )
    of_one = settings.batch_size == 1
    if not of_one and (settings.drop_last or images % settings.batch_size != 1):
        return
    for name in _TRAINED[section]:
        branch: BranchConfig = getattr(model, name)
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


def require_target(config: BranchConfig, image_shape: tuple[int, int, int]) -> None:
    """Refuse, before stage 1, a target branch that stage 2 could not begin with.

    ImageNet weights are not asked for: they may be fetched until then.

    Raises:
        ConfigError: torchvision has no such network, or it cannot take such images (C, H, W).
        CheckpointError: the file of start weights is missing, damaged or of another network.
    """
    with seeded(0, "a trial"):
        build_branch(config, image_shape, start_weights=getattr(config, "weights", None) != "imagenet")


def metrics_by_rule(
    settings: TrainPoeConfig | DistillConfig, section: str, dataset: StoredDataset, evaluation: Evaluation
) -> dict[SelectionRule, str]:
    """What each selection rule maximises: the metric of the configuration; `valid`, where its images lack the bias
    labels that this needs, accuracy.

    Raises:
        ConfigError: says what to select by instead.
    """
    metric = settings.selection_metric
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


def require_same_stage_1(config: Config, teacher: RunFolder) -> None:
    """Refuse a configuration that differs from that of stage 1 in what is not stage 2's own.

    Raises:
        ConfigError: names each setting.
    """
    fixed = [d for d in differences(config, teacher.config()) if not d[0].startswith(_FREE_IN_STAGE_2)]
    if fixed:
        lines = "".join(f"\n  {key}: {theirs!r} in stage 1, {ours!r} now" for key, ours, theirs in fixed)
        raise ConfigError(
            f"these settings were fixed when stage 1 was trained in {teacher.path}:{lines}",
            "Leave them out here, or train stage 1 with them first.",
        )


def require_same_teacher(config: Config, teacher: Config, path: Path) -> None:
    """Refuse a teacher of another architecture than its run folder says.

    Raises:
        CheckpointError: names each setting.
    """
    different = [d for d in differences(config, teacher) if d[0].startswith(("model.shallow.", "model.deep."))]
    if different:
        lines = "".join(f"\n  {key}: {theirs!r} there, {ours!r} in config.yaml" for key, ours, theirs in different)
        raise CheckpointError(
            f"{path} has another architecture than config.yaml beside it says:{lines}",
            "Bring back the checkpoint that was trained there, or train stage 1 again with --force.",
        )

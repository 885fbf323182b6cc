"""What must hold before a stage trains, and before a checkpoint is judged on data."""

from pathlib import Path
from typing import Any

from denetdm_cli.config import differences
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.errors import CheckpointError, ConfigError
from denetdm_cli.evaluation import LABEL_METRICS, Evaluation
from denetdm_cli.runs import RunFolder
from denetdm_cli.schema import Config, DistillConfig, ModelConfig, StageConfig, TrainPoeConfig

_FREE_IN_STAGE_2 = (
    "distill.", "model.target.", "selection", "device", "threads", "out", "dataset.root", "data.cache",
)  # fmt: skip


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
    """Refuse batches larger than the data, and a last batch of one image, which batch normalisation cannot do with.

    Raises:
        ConfigError: the batch does not fit.
    """
    images = len(dataset.splits["train"].target)
    if settings.batch_size > images:
        raise ConfigError(
            f"{section}.batch_size: {settings.batch_size} is larger than the training split, which has {images} images",
            "Give a smaller --batch-size.",
        )
    if model.convolutional and not settings.drop_last and images % settings.batch_size == 1:
        raise ConfigError(
            f"{section}.batch_size: {settings.batch_size} leaves a last batch of one of the {images} training images, "
            "and batch normalisation needs two",
            f"Give another --batch-size, or --set {section}.drop_last=true.",
        )


def require_metric(
    settings: TrainPoeConfig | DistillConfig, section: str, dataset: StoredDataset, evaluation: Evaluation
) -> None:
    """Refuse to select by bias labels where there are none.

    Raises:
        ConfigError: says what to select by instead.
    """
    metric = settings.selection_metric
    if metric.split(".")[1] in LABEL_METRICS:
        return
    bare = [name for name in evaluation.batches if dataset.splits[name].bias is None]
    if bare:
        predictor = metric.split(".")[0]
        raise ConfigError(
            f"{section}.selection_metric: {metric!r} needs bias labels, and {', '.join(bare)} of "
            f"{dataset.path} has none",
            f"Use one that needs class labels only: --set {section}.selection_metric={predictor}.accuracy "
            f"(or {predictor}.worst_class).",
        )


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

"""The two stages from configuration to run folder. They yield events; the console shows them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from denetdm_cli.config.schema import Config, DistillConfig, SelectionRule, TrainPoeConfig
from denetdm_cli.data.batches import Batches
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.evaluation.evaluator import Evaluation
from denetdm_cli.methods.base import Method
from denetdm_cli.methods.denetdm import separation
from denetdm_cli.methods.denetdm.distill import Distillation
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel, started_from
from denetdm_cli.methods.denetdm.poe import ProductOfExpertsTraining
from denetdm_cli.training import checkpoint
from denetdm_cli.training.checks import (
    metrics_by_rule,
    require_full_batch,
    require_same_data,
    require_same_stage_1,
    require_same_teacher,
    require_target,
)
from denetdm_cli.training.events import Event, StageFinished
from denetdm_cli.training.run_folder import Resume, RunFolder
from denetdm_cli.training.runner import Stage, already_finished, run
from denetdm_cli.utils import signals
from denetdm_cli.utils.device import resolve_device, use_threads
from denetdm_cli.utils.distributed import SINGLE_PROCESS, Ranks
from denetdm_cli.utils.errors import CheckpointError
from denetdm_cli.utils.files import sha256


@dataclass(frozen=True)
class RunOptions:
    """How a stage is carried out, which changes nothing of what it comes to.

    Attributes:
        resume: whether a stopped run is gone on with.
        force: start anew, and delete the run that is there.
        ranks: the processes that train it together.
    """

    resume: Resume = "auto"
    force: bool = False
    ranks: Ranks = SINGLE_PROCESS


class DataLoaders:
    """A data set on a device; runs that train together share it.

    Args:
        dataset: whose images.
        device: where they go.
        config: how they become batches, and the networks that read them.
    Attributes:
        evaluation: what runs are evaluated on.
    Raises:
        DataError: nothing is left to select on.
    """

    def __init__(self, dataset: StoredDataset, device: torch.device, config: Config) -> None:
        self._split = dataset.splits["train"]
        self._device = device
        self._config = config.data
        self._layout = config.model.convolutional
        self.evaluation = Evaluation.of(dataset, device, config.data, channels_last=self._layout)

    @cached_property
    def train(self) -> Batches:
        """The training images, brought to the device when they are first asked for."""
        return Batches(self._split, self._device, self._config, augment=True, channels_last=self._layout)


Shared: TypeAlias = dict[Path, DataLoaders]
"""By folder of the data set, what runs share; whoever needs one that is missing puts it there."""


def run_path(config: Config, dataset: StoredDataset) -> Path:
    """The folder of both stages of a run: `<out>/<data set and its settings>/seed<k>`."""
    return Path(config.out) / dataset.path.name / f"seed{config.seed}"


def train_poe(config: Config, dataset: StoredDataset, how: RunOptions = RunOptions()) -> Iterator[Event]:
    """Stage 1, into the folder `train-poe` of the run.

    Raises:
        UserError: whatever keeps it from running.
        Stopped: a signal asked for it; the state is kept.
    """
    with prepared_train_poe(config, dataset, how, {}) as stage:
        yield from run(stage, how.ranks)


def prepared_train_poe(
    config: Config, dataset: StoredDataset, how: RunOptions, shared: Shared
) -> AbstractContextManager[Stage | StageFinished]:
    """Stage 1, ready to train or already done; its folder is held, and signals wait, until the context is left.

    Raises:
        UserError: on entering, whatever keeps it from running.
    """
    folder = RunFolder(run_path(config, dataset) / "train-poe")

    def method(shape: tuple[int, int, int], device: torch.device, fresh: bool) -> Method:
        require_target(config.model.target, shape)
        model = ProductOfExperts(config.model, shape, len(dataset.class_names), config.seed, start_weights=fresh)
        return ProductOfExpertsTraining(model.to(device))

    facts = {"dataset": _describe(dataset)}
    return _prepared("train-poe", folder, config, config.train_poe, dataset, facts, method, how, shared)


def distill(
    config: Config, dataset: StoredDataset, teacher_folder: RunFolder, out: Path, how: RunOptions = RunOptions()
) -> Iterator[Event]:
    """Stage 2, into the folder `distill` of `out` (`distill-from-<rule>` where the teacher is not the last epoch's).

    Args:
        config: that of stage 1, but for what is stage 2's own.
        dataset: the one stage 1 was trained on.
        teacher_folder: the finished stage 1.
        out: the folder of the run.
        how: what to do with what is there, and with whom.
    Raises:
        UserError: whatever keeps it from running.
        Stopped: a signal asked for it; the state is kept.
    """
    with prepared_distill(config, dataset, teacher_folder, out, how, {}) as stage:
        yield from run(stage, how.ranks)


def prepared_distill(
    config: Config, dataset: StoredDataset, teacher_folder: RunFolder, out: Path, how: RunOptions, shared: Shared
) -> AbstractContextManager[Stage | StageFinished]:
    """Stage 2, ready to train or already done, as `prepared_train_poe`.

    Raises:
        UserError: at once or on entering, whatever keeps it from running.
    """
    require_same_stage_1(config, teacher_folder)
    rule = _teacher_rule(config)
    path = teacher_folder.checkpoint(rule)
    loaded = checkpoint.load_model(path, torch.device("cpu"))
    experts = loaded.model
    if not isinstance(experts, ProductOfExperts):
        raise CheckpointError(f"{path} is not a stage-1 checkpoint", "Give a run folder made by denetdm train-poe.")
    require_same_teacher(config, loaded.config, path)
    require_same_data(loaded.metadata, dataset, path)
    teacher = {key: loaded.metadata[key] for key in ("epoch", "selection", "separation")} | {"sha256": sha256(path)}
    folder = RunFolder(out / ("distill" if rule == "last" else f"distill-from-{rule}"))

    def method(shape: tuple[int, int, int], device: torch.device, fresh: bool) -> Method:
        model = TargetModel(config.model, shape, len(dataset.class_names), config.seed, start_weights=fresh)
        model.start_from(experts)
        return Distillation(model.to(device), experts.to(device), config.distill)

    facts = {"dataset": _describe(dataset), "teacher": teacher}
    return _prepared("distill", folder, config, config.distill, dataset, facts, method, how, shared)


@contextmanager
def _prepared(
    name: str,
    folder: RunFolder,
    config: Config,
    settings: TrainPoeConfig | DistillConfig,
    dataset: StoredDataset,
    facts: dict[str, Any],
    method: Callable[[tuple[int, int, int], torch.device, bool], Method],
    how: RunOptions,
    shared: Shared,
) -> Iterator[Stage | StageFinished]:
    """What both stages do once they know what to train: claim the folder, and make ready unless that was done before.

    All that can be refused is refused before the folder is touched; `method` builds the networks from the shape of an
    image (C, H, W), the device and whether they start afresh.
    """
    device = resolve_device(config.device, how.ranks)
    use_threads(config.threads, how.ranks)
    section = name.replace("-", "_")
    require_full_batch(settings, section, dataset, config.model)
    if dataset.path not in shared:
        shared[dataset.path] = DataLoaders(dataset, device, config)
    images = shared[dataset.path]
    metrics = metrics_by_rule(settings, section, dataset, images.evaluation)
    ranks = how.ranks
    finished, stopped = ranks.run_on_main(lambda: (folder.finished, folder.resume_file.exists()))
    if finished and not how.force:
        with ranks.enter_on_main(folder.claimed(config, how.resume)):
            yield ranks.run_on_main(lambda: already_finished(folder, facts))
        return
    fresh = how.force or not stopped
    height, width, channels = dataset.evaluation.images.shape[1:]
    trained = method((channels, height, width), device, fresh)
    signals.raise_swallowed()
    with ranks.enter_on_main(folder.claimed(config, how.resume, force=how.force)), signals.deferred():
        if isinstance(trained, Distillation) and not config.data.augments:
            with signals.immediate() if ranks.size == 1 else nullcontext():
                trained.precompute(images.train)
        if ranks.run_on_main(lambda: folder.finished):  # by another process, while this one built its networks
            yield ranks.run_on_main(lambda: already_finished(folder, facts))
            return
        if fresh:
            started = started_from(trained.model)
        else:
            started = ranks.run_on_main(lambda: checkpoint.load(folder.resume_file)[1]["start_weights"])
        facts = {**facts, "start_weights": started}
        signs = _signs(trained.model, images)
        yield Stage(name, folder, trained, images.train, images.evaluation, config, settings, facts, signs, metrics)


def _signs(model: nn.Module, images: DataLoaders) -> Callable[[], dict[str, Any]] | None:
    """What measures whether the branches of a stage-1 model separate."""
    if not isinstance(model, ProductOfExperts):
        return None
    evaluation = images.evaluation
    held = {"train": images.train, "evaluation": evaluation.batches[evaluation.parts["evaluation"][0]]}
    samples = {name: (batches, separation.sample(batches)) for name, batches in held.items()}

    def measure() -> dict[str, Any]:
        signs = {name: separation.signs(model, batches, index) for name, (batches, index) in samples.items()}
        return {**signs, "warnings": separation.warnings(signs["train"], signs["evaluation"])}

    return measure


def separation_warnings(config: Config, teacher_folder: RunFolder) -> list[str]:
    """What the stage-1 epoch that would be distilled from says of how its branches separated."""
    separated: dict[str, Any] = teacher_folder.results()["rules"][_teacher_rule(config)]["separation"]
    return list(separated["warnings"])


def _teacher_rule(config: Config) -> SelectionRule:
    return config.selection if config.distill.teacher == "selected" else "last"


def _describe(dataset: StoredDataset) -> dict[str, Any]:
    return {
        "name": dataset.path.name,
        "path": str(dataset.path),
        "digest": dataset.digest,
        "evaluation_digest": dataset.evaluation_digest,
        "valid_digest": dataset.valid_digest,
        "recipe": dict(dataset.manifest.recipe) if dataset.manifest else None,
        "image_shape": list(dataset.splits["train"].images.shape[1:]),
        "class_names": list(dataset.class_names),
        "bias_names": list(dataset.bias_names),
        "evaluation_split": dataset.evaluation_name,
        "own_valid_split": dataset.held_out is not None,
    }

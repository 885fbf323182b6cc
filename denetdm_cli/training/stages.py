"""From a configuration and a data set to a stage of any method, ready to train."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from denetdm_cli.config.schema import Config, SelectionRule
from denetdm_cli.data.batches import Batches
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.evaluation.evaluator import Evaluation
from denetdm_cli.methods import METHODS
from denetdm_cli.methods.base import Method, Task
from denetdm_cli.models.factory import started_from
from denetdm_cli.training import checkpoint
from denetdm_cli.training.checks import (
    metrics_by_rule,
    require_bias_labels,
    require_full_batch,
    require_networks,
    require_same_data,
    require_same_networks,
    require_same_settings,
)
from denetdm_cli.training.events import Event, StageFinished
from denetdm_cli.training.run_folder import Resume, RunFolder
from denetdm_cli.training.runner import Stage, already_finished, run
from denetdm_cli.utils import signals
from denetdm_cli.utils.device import resolve_device, use_deterministic_kernels, use_threads
from denetdm_cli.utils.distributed import SINGLE_PROCESS, Ranks
from denetdm_cli.utils.errors import CheckpointError
from denetdm_cli.utils.files import sha256


@dataclass(frozen=True)
class RunOptions:
    """How a stage is carried out, which changes no result.

    Attributes:
        resume: whether a stopped run is resumed.
        force: start anew, and delete the run that is there.
        ranks: the processes that train it together.
    """

    resume: Resume = "auto"
    force: bool = False
    ranks: Ranks = SINGLE_PROCESS


@dataclass(frozen=True)
class Teacher:
    """The finished stage that another one starts from.

    Attributes:
        rule: the selection rule whose checkpoint is taken.
        method: as trained, on the CPU.
        facts: epoch, selection, diagnostics and digest of the checkpoint.
    """

    rule: SelectionRule
    method: Method
    facts: dict[str, Any]


def run_path(config: Config, dataset: StoredDataset) -> Path:
    """The folder of all stages of a run: `<out>/<data set and its settings>/seed<k>`."""
    return Path(config.out) / dataset.path.name / f"seed{config.seed}"


def train(
    name: str,
    config: Config,
    dataset: StoredDataset,
    *,
    teacher_folder: RunFolder | None = None,
    out: Path | None = None,
    options: RunOptions = RunOptions(),
) -> Iterator[Event]:
    """Train a method into its folder of a run: `<name>`, or `<name>-from-<rule>` where its teacher was selected.

    Args:
        name: of the method.
        config: of the whole run; where the method starts from another, that of its run but for what may differ.
        dataset: the one the teacher was trained on.
        teacher_folder: the finished stage of the method it starts from.
        out: the folder of the run; by default `run_path`.
        options: what to do with a run that is there, and with whom to train.
    Raises:
        UserError: whatever keeps it from running.
        Stopped: a signal asked for it; the resume state is written.
    """
    run_folder = out or run_path(config, dataset)
    with prepared(name, config, dataset, teacher_folder, run_folder, options) as stage:
        yield from run(stage, options.ranks)


@contextmanager
def prepared(
    name: str,
    config: Config,
    dataset: StoredDataset,
    teacher_folder: RunFolder | None,
    run_folder: Path,
    options: RunOptions,
) -> Iterator[Stage | StageFinished]:
    """A stage ready to train or finished already; its folder is held and signals wait until the context is left.

    Everything that can be refused is refused before the folder is touched.

    Raises:
        UserError: whatever keeps it from running.
    """
    kind, settings, ranks = METHODS[name], config.settings(name), options.ranks
    teacher = _teacher(name, config, dataset, teacher_folder) if teacher_folder is not None else None
    folder = RunFolder(
        run_folder / (name if teacher is None or teacher.rule == "last" else f"{name}-from-{teacher.rule}")
    )
    facts = {"dataset": _describe(dataset), **({"teacher": teacher.facts} if teacher else {})}
    device = resolve_device(config.device, ranks)
    use_threads(config.threads, ranks)
    use_deterministic_kernels()
    require_bias_labels(kind, dataset)
    require_full_batch(kind, config, dataset)
    layout = config.model.convolutional
    evaluation = Evaluation.of(dataset, device, config.data, channels_last=layout)
    metrics = metrics_by_rule(settings, name, dataset, evaluation)
    finished, stopped = ranks.run_on_main(lambda: (folder.finished, folder.resume_file.exists()))
    if finished and not options.force:
        with ranks.enter_on_main(folder.claimed(config, options.resume)):
            yield ranks.run_on_main(lambda: already_finished(folder, facts))
        return
    fresh = options.force or not stopped
    require_networks(name, config, dataset)
    train_images = Batches(
        dataset.splits["train"], device, config.data, augment=True, channels_last=layout, with_bias=kind.needs_bias
    )
    method = kind.build(
        _task(kind, config, dataset, device, ranks, fresh=fresh), settings, teacher.method if teacher else None
    )
    signals.raise_swallowed()
    with ranks.enter_on_main(folder.claimed(config, options.resume, force=options.force)), signals.deferred():
        if ranks.run_on_main(lambda: folder.finished):  # by another process, while this one built its networks
            yield ranks.run_on_main(lambda: already_finished(folder, facts))
            return
        with signals.immediate() if ranks.size == 1 else nullcontext():
            method.prepare(train_images)
        if fresh:
            started = started_from(method.model)
        else:
            started = ranks.run_on_main(lambda: checkpoint.load(folder.resume_file)[1]["start_weights"])
        facts = {**facts, "start_weights": started}
        yield Stage(folder, method, train_images, evaluation, config, settings, facts, metrics)


def teacher_warnings(name: str, config: Config, teacher_folder: RunFolder) -> list[str]:
    """The warnings in the diagnostics of the epoch that a method would start from."""
    before = METHODS[METHODS[name].starts_from or name]
    epoch: dict[str, Any] = teacher_folder.results()["rules"][_teacher_rule(name, config)]
    return [warning for key in before.diagnostics for warning in epoch[key]["warnings"]]


def _teacher(name: str, config: Config, dataset: StoredDataset, folder: RunFolder) -> Teacher:
    """The checkpoint to start from, checked against the configuration and the data set.

    Raises:
        UserError: it cannot be started from.
    """
    kind = METHODS[name]
    require_same_settings(name, config, folder)
    rule = _teacher_rule(name, config)
    path = folder.checkpoint(rule)
    loaded = checkpoint.load_method(path, torch.device("cpu"))
    if loaded.method.name != kind.starts_from:
        raise CheckpointError(
            f"{path} is a checkpoint of {loaded.method.name}, and {name} starts from {kind.starts_from}",
            f"Give a run folder with a finished {kind.starts_from}.",
        )
    require_same_networks(loaded.method, config, loaded.config, path)
    require_same_data(loaded.metadata, dataset, path)
    known = ("epoch", "selection", *loaded.method.diagnostics)
    return Teacher(rule, loaded.method, {key: loaded.metadata[key] for key in known} | {"sha256": sha256(path)})


def _teacher_rule(name: str, config: Config) -> SelectionRule:
    return config.selection if getattr(config.settings(name), "teacher", "last") == "selected" else "last"


def _task(
    kind: type[Method], config: Config, dataset: StoredDataset, device: torch.device, ranks: Ranks, *, fresh: bool
) -> Task:
    split = dataset.splits["train"]
    height, width, channels = dataset.evaluation.images.shape[1:]
    return Task(
        networks=config.model,
        image_shape=(channels, height, width),
        classes=len(dataset.class_names),
        biases=len(dataset.bias_names),
        seed=config.seed,
        device=device,
        start_weights=fresh,
        target=torch.from_numpy(split.target.astype("int64")),
        bias=torch.from_numpy(split.bias.astype("int64")) if kind.needs_bias and split.bias is not None else None,
        ranks=ranks,
    )


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

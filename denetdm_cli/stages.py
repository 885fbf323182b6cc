"""The two stages from configuration to run folder. They yield events; the console shows them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from denetdm_cli import checkpoint, separation
from denetdm_cli.data.batches import Batches
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.errors import CheckpointError
from denetdm_cli.evaluation import Evaluation
from denetdm_cli.files import sha256
from denetdm_cli.methods.base import Method
from denetdm_cli.methods.distill import Distillation
from denetdm_cli.methods.poe import ProductOfExpertsTraining
from denetdm_cli.models.experts import ProductOfExperts, TargetModel, started_from
from denetdm_cli.optimizer import Adam
from denetdm_cli.preflight import (
    metrics_by_rule,
    require_full_batch,
    require_same_data,
    require_same_stage_1,
    require_same_teacher,
    require_target,
)
from denetdm_cli.runs import RunFolder
from denetdm_cli.runtime import derive_seed, resolve_device, use_threads, versions
from denetdm_cli.schema import SELECTION_RULES, Config, DistillConfig, SelectionRule, TrainPoeConfig
from denetdm_cli.selection import is_best, provenance, reported_metric
from denetdm_cli.training import EpochEnd, Progress, fit, make_optimizer


@dataclass(frozen=True)
class Began:
    """A stage is about to train `images` images an epoch, from `first_epoch` to `epochs`, writing to `folder`."""

    stage: str
    folder: Path
    first_epoch: int
    epochs: int
    images: int


@dataclass(frozen=True)
class EpochDone:
    """An epoch was trained, evaluated and written; `record` is its line in metrics.jsonl."""

    record: dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """The stage is complete; `results` is its results.json, `already` whether it had been before."""

    folder: Path
    results: dict[str, Any]
    already: bool


Event = Began | Progress | EpochDone | Finished


@dataclass(frozen=True)
class Stage:
    """One stage, ready to train.

    Attributes:
        name: train-poe or distill.
        folder: claimed for `config`.
        method: on the device of `train` and `evaluation`.
        config: of the whole run; `settings` is the section of this stage.
        facts: what every result and checkpoint of the stage says besides.
        signs: measures, after an epoch, whether the branches separate; None where there are not two.
        metrics: what each selection rule maximises.
    """

    name: str
    folder: RunFolder
    method: Method
    train: Batches
    evaluation: Evaluation
    config: Config
    settings: TrainPoeConfig | DistillConfig
    facts: dict[str, Any]
    signs: Callable[[], dict[str, Any]] | None
    metrics: dict[SelectionRule, str]


def run_path(config: Config, dataset: StoredDataset) -> Path:
    """The folder of both stages of a run: `<out>/<data set and its settings>/seed<k>`."""
    return Path(config.out) / dataset.path.name / f"seed{config.seed}"


def train_poe(config: Config, dataset: StoredDataset, *, resume: bool = False, force: bool = False) -> Iterator[Event]:
    """Stage 1, into the folder `train-poe` of the run.

    Raises:
        UserError: whatever keeps it from running.
    """
    folder = RunFolder(run_path(config, dataset) / "train-poe")

    def method(shape: tuple[int, int, int], device: torch.device, fresh: bool) -> Method:
        require_target(config.model.target, shape)
        model = ProductOfExperts(config.model, shape, len(dataset.class_names), config.seed, start_weights=fresh)
        return ProductOfExpertsTraining(model.to(device))

    facts = {"dataset": _describe(dataset)}
    yield from _claim_and_run("train-poe", folder, config, config.train_poe, dataset, facts, method, resume, force)


def distill(
    config: Config,
    dataset: StoredDataset,
    teacher_folder: RunFolder,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
) -> Iterator[Event]:
    """Stage 2, into the folder `distill` of `out` (`distill-from-<rule>` where the teacher is not the last epoch's).

    Args:
        config: that of stage 1, but for what is stage 2's own.
        dataset: the one stage 1 was trained on.
        teacher_folder: the finished stage 1.
        out: the folder of the run.
        resume: go on from the last completed epoch.
        force: start anew.
    Raises:
        UserError: whatever keeps it from running.
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
    yield from _claim_and_run("distill", folder, config, config.distill, dataset, facts, method, resume, force)


def _claim_and_run(
    name: str,
    folder: RunFolder,
    config: Config,
    settings: TrainPoeConfig | DistillConfig,
    dataset: StoredDataset,
    facts: dict[str, Any],
    method: Callable[[tuple[int, int, int], torch.device, bool], Method],
    resume: bool,
    force: bool,
) -> Iterator[Event]:
    """What both stages do once they know what to train: claim the folder, and train unless that was done before.

    All that can be refused is refused before the folder is touched; `method` builds the networks from the shape of an
    image (C, H, W), the device and whether they start afresh.
    """
    device = resolve_device(config.device)
    use_threads(config.threads)
    section = name.replace("-", "_")
    require_full_batch(settings, section, dataset, config.model)
    layout = config.model.convolutional
    evaluation = Evaluation.of(dataset, device, config.data, channels_last=layout)
    metrics = metrics_by_rule(settings, section, dataset, evaluation)
    fresh = force or not folder.resume_file.exists()
    if folder.finished and not force:
        with folder.claimed(config, resume=resume, force=force):
            yield _finished_before(folder, facts)
        return
    height, width, channels = dataset.evaluation.images.shape[1:]
    trained = method((channels, height, width), device, fresh)
    with folder.claimed(config, resume=resume, force=force):
        train = Batches(dataset.splits["train"], device, config.data, augment=True, channels_last=layout)
        if isinstance(trained, Distillation) and not config.data.augments:
            trained.precompute(train)
        started = started_from(trained.model) if fresh else checkpoint.load(folder.resume_file)[1]["start_weights"]
        facts = {**facts, "start_weights": started}
        signs = _signs(trained.model, train, evaluation)
        yield from _run(Stage(name, folder, trained, train, evaluation, config, settings, facts, signs, metrics))


def _signs(model: nn.Module, train: Batches, evaluation: Evaluation) -> Callable[[], dict[str, Any]] | None:
    """What measures whether the branches of a stage-1 model separate."""
    if not isinstance(model, ProductOfExperts):
        return None
    held = evaluation.batches[evaluation.parts["evaluation"][0]]
    images = {"train": (train, separation.sample(train)), "evaluation": (held, separation.sample(held))}

    def measure() -> dict[str, Any]:
        signs = {name: separation.signs(model, batches, index) for name, (batches, index) in images.items()}
        return {**signs, "warnings": separation.warnings(signs["train"], signs["evaluation"])}

    return measure


def _run(stage: Stage) -> Iterator[Event]:
    folder, method = stage.folder, stage.method
    optimizer = make_optimizer(method, stage.settings)
    completed = _restore(stage, optimizer)
    records = folder.keep_records(completed)
    yield Began(stage.name, folder.path, completed + 1, stage.settings.epochs, len(stage.train))
    seed = derive_seed(stage.config.seed, stage.name)
    for event in fit(method, stage.train, stage.settings, optimizer, seed=seed, first_epoch=completed + 1):
        if isinstance(event, Progress):
            yield event
            continue
        measured = stage.evaluation.measure(method, event.epoch)
        record = _record(event, measured) | ({"separation": stage.signs()} if stage.signs else {})
        records.append(record)
        # The order matters to a run that is killed in between: what is written before the resume state is made again,
        # equal to the last bit, when the epoch is run again.
        folder.add_record(record)
        for rule in SELECTION_RULES:
            if is_best(records, rule, stage.metrics[rule]):
                tensors = method.model.state_dict()
                checkpoint.save(folder.checkpoint(rule), tensors, _metadata(stage, rule, record, measured))
        state = checkpoint.training_state(method.model, optimizer)
        origin = {**_origin(stage.facts), "start_weights": stage.facts["start_weights"]}
        checkpoint.save(folder.resume_file, state, {"epoch": event.epoch, **origin})
        yield EpochDone(record)
    results = _results(stage, records)
    folder.finish(results)
    yield Finished(folder.path, results, already=False)


def _restore(stage: Stage, optimizer: Adam) -> int:
    """Load the state of a stopped run, if there is one, and return its completed epochs."""
    path = stage.folder.resume_file
    if not path.exists():
        return 0
    tensors, metadata = checkpoint.load(path)
    _require_same_origin(path, metadata, _origin(stage.facts))
    checkpoint.restore_training_state(tensors, stage.method.model, optimizer, path)
    return int(metadata["epoch"])


def _finished_before(folder: RunFolder, facts: dict[str, Any]) -> Finished:
    """The end of a run that is there already, if it was made from the same data and teacher."""
    results = folder.results()
    try:
        before = _origin(results)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder.results_file} is damaged: no {error}", "Start anew with --force.") from None
    _require_same_origin(folder.results_file, before, _origin(facts))
    if missing := [f"{rule}.safetensors" for rule in SELECTION_RULES if not folder.checkpoint(rule).is_file()]:
        raise CheckpointError(
            f"{folder.path} is finished, but {', '.join(missing)} is missing",
            "Bring it back, or start anew with --force.",
        )
    return Finished(folder.path, results, already=True)


def _origin(facts: dict[str, Any]) -> dict[str, Any]:
    """Digests of what a run is made from; they may not change until it is done."""
    teacher = facts.get("teacher")
    return {"data set": facts["dataset"]["digest"], "teacher": teacher and teacher["sha256"]}


def _require_same_origin(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, digest in now.items():
        if before.get(name) != digest:
            raise CheckpointError(
                f"{path}: the run was begun with another {name}: {before.get(name)} there, {digest} now",
                "Bring back what it was begun with, or start anew with --force.",
            )


def _record(event: EpochEnd, measured: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """A line of metrics.jsonl: everything measured but for the group tables."""
    accuracies = {
        part: {name: {k: v for k, v in metrics.items() if k != "groups"} for name, metrics in predictors.items()}
        for part, predictors in measured.items()
    }
    return {
        "epoch": event.epoch,
        "losses": event.losses,
        **accuracies,
        "seconds": event.seconds,
        "images": event.images,
    }


def _metadata(
    stage: Stage, rule: SelectionRule, record: dict[str, Any], measured: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What a checkpoint says of itself. No time of day, so that equal runs write equal bytes."""
    teacher = stage.facts.get("teacher", {}).get("selection")
    selection = provenance(rule, stage.metrics[rule], teacher)
    return {
        "stage": stage.name,
        "epoch": record["epoch"],
        "selection": selection,
        "metrics": measured[selection["reported_on"]],
        "reported_metric": reported_metric(stage.config),
        "separation": record.get("separation"),
        "seed": stage.config.seed,
        "device": str(stage.train.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        **stage.facts,
        "config": stage.config.model_dump(mode="json"),
    }


def _results(stage: Stage, records: list[dict[str, Any]]) -> dict[str, Any]:
    """results.json, put together from the checkpoints' own metadata."""
    kept = {rule: checkpoint.load(stage.folder.checkpoint(rule))[1] for rule in SELECTION_RULES}
    shared = {
        key: value for key, value in kept["last"].items() if key not in ("selection", "metrics", "epoch", "separation")
    }
    return {
        **shared,
        "selection": stage.config.selection,
        "epochs": len(records),
        "training_seconds": sum(record["seconds"] for record in records),
        "rules": {
            rule: {key: metadata[key] for key in ("epoch", "metrics", "separation")} | metadata["selection"]
            for rule, metadata in kept.items()
        },
    }


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
        "recipe": dict(dataset.manifest.recipe) if dataset.manifest else None,
        "image_shape": list(dataset.splits["train"].images.shape[1:]),
        "class_names": list(dataset.class_names),
        "bias_names": list(dataset.bias_names),
        "evaluation_split": dataset.evaluation_name,
        "own_valid_split": dataset.held_out is not None,
    }

"""The two stages from configuration to run folder. They yield events; the console shows them."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from denetdm_cli import checkpoint, separation, stopping
from denetdm_cli.data.batches import Batches
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.errors import CheckpointError
from denetdm_cli.evaluation import Evaluation
from denetdm_cli.files import sha256
from denetdm_cli.methods.base import Method
from denetdm_cli.methods.distill import Distillation
from denetdm_cli.methods.poe import ProductOfExpertsTraining
from denetdm_cli.models.experts import ProductOfExperts, TargetModel, started_from
from denetdm_cli.preflight import (
    metrics_by_rule,
    require_full_batch,
    require_same_data,
    require_same_stage_1,
    require_same_teacher,
    require_target,
)
from denetdm_cli.ranks import ALONE, Ranks
from denetdm_cli.runs import Resume, RunFolder
from denetdm_cli.runtime import derive_seed, resolve_device, use_threads, versions
from denetdm_cli.schema import SELECTION_RULES, Config, DistillConfig, SelectionRule, TrainPoeConfig
from denetdm_cli.selection import is_best, provenance, reported_metric
from denetdm_cli.training import EpochEnd, Progress, Training


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
class How:
    """How a stage is carried out, which changes nothing of what it comes to.

    Attributes:
        resume: whether a stopped run is gone on with.
        force: start anew, and delete the run that is there.
        ranks: the processes that train it together.
    """

    resume: Resume = "auto"
    force: bool = False
    ranks: Ranks = ALONE


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


def train_poe(config: Config, dataset: StoredDataset, how: How = How()) -> Iterator[Event]:
    """Stage 1, into the folder `train-poe` of the run.

    Raises:
        UserError: whatever keeps it from running.
        Stopped: a signal asked for it; the state is kept.
    """
    folder = RunFolder(run_path(config, dataset) / "train-poe")

    def method(shape: tuple[int, int, int], device: torch.device, fresh: bool) -> Method:
        require_target(config.model.target, shape)
        model = ProductOfExperts(config.model, shape, len(dataset.class_names), config.seed, start_weights=fresh)
        return ProductOfExpertsTraining(model.to(device))

    facts = {"dataset": _describe(dataset)}
    yield from _claim_and_run("train-poe", folder, config, config.train_poe, dataset, facts, method, how)


def distill(
    config: Config, dataset: StoredDataset, teacher_folder: RunFolder, out: Path, how: How = How()
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
    yield from _claim_and_run("distill", folder, config, config.distill, dataset, facts, method, how)


def _claim_and_run(
    name: str,
    folder: RunFolder,
    config: Config,
    settings: TrainPoeConfig | DistillConfig,
    dataset: StoredDataset,
    facts: dict[str, Any],
    method: Callable[[tuple[int, int, int], torch.device, bool], Method],
    how: How,
) -> Iterator[Event]:
    """What both stages do once they know what to train: claim the folder, and train unless that was done before.

    All that can be refused is refused before the folder is touched; `method` builds the networks from the shape of an
    image (C, H, W), the device and whether they start afresh.
    """
    device = resolve_device(config.device, how.ranks)
    use_threads(config.threads, how.ranks)
    section = name.replace("-", "_")
    require_full_batch(settings, section, dataset, config.model)
    layout = config.model.convolutional
    evaluation = Evaluation.of(dataset, device, config.data, channels_last=layout)
    metrics = metrics_by_rule(settings, section, dataset, evaluation)
    if folder.finished and not how.force:
        with how.ranks.first_enters(folder.claimed(config, how.resume)):
            yield _finished_before(folder, facts)
        return
    fresh = how.force or not folder.resume_file.exists()
    height, width, channels = dataset.evaluation.images.shape[1:]
    trained = method((channels, height, width), device, fresh)
    with how.ranks.first_enters(folder.claimed(config, how.resume, force=how.force)), stopping.deferred():
        train = Batches(dataset.splits["train"], device, config.data, augment=True, channels_last=layout)
        if isinstance(trained, Distillation) and not config.data.augments:
            trained.precompute(train)
        started = started_from(trained.model) if fresh else checkpoint.load(folder.resume_file)[1]["start_weights"]
        facts = {**facts, "start_weights": started}
        signs = _signs(trained.model, train, evaluation)
        yield from _run(Stage(name, folder, trained, train, evaluation, config, settings, facts, signs, metrics), how)


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


def _run(stage: Stage, how: How) -> Iterator[Event]:
    ranks, folder, config = how.ranks, stage.folder, stage.config
    seed = derive_seed(config.seed, stage.name)
    training = Training(stage.method, stage.train, stage.settings, seed=seed, compute=config.compute, ranks=ranks)
    _go_on(stage, training)
    records = ranks.first_does(lambda: folder.keep_records(training.completed))
    yield Began(stage.name, folder.path, training.completed + 1, stage.settings.epochs, len(stage.train))
    written = time.monotonic()
    for event in training.run():
        if isinstance(event, Progress):
            yield event
            if ranks.most(time.monotonic() - written) > 60 * config.checkpoint_minutes:
                _keep_state(stage, training, ranks)
                written = time.monotonic()
        else:
            measured, record = _measured(stage, training, event, ranks)
            records.append(record)
            if ranks.first:
                _write_epoch(stage, records, measured)
            training.next_epoch()
            _keep_state(stage, training, ranks)
            written = time.monotonic()
            yield EpochDone(record)
        if signal := int(ranks.most(stopping.waiting())):
            if isinstance(event, Progress):
                _keep_state(stage, training, ranks)
            raise stopping.Stopped(signal)
    yield Finished(folder.path, ranks.first_does(lambda: _finish(stage, records)), already=False)


def _measured(
    stage: Stage, training: Training, end: EpochEnd, ranks: Ranks
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What an epoch has come to, and its line in metrics.jsonl.

    A signal need not wait for the end of it, unless other ranks would.
    """
    try:
        with stopping.at_once() if ranks.size == 1 else nullcontext():
            measured = stage.evaluation.measure(stage.method, end.epoch, ranks)
            return measured, _record(end, measured) | ({"separation": stage.signs()} if stage.signs else {})
    except stopping.Stopped:
        _keep_state(stage, training, ranks)
        raise


def _write_epoch(stage: Stage, records: list[dict[str, Any]], measured: dict[str, dict[str, Any]]) -> None:
    """Add the newest of the records to metrics.jsonl, and keep the model for each rule that prefers it.

    A run that is killed in between makes what is written here again, equal to the last bit, from the state before.
    """
    stage.folder.add_record(records[-1])
    for rule in SELECTION_RULES:
        if is_best(records, rule, stage.metrics[rule]):
            tensors = stage.method.model.state_dict()
            checkpoint.save(stage.folder.checkpoint(rule), tensors, _metadata(stage, rule, records[-1], measured))


def _keep_state(stage: Stage, training: Training, ranks: Ranks) -> None:
    """Write what a resumed run needs to go on from here; all ranks together."""
    tensors, facts = training.state()
    origin = {**_origin(stage.facts), "start_weights": stage.facts["start_weights"]}
    if ranks.first:
        checkpoint.save(stage.folder.resume_file, tensors, {**facts, **origin})


def _finish(stage: Stage, records: list[dict[str, Any]]) -> dict[str, Any]:
    results = _results(stage, records)
    stage.folder.finish(results)
    return results


def _go_on(stage: Stage, training: Training) -> None:
    """Take up the state of a stopped run, if there is one."""
    path = stage.folder.resume_file
    if path.exists():
        tensors, metadata = checkpoint.load(path)
        _require_same_origin(path, metadata, _origin(stage.facts))
        training.go_on_from(tensors, metadata, path)


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

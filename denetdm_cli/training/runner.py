"""A stage in training: its events, and what it writes into its run folder, epoch by epoch."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from denetdm_cli.config.schema import SELECTION_RULES, Config, DistillConfig, SelectionRule, TrainPoeConfig
from denetdm_cli.data.batches import Batches
from denetdm_cli.evaluation.evaluator import Evaluation
from denetdm_cli.evaluation.selection import is_best, provenance, reported_metric
from denetdm_cli.methods.base import Method
from denetdm_cli.training import checkpoint
from denetdm_cli.training.events import EpochEvaluated, EpochTrained, Event, Progress, StageFinished, StageStarted
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.training.trainer import Training
from denetdm_cli.utils import signals
from denetdm_cli.utils.device import versions
from denetdm_cli.utils.distributed import SINGLE_PROCESS, Ranks
from denetdm_cli.utils.errors import CheckpointError
from denetdm_cli.utils.seed import derive_seed


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


@dataclass(frozen=True)
class Measured:
    """What an epoch has come to.

    Attributes:
        record: its line in metrics.jsonl.
        metrics: by part and predictor, the group tables included.
    """

    record: dict[str, Any]
    metrics: dict[str, dict[str, dict[str, Any]]]


class StageRunner:
    """A stage that trains, from where it was stopped or from the start.

    Args:
        stage: its folder is held.
        ranks: the processes that train it together; all of them must call every method together.
    Attributes:
        training: its networks, and how far they have come.
    Raises:
        CheckpointError: the state of the stopped run is damaged, or of a run from other data or another teacher.
    """

    def __init__(self, stage: Stage, ranks: Ranks = SINGLE_PROCESS) -> None:
        self._stage = stage
        self._ranks = ranks
        seed, compute = derive_seed(stage.config.seed, stage.name), stage.config.compute
        self.training = Training(stage.method, stage.train, stage.settings, seed=seed, compute=compute, ranks=ranks)
        resume_state = ranks.run_on_main(self._resume_state)
        if resume_state is not None:
            self.training.load_state_dict(*resume_state, stage.folder.resume_file)
        self._records = ranks.run_on_main(lambda: stage.folder.truncate_records(self.training.completed))
        self._written = time.monotonic()

    def began(self) -> StageStarted:
        """The event to begin with."""
        stage = self._stage
        return StageStarted(
            stage.name, stage.folder.path, self.training.completed + 1, stage.settings.epochs, len(stage.train)
        )

    def save_resume_state(self) -> None:
        """Write what a resumed run needs to go on from here."""
        stage = self._stage
        tensors, facts = self.training.state()
        origin = {**_origin(stage.facts), "start_weights": stage.facts["start_weights"]}
        if self._ranks.is_main:
            checkpoint.save(stage.folder.resume_file, tensors, {**facts, **origin})
        self._written = time.monotonic()

    def maybe_save_resume_state(self) -> None:
        """The same where the last time is as long ago as the configuration allows."""
        if self._ranks.all_reduce_max(time.monotonic() - self._written) > 60 * self._stage.config.checkpoint_minutes:
            self.save_resume_state()

    def measure(self, end: EpochTrained) -> Measured:
        """Evaluate the epoch that has ended.

        A signal need not wait for the end of it, unless other ranks would.

        Raises:
            NumericError: an output is not finite.
            Stopped: a signal asked for it.
        """
        stage = self._stage
        with signals.immediate() if self._ranks.size == 1 else nullcontext():
            measured = stage.evaluation.measure(stage.method, end.epoch, self._ranks)
            return Measured(_record(end, measured) | ({"separation": stage.signs()} if stage.signs else {}), measured)

    def write_epoch(self, measured: Measured) -> EpochEvaluated:
        """Let the epoch that was measured be behind, and keep the model for each rule that prefers it.

        A run that is killed in between makes what is written here again, equal to the last bit, from the state before.
        """
        stage, records = self._stage, self._records
        records.append(measured.record)
        if self._ranks.is_main:
            stage.folder.append_record(measured.record)
            for rule in SELECTION_RULES:
                if is_best(records, rule, stage.metrics[rule]):
                    metadata = _metadata(stage, rule, measured)
                    checkpoint.save(stage.folder.checkpoint(rule), stage.method.model.state_dict(), metadata)
        self.training.next_epoch()
        self.save_resume_state()
        return EpochEvaluated(measured.record)

    def finish(self) -> StageFinished:
        """Write the results; every epoch is done."""
        return StageFinished(self._stage.folder.path, self._ranks.run_on_main(self._write_results), already=False)

    def _resume_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and metadata of the resume state; None where there is none."""
        path = self._stage.folder.resume_file
        if not path.exists():
            return None
        tensors, metadata = checkpoint.load(path)
        _require_same_inputs(path, metadata, _origin(self._stage.facts))
        return tensors, metadata

    def _write_results(self) -> dict[str, Any]:
        results = _results(self._stage, self._records)
        self._stage.folder.finish(results)
        return results


def run(stage: Stage | StageFinished, ranks: Ranks = SINGLE_PROCESS) -> Iterator[Event]:
    """Train a stage to its end, unless that was done before.

    Raises:
        UserError: whatever keeps it from running.
        Stopped: a signal asked for it; the state is kept.
    """
    if isinstance(stage, StageFinished):
        yield stage
        return
    running = StageRunner(stage, ranks)
    yield running.began()
    for event in running.training.run():
        if isinstance(event, Progress):
            yield event
            running.maybe_save_resume_state()
        else:
            try:
                measured = running.measure(event)
            except signals.Stopped:
                running.save_resume_state()
                raise
            yield running.write_epoch(measured)
        if signal := int(ranks.all_reduce_max(signals.pending())):
            if isinstance(event, Progress):
                running.save_resume_state()
            raise signals.Stopped(signal)
    yield running.finish()


def already_finished(folder: RunFolder, facts: dict[str, Any]) -> StageFinished:
    """The end of a run that is there already, if it was made from the same data and teacher.

    Raises:
        CheckpointError: it was not, or something of it is missing or damaged.
    """
    results = folder.results()
    try:
        before = _origin(results)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder.results_file} is damaged: no {error}", "Start anew with --force.") from None
    _require_same_inputs(folder.results_file, before, _origin(facts))
    if missing := [f"{rule}.safetensors" for rule in SELECTION_RULES if not folder.checkpoint(rule).is_file()]:
        raise CheckpointError(
            f"{folder.path} is finished, but {', '.join(missing)} is missing",
            "Bring it back, or start anew with --force.",
        )
    return StageFinished(folder.path, results, already=True)


def _origin(facts: dict[str, Any]) -> dict[str, Any]:
    """Digests of what a run is made from; they may not change until it is done."""
    teacher = facts.get("teacher")
    return {"data set": facts["dataset"]["digest"], "teacher": teacher and teacher["sha256"]}


def _require_same_inputs(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, digest in now.items():
        if before.get(name) != digest:
            raise CheckpointError(
                f"{path}: the run was begun with another {name}: {before.get(name)} there, {digest} now",
                "Bring back what it was begun with, or start anew with --force.",
            )


def _record(event: EpochTrained, measured: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
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


def _metadata(stage: Stage, rule: SelectionRule, measured: Measured) -> dict[str, Any]:
    """What a checkpoint says of itself. No time of day, so that equal runs write equal bytes."""
    teacher = stage.facts.get("teacher", {}).get("selection")
    selection = provenance(rule, stage.metrics[rule], teacher)
    return {
        "stage": stage.name,
        "epoch": measured.record["epoch"],
        "selection": selection,
        "metrics": measured.metrics[selection["reported_on"]],
        "reported_metric": reported_metric(stage.config),
        "separation": measured.record.get("separation"),
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

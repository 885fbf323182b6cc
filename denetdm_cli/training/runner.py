"""One stage of a run: trains a method epoch by epoch, evaluates it, and writes its run folder."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from denetdm_cli.config.schema import SELECTION_RULES, Config, MethodSettings, SelectionRule
from denetdm_cli.data.batches import Batches
from denetdm_cli.evaluation.evaluator import Evaluation
from denetdm_cli.evaluation.selection import is_best, provenance, reported_metric
from denetdm_cli.methods.base import Method
from denetdm_cli.training import checkpoint
from denetdm_cli.training.events import EpochEvaluated, EpochTrained, Event, StageFinished, StageStarted, StepProgress
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.training.trainer import Trainer
from denetdm_cli.utils import signals
from denetdm_cli.utils.device import versions
from denetdm_cli.utils.distributed import SINGLE_PROCESS, Ranks
from denetdm_cli.utils.errors import CheckpointError
from denetdm_cli.utils.seed import derive_seed


@dataclass(frozen=True)
class Stage:
    """One stage, ready to train.

    Attributes:
        folder: claimed for `config`.
        method: on the device of `train` and `evaluation`.
        config: of the whole run; `settings` is the section of the method.
        facts: what every result and checkpoint of the stage says besides.
        metrics: what each selection rule maximizes.
    """

    folder: RunFolder
    method: Method
    train: Batches
    evaluation: Evaluation
    config: Config
    settings: MethodSettings
    facts: dict[str, Any]
    metrics: dict[SelectionRule, str]

    @property
    def reported(self) -> Batches:
        """The split that results are reported on."""
        return self.evaluation.batches[self.evaluation.parts["evaluation"][0]]


@dataclass(frozen=True)
class Measured:
    """The figures of an epoch.

    Attributes:
        record: its line in metrics.jsonl.
        metrics: by part and predictor, the group tables included.
    """

    record: dict[str, Any]
    metrics: dict[str, dict[str, dict[str, Any]]]


class StageRunner:
    """A stage that trains, from its resume state or from the start.

    Args:
        stage: its folder is held.
        ranks: the processes that train it together; all of them must call every method together.
    Attributes:
        trainer: the model and the steps taken so far.
    Raises:
        CheckpointError: the resume state is damaged, or of a run on other data or from another teacher.
    """

    def __init__(self, stage: Stage, ranks: Ranks = SINGLE_PROCESS) -> None:
        self._stage = stage
        self._ranks = ranks
        seed, compute = derive_seed(stage.config.seed, stage.method.name), stage.config.compute
        self.trainer = Trainer(stage.method, stage.train, stage.settings, seed=seed, compute=compute, ranks=ranks)
        resume_state = ranks.run_on_main(self._resume_state)
        if resume_state is not None:
            self.trainer.load_state_dict(*resume_state, stage.folder.resume_file)
        self._records = ranks.run_on_main(lambda: stage.folder.truncate_records(self.trainer.completed))
        self._saved = time.monotonic()

    def started(self) -> StageStarted:
        """The first event."""
        stage, first = self._stage, self.trainer.completed + 1
        return StageStarted(stage.method.name, stage.folder.path, first, stage.settings.epochs, len(stage.train))

    def save_resume_state(self) -> None:
        """Write what a resumed run needs."""
        stage = self._stage
        tensors, facts = self.trainer.state_dict()
        inputs = {**_inputs(stage.facts), "start_weights": stage.facts["start_weights"]}
        if self._ranks.is_main:
            checkpoint.save(stage.folder.resume_file, tensors, {**facts, **inputs})
        self._saved = time.monotonic()

    def maybe_save_resume_state(self) -> None:
        """Write it where the last time is as long ago as the configuration allows."""
        age = self._ranks.all_reduce_max(time.monotonic() - self._saved)
        if age > 60 * self._stage.config.checkpoint_minutes:
            self.save_resume_state()

    def measure(self, end: EpochTrained) -> Measured:
        """Evaluate the epoch that has ended.

        A signal interrupts it, unless other ranks would wait for this one.

        Raises:
            NumericError: an output is not finite.
            Stopped: a signal asked for it.
        """
        stage = self._stage
        with signals.immediate() if self._ranks.size == 1 else nullcontext():
            measured = stage.evaluation.measure(stage.method, end.epoch, self._ranks)
            return Measured(_record(end, measured) | stage.method.diagnose(stage), measured)

    def write_epoch(self, measured: Measured) -> EpochEvaluated:
        """Write the record of the epoch, its checkpoint for each rule that prefers it, and the resume state.

        A run that is killed in between writes the same again, equal to the last bit, from the resume state before.
        """
        stage, records = self._stage, self._records
        records.append(measured.record)
        if self._ranks.is_main:
            stage.folder.append_record(measured.record)
            for rule in SELECTION_RULES:
                if is_best(records, rule, stage.metrics[rule]):
                    metadata = _metadata(stage, rule, measured)
                    checkpoint.save(stage.folder.checkpoint(rule), stage.method.model.state_dict(), metadata)
        self.trainer.next_epoch()
        self.save_resume_state()
        return EpochEvaluated(measured.record)

    def finish(self) -> StageFinished:
        """Write the results of a stage whose epochs are all completed."""
        return StageFinished(self._stage.folder.path, self._ranks.run_on_main(self._write_results), already=False)

    def _resume_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and metadata of the resume state; None where there is none."""
        path = self._stage.folder.resume_file
        if not path.exists():
            return None
        tensors, metadata = checkpoint.load(path)
        _require_same_inputs(path, metadata, _inputs(self._stage.facts))
        return tensors, metadata

    def _write_results(self) -> dict[str, Any]:
        results = _results(self._stage, self._records)
        self._stage.folder.finish(results)
        return results


def run(stage: Stage | StageFinished, ranks: Ranks = SINGLE_PROCESS) -> Iterator[Event]:
    """Train a stage to its end, unless it is finished already.

    Raises:
        UserError: whatever keeps it from running.
        Stopped: a signal asked for it; the resume state is written.
    """
    if isinstance(stage, StageFinished):
        yield stage
        return
    runner = StageRunner(stage, ranks)
    yield runner.started()
    for event in runner.trainer.run():
        if isinstance(event, StepProgress):
            yield event
            runner.maybe_save_resume_state()
        else:
            try:
                measured = runner.measure(event)
            except signals.Stopped:
                runner.save_resume_state()
                raise
            yield runner.write_epoch(measured)
        if signal := int(ranks.all_reduce_max(signals.pending())):
            if isinstance(event, StepProgress):
                runner.save_resume_state()
            raise signals.Stopped(signal)
    yield runner.finish()


def already_finished(folder: RunFolder, facts: dict[str, Any]) -> StageFinished:
    """The end of a finished run, if it was made from the same data and teacher.

    Raises:
        CheckpointError: it was not, or something of it is missing or damaged.
    """
    results = folder.results()
    try:
        before = _inputs(results)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder.results_file} is damaged: no {error}", "Start anew with --force.") from None
    _require_same_inputs(folder.results_file, before, _inputs(facts))
    if missing := [f"{rule}.safetensors" for rule in SELECTION_RULES if not folder.checkpoint(rule).is_file()]:
        raise CheckpointError(
            f"{folder.path} is finished, but {', '.join(missing)} is missing",
            "Bring it back, or start anew with --force.",
        )
    return StageFinished(folder.path, results, already=True)


def _inputs(facts: dict[str, Any]) -> dict[str, Any]:
    """Digests of what a run is made from; they may not change until it is finished."""
    teacher = facts.get("teacher")
    return {"data set": facts["dataset"]["digest"], "teacher": teacher and teacher["sha256"]}


def _require_same_inputs(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, digest in now.items():
        if before.get(name) != digest:
            raise CheckpointError(
                f"{path}: the run was started with another {name}: {before.get(name)} there, {digest} now",
                "Bring back what it was started with, or start anew with --force.",
            )


def _record(event: EpochTrained, measured: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """A line of metrics.jsonl: everything measured but the group tables."""
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
    """The metadata of a checkpoint. No time of day, so that equal runs write equal bytes."""
    teacher = stage.facts.get("teacher", {}).get("selection")
    selection = provenance(rule, stage.metrics[rule], teacher)
    return {
        "stage": stage.method.name,
        "epoch": measured.record["epoch"],
        "selection": selection,
        "metrics": measured.metrics[selection["reported_on"]],
        "reported_metric": reported_metric(stage.config, stage.settings),
        **{key: measured.record[key] for key in stage.method.diagnostics},
        "seed": stage.config.seed,
        "device": str(stage.train.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        **stage.facts,
        "config": stage.config.model_dump(mode="json"),
    }


def _results(stage: Stage, records: list[dict[str, Any]]) -> dict[str, Any]:
    """results.json, put together from the metadata of the checkpoints."""
    kept = {rule: checkpoint.load(stage.folder.checkpoint(rule))[1] for rule in SELECTION_RULES}
    of_an_epoch = ("epoch", "metrics", *stage.method.diagnostics)
    return {
        **{key: value for key, value in kept["last"].items() if key not in ("selection", *of_an_epoch)},
        "selection": stage.config.selection,
        "epochs": len(records),
        "training_seconds": sum(record["seconds"] for record in records),
        "rules": {
            rule: {key: metadata[key] for key in of_an_epoch} | metadata["selection"] for rule, metadata in kept.items()
        },
    }

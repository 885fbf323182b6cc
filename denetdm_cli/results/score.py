"""Evaluation of checkpoints, which need no run folder, and means over several."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from denetdm_cli.config.load import differences, from_mapping
from denetdm_cli.config.schema import PLACE, SELECTION_RULES, Config, SelectionRule
from denetdm_cli.data.batches import Batches
from denetdm_cli.data.store import MANIFEST, Split, StoredDataset, open_dataset
from denetdm_cli.evaluation.evaluator import Predictions, parts_of, predict
from denetdm_cli.evaluation.metrics import METRICS, Groups
from denetdm_cli.evaluation.selection import overlap
from denetdm_cli.methods import METHODS
from denetdm_cli.results.aggregate import settings_of_other_methods
from denetdm_cli.training import checkpoint
from denetdm_cli.training.checks import require_same_data
from denetdm_cli.training.run_folder import RunFolder, stage_folders
from denetdm_cli.utils.device import use_threads, versions
from denetdm_cli.utils.errors import CheckpointError, ConfigError, DataError
from denetdm_cli.utils.files import atomic_file

_MAY_DIFFER = ("seed", *PLACE, "dataset.", "selection")
"""Keys in which checkpoints with a common mean may differ; data, rule and teacher are compared by the metadata."""
PREDICTION_COLUMNS = ("checkpoint", "index")
"""First columns of the CSV file of predictions."""


@dataclass(frozen=True)
class Score:
    """Accuracies of one checkpoint on one part of a data set.

    Attributes:
        path: the checkpoint.
        metadata: of the checkpoint.
        part: evaluation, valid, test or train.
        dataset: the folder and digest of the data, and the names of its classes and bias values.
        metrics: by predictor, as in `evaluation.metrics`.
        predictions: of every image.
        device: name of the device that computed it.
        files: the file of each image of the split, if known.
    """

    path: Path
    metadata: dict[str, Any]
    part: str
    dataset: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    predictions: Predictions
    device: str
    files: list[str] | None

    @property
    def on_selection_data(self) -> bool | None:
        """Whether some of the evaluated images picked the epoch, or that of its teacher; None: unknown."""
        trained_on, picked_on = self.metadata["dataset"], self.metadata["selection"]["picked_on"]
        own_valid = trained_on["own_valid_split"]
        shared = [part for part in picked_on if overlap(part, self.part, own_valid=own_valid)]
        digests = {"valid_digest" if own_valid and part == "valid" else "evaluation_digest" for part in shared}
        if any(trained_on.get(digest) is None for digest in digests):
            return None
        if any(self.dataset[digest] == trained_on[digest] for digest in digests):
            return True
        unchanged = self.dataset["digest"] == trained_on["digest"] or all(
            self.dataset[digest] == trained_on.get(digest) for digest in ("evaluation_digest", "valid_digest")
        )
        recipe, other = ((data.get("recipe") or {}).get("name") for data in (trained_on, self.dataset))
        # Different splits of one source may share images.
        may_share = bool(picked_on) and not unchanged and recipe is not None and recipe == other
        return None if may_share else False

    def to_json(self) -> dict[str, Any]:
        """Everything but the single predictions."""
        return {
            "checkpoint": str(self.path),
            "stage": self.metadata["stage"],
            "epoch": self.metadata["epoch"],
            "seed": self.metadata["seed"],
            "selection": self.metadata["selection"],
            "evaluated_on": {"split": self.part, "images": len(self.predictions.target), **self.dataset},
            "selected_on_these_images": self.on_selection_data,
            "trained_on": self.metadata["dataset"],
            "trained_with": self.metadata["versions"],
            "device": self.device,
            "versions": versions(),
            "reported_metric": self.metadata["reported_metric"],
            "metrics": self.metrics,
        }


def find_checkpoint(path: Path, rule: SelectionRule | None) -> Path:
    """The checkpoint at a path: a file, or the one that a rule kept in a stage folder or in the last stage of a run.

    Raises:
        CheckpointError: no checkpoint is found, or the run has several last stages.
        ConfigError: the file is the checkpoint of another rule.
    """
    if not path.is_dir() and (path.exists() or path.suffix):
        if rule is not None and path.stem in SELECTION_RULES and path.stem != rule:
            raise ConfigError(
                f"{path} is the checkpoint of the rule {path.stem!r}, and --select asks for {rule!r}",
                "Leave out --select, or give the run folder.",
            )
        return path
    stages = stage_folders(path)
    if not stages:
        seeds = [str(run) for run in sorted(path.glob("*/")) if stage_folders(run)] if path.is_dir() else []
        if seeds:
            raise CheckpointError(f"{path} is the folder of several runs", f"Name them: {' '.join(seeds)}")
        raise CheckpointError(
            f"{path} holds no run" if path.exists() else f"no checkpoint or run folder {path}",
            "Give a .safetensors file, or the folder of a run.",
        )
    last = _last_stages(list(stages))
    methods = {name.partition("-from-")[0] for name in last}
    preferred = [name for method in methods for name in (f"{method}-from-{rule}", method) if name in last]
    if len(methods) > 1 or (len(last) > 1 and not preferred):
        raise CheckpointError(
            f"{path} holds several stages: {', '.join(stages)}", f"Name one, such as {path / last[0]}."
        )
    folder = stages[(preferred or last)[0]]
    found = folder.checkpoint(rule or folder.config().selection)
    if not found.is_file():
        raise CheckpointError(
            f"{folder.path} holds no {found.name}: no epoch was completed", "Train it first, or name another run."
        )
    return found


def _last_stages(names: Sequence[str]) -> list[str]:
    """The stages of a run that no other of its stages starts from."""
    method_of = {name: METHODS.get(RunFolder(Path(name)).method) for name in names}
    before = {method.starts_from for method in method_of.values() if method is not None}
    return [name for name, method in method_of.items() if method is None or method.name not in before]


def score_all(
    paths: Sequence[Path],
    device: torch.device,
    open_own: Callable[[Config], StoredDataset],
    *,
    data: Path | None = None,
    part: str | None = None,
) -> Iterator[Score]:
    """Evaluate checkpoints in turn; a data set that several share is read once.

    Args:
        paths: checkpoints.
        device: for the computation.
        open_own: opens the data set of a configuration.
        data: another data set to score all of them on.
        part: evaluation, valid, test or train; by default what the checkpoint's selection rule reports on, and
            all of the evaluation split of other data.
    Raises:
        UserError: a checkpoint or data set is missing, damaged or does not fit.
    """
    datasets: dict[Path, StoredDataset] = {}
    batches: dict[tuple[Path, str, str, bool], Batches] = {}
    for path in paths:
        loaded = checkpoint.load_method(path, device)
        use_threads(loaded.config.threads)
        trained_on = loaded.metadata["dataset"]
        classes = len(trained_on["class_names"])
        if data is None and trained_on["path"] is None:
            raise ConfigError(
                f"{path} was converted and does not name its training data", "Give a data set: --data DIR."
            )
        where = data or Path(trained_on["path"])
        if where not in datasets:
            unnamed = None if (where / MANIFEST).is_file() else classes  # a manifest names its classes
            datasets[where] = open_dataset(where, classes=unnamed) if data else open_own(loaded.config)
        dataset = datasets[where]
        if data is None:
            require_same_data(loaded.metadata, dataset, path)
        picked_here = dataset.evaluation_digest == trained_on["evaluation_digest"]
        chosen = part or (str(loaded.metadata["selection"]["reported_on"]) if picked_here else "evaluation")
        split_name, rows = ("train", None) if chosen == "train" else parts_of(dataset)[chosen]
        _require_fit(dataset.splits[split_name], dataset, path, trained_on)
        images = loaded.config.data.model_copy(
            update={"cache": "auto"}
        )  # the machine of the training may have had other memory
        layout = loaded.config.model.convolutional
        key = (where, split_name, images.model_dump_json(), layout)
        if key not in batches:
            batches[key] = Batches(dataset.splits[split_name], device, images, channels_last=layout)
        predictions = predict(loaded.method.model, loaded.method.predict_all, batches[key]).at(rows)
        yield Score(
            path=path,
            metadata=loaded.metadata,
            part=chosen,
            dataset={
                "path": str(dataset.path),
                "folder": split_name,
                "digest": dataset.digest,
                "evaluation_digest": dataset.evaluation_digest,
                "valid_digest": dataset.valid_digest,
                "recipe": dict(dataset.manifest.recipe) if dataset.manifest else None,
                "class_names": trained_on["class_names"],
                "bias_names": _bias_names(dataset, trained_on["bias_names"]),
            },
            metrics=predictions.metrics(Groups.of(dataset, classes)),
            predictions=predictions,
            device=str(device),
            files=dataset.files(split_name),
        )


def _bias_names(dataset: StoredDataset, trained_on: list[str]) -> list[str]:
    """Names of the bias values; those of the training data if the data set has no names and as many values."""
    own = list(dataset.bias_names)
    return trained_on if dataset.manifest is None and len(own) == len(trained_on) else own


def mean_and_std(scores: Sequence[Score]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mean and sample standard deviation (n - 1) of every metric over several checkpoints, by predictor.

    Raises:
        ConfigError: the checkpoints differ in stage, selection rule, settings or evaluated images.
    """
    if len({score.path.resolve() for score in scores}) < len(scores):
        raise ConfigError("a checkpoint is given twice, so a mean would count it twice", "Name each of them once.")
    alike: dict[str, set[str]] = {
        "stage": {score.metadata["stage"] for score in scores},
        "teacher": {str(score.metadata["selection"]["teacher_rule"]) for score in scores},
        "training data": {(score.metadata["dataset"]["digest"] or "unknown")[:16] for score in scores},
        "selection rule": {score.metadata["selection"]["rule"] for score in scores},
        "evaluated part": {score.part for score in scores},
        "data set": {score.dataset["digest"][:16] for score in scores},
    }
    for name, found in alike.items():
        if len(found) > 1:
            raise ConfigError(
                f"no mean over checkpoints of different {name}: {', '.join(sorted(found))}",
                "Evaluate them in separate calls, or make them alike with --select, --split or --data.",
            )
    if keys := _different_settings(scores):
        raise ConfigError(
            f"no mean over checkpoints trained with different {', '.join(sorted(keys))}",
            "Evaluate them in separate calls.",
        )
    summary: dict[str, dict[str, dict[str, float | None]]] = {}
    for predictor in scores[0].metrics:
        for metric in METRICS:
            values = [score.metrics[predictor][metric] for score in scores]
            if None not in values:
                deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
                summary.setdefault(predictor, {})[metric] = {"mean": float(np.mean(values)), "std": deviation}
    return summary


def _different_settings(scores: Sequence[Score]) -> set[str]:
    """Keys of the configuration that differ and decide what was trained."""
    metadata = scores[0].metadata
    may_differ = _MAY_DIFFER + settings_of_other_methods(metadata["stage"], metadata["config"])
    first, *others = [from_mapping(score.metadata["config"], f"kept in {score.path}") for score in scores]
    different = {key for other in others for key, _, _ in differences(first, other)}
    return {key for key in different if not key.startswith(may_differ) and not key.endswith(".teacher")}


def write_predictions(path: Path, scores: Sequence[Score]) -> None:
    """Write a row for each image and checkpoint: file if known, labels, predicted class and confidence by predictor."""
    predictors = list(scores[0].predictions.predicted)
    columns = [column for name in predictors for column in (f"predicted_{name}", f"confidence_{name}")]
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        named = any(score.files for score in scores)
        writer.writerow([*PREDICTION_COLUMNS, *(["file"] if named else []), "target", "bias", *columns])
        for score in scores:
            found = score.predictions
            values = [part[name].tolist() for name in predictors for part in (found.predicted, found.confidence)]
            bias = [""] * len(found.target) if found.bias is None else found.bias.tolist()
            names = [[score.files[index] if score.files else "" for index in found.index.tolist()]] if named else []
            rows = zip(found.index.tolist(), *names, found.target.tolist(), bias, *values, strict=True)
            writer.writerows((str(score.path), *row) for row in rows)


def _require_fit(split: Split, dataset: StoredDataset, path: Path, trained_on: dict[str, Any]) -> None:
    found, expected = list(split.images.shape[1:]), trained_on["image_shape"]
    if found != expected:
        raise DataError(
            f"{dataset.path} holds images of shape {found}, and {path} was trained on {expected}",
            "Give a data set of the same image size.",
        )
    classes = trained_on["class_names"]
    if dataset.manifest is not None and list(dataset.class_names) != classes:
        raise DataError(
            f"{dataset.path} has the classes {', '.join(dataset.class_names)}, and {path} was trained on "
            f"{', '.join(classes)}",
            "Give a data set with the same classes in the same order.",
        )

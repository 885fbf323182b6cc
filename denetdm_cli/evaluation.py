"""Group accuracies of any predictors, one pass over the data for all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from denetdm_cli.data.batches import Batches
from denetdm_cli.data.store import EVALUATION, StoredDataset, require_groups
from denetdm_cli.errors import DataError, NumericError
from denetdm_cli.methods.base import Method

Parts = dict[str, NDArray[np.int64] | None]

METRICS = ("unbiased", "accuracy", "aligned", "conflicting", "worst_group")
_HOLDOUT_SHARE = 0.1
_HOLDOUT_SEED = 0


@dataclass(frozen=True)
class Predictions:
    """What every predictor says of every image of a split; N images.

    Attributes:
        index: (N,) int64, positions in the split.
        target: (N,) int64, true classes.
        bias: (N,) int64, bias attributes.
        predicted: predictor to (N,) int64, predicted classes.
        confidence: predictor to (N,) float32, softmax probability of the predicted class.
    """

    index: NDArray[np.int64]
    target: NDArray[np.int64]
    bias: NDArray[np.int64]
    predicted: dict[str, NDArray[np.int64]]
    confidence: dict[str, NDArray[np.float32]]

    def at(self, rows: NDArray[np.int64] | None) -> "Predictions":
        """Those of some images; None is all of them."""
        if rows is None:
            return self
        return Predictions(
            self.index[rows],
            self.target[rows],
            self.bias[rows],
            {name: values[rows] for name, values in self.predicted.items()},
            {name: values[rows] for name, values in self.confidence.items()},
        )

    def metrics(self, classes: int) -> dict[str, dict[str, Any]]:
        """Per predictor, the result of `group_metrics`."""
        return {
            name: group_metrics(self.target, self.bias, predicted, classes)
            for name, predicted in self.predicted.items()
        }


@torch.inference_mode()
def predict(model: nn.Module, predictors: Callable[[Tensor], Mapping[str, Tensor]], batches: Batches) -> Predictions:
    """Run all predictors over a split in one pass, in evaluation mode.

    Args:
        model: the module behind the predictors; its mode is restored.
        predictors: images (B, C, H, W) to logits (B, classes) by name.
        batches: the split.
    """
    was_training = model.training
    model.eval()
    columns: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for batch in batches.in_order(1000):
        for name, logits in predictors(batch.x).items():
            confidence, predicted = logits.softmax(dim=1).max(dim=1)
            columns.setdefault(name, []).append((predicted, confidence))
    model.train(was_training)
    return Predictions(
        np.arange(len(batches)),
        batches.target,
        batches.bias,
        {name: _numpy([predicted for predicted, _ in parts]) for name, parts in columns.items()},
        {name: _numpy([confidence for _, confidence in parts]) for name, parts in columns.items()},
    )


def group_metrics(
    target: NDArray[np.int64], bias: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> dict[str, Any]:
    """Accuracies of one predictor, as shares between 0 and 1; groups without images are left out of every mean.

    Args:
        target: (N,) true classes.
        bias: (N,) bias attributes, below `classes`.
        predicted: (N,) predicted classes.
        classes: number of classes and of bias values.
    Returns:
        `unbiased`, `aligned`, `conflicting`: mean accuracy over all, diagonal and off-diagonal groups, as in DeNetDM's
        evaluation; `accuracy`: sample-weighted; `worst_group`: the lowest, with `worst_group_of` its [target, bias];
        `groups`: (classes, classes) accuracies by [target][bias]. None where there is no image to judge by.
    """
    group = target * classes + bias
    total = np.bincount(group, minlength=classes * classes)
    correct = np.bincount(group[predicted == target], minlength=classes * classes)
    present = total > 0
    share = np.divide(correct, total, out=np.full(classes * classes, np.nan), where=present)
    diagonal = np.eye(classes, dtype=bool).ravel()
    worst = int(np.nanargmin(share)) if present.any() else None
    return {
        "unbiased": _mean(share[present]),
        "accuracy": _mean(predicted == target),
        "aligned": _mean(share[present & diagonal]),
        "conflicting": _mean(share[present & ~diagonal]),
        "worst_group": None if worst is None else float(share[worst]),
        "worst_group_of": None if worst is None else [worst // classes, worst % classes],
        "groups": [[None if np.isnan(s) else s for s in row] for row in share.reshape(classes, classes).tolist()],
    }


def divide(target: NDArray[np.integer[Any]], bias: NDArray[np.integer[Any]]) -> Parts:
    """Divide an evaluation split into a fixed tenth to select on, `valid`, and the other nine tenths, `test`.

    The tenth is taken from each (target, bias) group, rounded to whole images and at least one of two or more, by a
    stream of random numbers that is the same on every machine and for every training seed.

    Returns:
        Sorted positions by part; None, for `evaluation`, is the whole split.
    """
    random = np.random.RandomState(_HOLDOUT_SEED)  # its stream is the one that numpy promises never to change
    chosen: list[NDArray[np.int64]] = []
    for group in np.unique(np.stack([target, bias], axis=1), axis=0):
        members = np.flatnonzero((target == group[0]) & (bias == group[1]))
        tenth = max(round(len(members) * _HOLDOUT_SHARE), 1 if len(members) > 1 else 0)
        chosen.append(random.permutation(members)[:tenth])
    valid = np.sort(np.concatenate(chosen))
    return {"evaluation": None, "valid": valid, "test": np.setdiff1d(np.arange(len(target)), valid)}


@dataclass(frozen=True)
class Evaluation:
    """The evaluation split on the device, and the parts it is divided into.

    Attributes:
        batches: every image of the split.
        classes: number of classes and of bias values.
        parts: as `divide` gives them.
    """

    batches: Batches
    classes: int
    parts: Parts

    @staticmethod
    def of(dataset: StoredDataset, classes: int, device: torch.device) -> "Evaluation":
        """Bring the evaluation split of a data set to the device.

        Raises:
            DataError: a group has no image, or all have only one.
        """
        split = dataset.splits[EVALUATION]
        require_groups(split, f"{EVALUATION} of {dataset.path}", classes)
        parts = divide(split.target, split.bias)
        if parts["valid"] is None or not len(parts["valid"]):
            raise DataError(
                f"{EVALUATION} of {dataset.path} has no group with two images or more, so no part to select on",
                "Use an evaluation split with at least two images in a group.",
            )
        return Evaluation(Batches(split, device), classes, parts)

    def measure(self, method: Method, epoch: int) -> dict[str, dict[str, dict[str, Any]]]:
        """Metrics by part and predictor, in one pass.

        Raises:
            NumericError: an output is not finite.
        """
        predictions = predict(method.model, method.predict, self.batches)
        if not all(np.isfinite(confidence).all() for confidence in predictions.confidence.values()):
            # No loss has seen what the last step of an epoch did, and a checkpoint must not hold what it broke.
            raise NumericError(f"the outputs are no longer finite after the last step of epoch {epoch}")
        return {part: predictions.at(rows).metrics(self.classes) for part, rows in self.parts.items()}


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None


def _numpy(parts: list[Tensor]) -> NDArray[Any]:
    return torch.cat(parts).cpu().numpy()

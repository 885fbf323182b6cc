"""Group accuracies of any predictors, one pass over the data for all of them."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from denetdm_cli.config.schema import DataConfig, section_of
from denetdm_cli.data.batches import Batches
from denetdm_cli.data.store import Split, StoredDataset
from denetdm_cli.evaluation.metrics import Groups, group_metrics
from denetdm_cli.methods.base import Method
from denetdm_cli.utils.distributed import SINGLE_PROCESS, Ranks
from denetdm_cli.utils.errors import DataError, NumericError

Parts = dict[str, tuple[str, NDArray[np.int64] | None]]
"""Part to the name of its split and sorted positions there; None is the whole split."""

_HOLDOUT_SHARE = 0.1
_HOLDOUT_SEED = 0


@dataclass(frozen=True)
class Predictions:
    """What every predictor says of every image of a split; N images.

    Attributes:
        index: (N,) int64, positions in the split.
        target: (N,) int64, true classes.
        bias: (N,) int64, bias attributes; None without bias labels.
        predicted: predictor to (N,) int64, predicted classes.
        confidence: predictor to (N,) float32, softmax probability of the predicted class.
    """

    index: NDArray[np.int64]
    target: NDArray[np.int64]
    bias: NDArray[np.int64] | None
    predicted: dict[str, NDArray[np.int64]]
    confidence: dict[str, NDArray[np.float32]]

    def at(self, rows: NDArray[np.int64] | None) -> "Predictions":
        """Those of some images; None is all of them."""
        if rows is None:
            return self
        return Predictions(
            self.index[rows],
            self.target[rows],
            None if self.bias is None else self.bias[rows],
            {name: values[rows] for name, values in self.predicted.items()},
            {name: values[rows] for name, values in self.confidence.items()},
        )

    def metrics(self, groups: "Groups") -> dict[str, dict[str, Any]]:
        """Per predictor, the result of `group_metrics`."""
        return {
            name: group_metrics(self.target, self.bias, predicted, groups) for name, predicted in self.predicted.items()
        }


@torch.inference_mode()
def predict(
    model: nn.Module,
    predictors: Callable[[Tensor], Mapping[str, Tensor]],
    batches: Batches,
    ranks: Ranks = SINGLE_PROCESS,
) -> Predictions:
    """Run all predictors over a split in one pass, in evaluation mode.

    Args:
        model: the module behind the predictors; its mode is restored.
        predictors: images (B, C, H, W) to logits (B, classes) by name.
        batches: the split.
        ranks: they divide the batches among themselves, and all get the whole.
    """
    was_training = model.training
    model.eval()
    count, device = len(batches), batches.device
    predicted: dict[str, Tensor] = defaultdict(lambda: torch.zeros(count, dtype=torch.int64, device=device))
    confidence: dict[str, Tensor] = defaultdict(lambda: torch.zeros(count, device=device))
    for batch in batches.in_order(share=(ranks.rank, ranks.size)):
        for name, logits in predictors(batch.x).items():
            confidence[name][batch.index], predicted[name][batch.index] = logits.softmax(dim=1).max(dim=1)
    if not predicted:  # more ranks than batches, but all must talk of the same predictors
        for name in predictors(batches.take(torch.zeros(1, dtype=torch.int64, device=device)).x):
            confidence[name].zero_(), predicted[name].zero_()
    model.train(was_training)
    # An image is in one rank's share and 0 in the others, so a sum over the ranks puts the shares together.
    return Predictions(
        np.arange(len(batches)),
        batches.target,
        batches.bias,
        {name: ranks.all_reduce_sum(values).cpu().numpy() for name, values in predicted.items()},
        {name: ranks.all_reduce_sum(values).cpu().numpy() for name, values in confidence.items()},
    )


def divide(target: NDArray[np.integer[Any]], bias: NDArray[np.integer[Any]] | None) -> tuple[NDArray[np.int64], ...]:
    """Divide an evaluation split into a fixed tenth to select on and the other nine tenths.

    The tenth is taken from each (target, bias) group, or class without bias labels, rounded to whole images and at
    least one of two or more, by a stream of random numbers that is the same on every machine and for every seed.

    Returns:
        Sorted positions of the tenth and of the rest.
    """
    random = np.random.RandomState(_HOLDOUT_SEED)  # its stream is the one that numpy promises never to change
    chosen: list[NDArray[np.int64]] = []
    pairs = np.stack([target, np.zeros_like(target) if bias is None else bias], axis=1)
    for group in np.unique(pairs, axis=0):
        members = np.flatnonzero((pairs == group).all(axis=1))
        tenth = max(round(len(members) * _HOLDOUT_SHARE), 1 if len(members) > 1 else 0)
        chosen.append(random.permutation(members)[:tenth])
    valid = np.sort(np.concatenate(chosen))
    return valid, np.setdiff1d(np.arange(len(target)), valid)


def parts_of(dataset: StoredDataset) -> Parts:
    """What results can be measured on: `evaluation`, all of the evaluation split; `valid`, to select on; `test`.

    A data set with a split of its own to select on keeps it, and `test` is `evaluation`; another's evaluation split is
    divided (see `divide`).

    Raises:
        DataError: nothing is left to select on.
    """
    name, split = dataset.evaluation_name, dataset.evaluation
    if dataset.held_out is not None:
        return {"evaluation": (name, None), "valid": ("valid", None), "test": (name, None)}
    valid, test = divide(split.target, split.bias)
    if not len(valid):
        raise DataError(
            f"{name} of {dataset.path} has no group with two images or more, so no part to select on",
            "Use an evaluation split with at least two images in a group.",
        )
    return {"evaluation": (name, None), "valid": (name, valid), "test": (name, test)}


@dataclass(frozen=True)
class Evaluation:
    """What a run is evaluated on.

    Attributes:
        batches: the splits by name.
        groups: those of the data set.
        parts: as `parts_of` gives them.
    """

    batches: dict[str, Batches]
    groups: Groups
    parts: Parts

    @staticmethod
    def of(
        dataset: StoredDataset, device: torch.device, config: DataConfig, *, channels_last: bool = False
    ) -> "Evaluation":
        """Bring what a data set is evaluated on to the device.

        Raises:
            DataError: nothing is left to select on.
        """
        parts = parts_of(dataset)
        splits: dict[str, Split] = {name: dataset.splits[name] for name, _ in parts.values()}
        batches = {name: Batches(split, device, config, channels_last=channels_last) for name, split in splits.items()}
        return Evaluation(batches, Groups.of(dataset), parts)

    def measure(
        self, method: Method, epoch: int, ranks: Ranks = SINGLE_PROCESS
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """Metrics by part and predictor, in one pass over each split that the ranks divide among themselves.

        Raises:
            NumericError: an output is not finite.
        """
        ranks.broadcast_buffers(method.model)  # or each rank measures with BatchNorm statistics of its own
        found = {name: predict(method.model, method.predict, batches, ranks) for name, batches in self.batches.items()}
        for predictions in found.values():
            if not all(np.isfinite(confidence).all() for confidence in predictions.confidence.values()):
                # No loss has seen what the last step of an epoch did, and a checkpoint must not hold what it broke.
                what = f"the outputs are no longer finite after the last step of epoch {epoch}"
                raise NumericError.of(what, section_of(method.name))
        return {part: found[name].at(rows).metrics(self.groups) for part, (name, rows) in self.parts.items()}

"""Accuracies of groups, classes and samples, from arrays alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denetdm_cli.data.store import StoredDataset

METRICS = ("unbiased", "accuracy", "aligned", "conflicting", "worst_group", "worst_class")
LABEL_METRICS = ("accuracy", "worst_class")
"""Those that need no bias labels."""


@dataclass(frozen=True)
class Groups:
    """The (target, bias) groups of a data set.

    Attributes:
        classes: number of target classes.
        biases: number of bias values.
        aligned: (classes,) the bias value tied to each class; empty where that is not known.
    """

    classes: int
    biases: int
    aligned: tuple[int, ...]

    @staticmethod
    def of(dataset: StoredDataset, classes: int | None = None) -> "Groups":
        """Those of a data set, with as many classes as it says or as are given."""
        classes = classes or len(dataset.class_names)
        aligned = dataset.aligned if dataset.manifest else tuple(range(classes))
        return Groups(classes, max(len(dataset.bias_names), 1), aligned)


def group_metrics(
    target: NDArray[np.int64], bias: NDArray[np.int64] | None, predicted: NDArray[np.int64], groups: Groups
) -> dict[str, Any]:
    """Accuracies of one predictor, as shares between 0 and 1; groups without images are left out of every mean.

    Args:
        target: (N,) true classes.
        bias: (N,) bias attributes; None without bias labels.
        predicted: (N,) predicted classes.
        groups: what groups there can be.
    Returns:
        `unbiased`, `aligned`, `conflicting`: mean accuracy over all groups, those whose bias value is tied to their
        class, and the others, as in DeNetDM's evaluation; `accuracy`: sample-weighted; `worst_group` and `worst_class`:
        the lowest, with `worst_group_of` its [target, bias] and `worst_class_of` its target; `groups`: (classes,
        biases) accuracies by [target][bias]. None where there are no images or no bias labels to judge by.
    """
    by_class = _shares(target, predicted == target, groups.classes)
    metrics: dict[str, Any] = dict.fromkeys((*METRICS, "worst_group_of", "groups"))
    metrics |= {
        "accuracy": _mean(predicted == target),
        "worst_class": _lowest(by_class),
        "worst_class_of": int(np.nanargmin(by_class)) if len(target) else None,
    }
    if bias is None:
        return metrics
    share = _shares(target * groups.biases + bias, predicted == target, groups.classes * groups.biases)
    present = ~np.isnan(share)
    tied = np.zeros((groups.classes, groups.biases), dtype=bool)
    for label, value in enumerate(groups.aligned):
        tied[label, value : value + 1] = True  # a value that no image has is in no column
    return metrics | {
        "unbiased": _mean(share[present]),
        "aligned": _mean(share[present & tied.ravel()]),
        "conflicting": _mean(share[present & ~tied.ravel()]) if groups.aligned else None,
        "worst_group": _lowest(share),
        "worst_group_of": [int(part) for part in divmod(np.nanargmin(share), groups.biases)] if len(target) else None,
        "groups": [
            [None if np.isnan(s) else s for s in row] for row in share.reshape(groups.classes, groups.biases).tolist()
        ],
    }


def _shares(group: NDArray[np.int64], correct: NDArray[np.bool_], count: int) -> NDArray[np.float64]:
    """(count,) share of the images of each group that are correct; NaN where there is none."""
    total = np.bincount(group, minlength=count)
    right = np.bincount(group[correct], minlength=count)
    shares: NDArray[np.float64] = np.divide(right, total, out=np.full(count, np.nan), where=total > 0)
    return shares


def _lowest(shares: NDArray[np.float64]) -> float | None:
    return None if np.isnan(shares).all() else float(np.nanmin(shares))


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None

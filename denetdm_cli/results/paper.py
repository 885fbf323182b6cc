"""The accuracies that the DeNetDM paper (NeurIPS 2024, arXiv 2403.19863) publishes, in %."""

from typing import NamedTuple


class PaperFigure(NamedTuple):
    """A mean, and the standard deviation over 5 seeds where one is given."""

    mean: float
    std: float | None = None


RATIOS = (0.005, 0.01, 0.02, 0.05)
"""The conflict ratios of Table 1."""

TABLE_1: dict[str, dict[str, tuple[PaperFigure, ...]]] = {
    "coloredmnist": {
        "Group DRO": (PaperFigure(59.67), PaperFigure(71.33), PaperFigure(76.30), PaperFigure(84.40)),
        "ERM": (PaperFigure(35.34, 0.13), PaperFigure(50.34, 0.16), PaperFigure(62.29, 1.47), PaperFigure(77.63, 0.13)),
        "JTT": (PaperFigure(53.03, 3.89), PaperFigure(61.68, 2.02), PaperFigure(74.23, 3.21), PaperFigure(85.03, 1.10)),
        "LfF": (PaperFigure(63.39, 1.97), PaperFigure(74.01, 2.21), PaperFigure(80.48, 0.45), PaperFigure(85.39, 0.94)),
        "DFA": (PaperFigure(59.12, 3.15), PaperFigure(71.04, 1.02), PaperFigure(82.86, 2.27), PaperFigure(88.29, 1.50)),
        "LC": (PaperFigure(63.48, 5.22), PaperFigure(78.41, 1.95), PaperFigure(83.63, 1.43), PaperFigure(88.18, 1.59)),
        "DeNetDM": (
            PaperFigure(74.72, 0.99),
            PaperFigure(85.22, 0.76),
            PaperFigure(89.29, 0.51),
            PaperFigure(93.54, 0.22),
        ),
    },
    "corruptedcifar10": {
        "Group DRO": (PaperFigure(33.44), PaperFigure(38.30), PaperFigure(45.81), PaperFigure(57.32)),
        "ERM": (PaperFigure(23.08, 1.25), PaperFigure(25.82, 0.33), PaperFigure(30.06, 0.71), PaperFigure(39.42, 0.64)),
        "JTT": (PaperFigure(24.73, 0.60), PaperFigure(26.90, 0.31), PaperFigure(33.40, 1.06), PaperFigure(42.20, 0.31)),
        "LfF": (PaperFigure(28.57, 1.30), PaperFigure(33.07, 0.77), PaperFigure(39.91, 0.30), PaperFigure(50.27, 1.56)),
        "DFA": (PaperFigure(29.95, 0.71), PaperFigure(36.49, 1.79), PaperFigure(41.78, 2.29), PaperFigure(51.13, 1.28)),
        "LC": (PaperFigure(34.56, 0.69), PaperFigure(37.34, 1.26), PaperFigure(47.81, 2.00), PaperFigure(54.55, 1.26)),
        "DeNetDM": (
            PaperFigure(38.93, 1.16),
            PaperFigure(44.20, 0.77),
            PaperFigure(47.35, 0.70),
            PaperFigure(56.30, 0.42),
        ),
    },
}
"""Unbiased accuracy on the test images, by data set, method and ratio."""

NEEDS_BIAS_LABELS = ("Group DRO",)
"""Methods of Table 1 that train on bias labels."""

_ROWS = {"distill": "DeNetDM"}
"""Rows of Table 1 by method, where their names differ in more than case and spaces."""

_OTHERS: dict[tuple[str, float | None, str, str, str], PaperFigure] = {
    # Table 2
    ("bar", 0.01, "distill", "target", "conflicting"): PaperFigure(73.84, 2.56),
    ("bar", 0.05, "distill", "target", "conflicting"): PaperFigure(79.61, 3.18),
    ("bffhq", None, "distill", "target", "conflicting"): PaperFigure(75.7, 2.8),
    ("celeba", None, "distill", "target", "worst_group"): PaperFigure(81.04),
    # the ablation of the losses, both of them on
    ("coloredmnist", 0.01, "distill", "target", "conflicting"): PaperFigure(84.44),
    ("coloredmnist", 0.01, "distill", "target", "aligned"): PaperFigure(89.17),
    ("corruptedcifar10", 0.01, "distill", "target", "conflicting"): PaperFigure(39.46),
    ("corruptedcifar10", 0.01, "distill", "target", "aligned"): PaperFigure(69.53),
    # the branches of stage 1, in the ablation of the depths
    ("coloredmnist", 0.01, "train-poe", "shallow", "conflicting"): PaperFigure(83.17, 0.96),
    ("coloredmnist", 0.01, "train-poe", "shallow", "aligned"): PaperFigure(88.25),
    ("coloredmnist", 0.01, "train-poe", "deep", "conflicting"): PaperFigure(1.92),
    ("coloredmnist", 0.01, "train-poe", "deep", "aligned"): PaperFigure(99.92),
    ("coloredmnist", 0.1, "train-poe", "shallow", "conflicting"): PaperFigure(93.12),
    ("coloredmnist", 0.1, "train-poe", "shallow", "aligned"): PaperFigure(96.47),
    ("coloredmnist", 0.1, "train-poe", "deep", "conflicting"): PaperFigure(1.84),
    ("coloredmnist", 0.1, "train-poe", "deep", "aligned"): PaperFigure(99.14),
    ("coloredmnist", 0.2, "train-poe", "shallow", "conflicting"): PaperFigure(94.49),
    ("coloredmnist", 0.2, "train-poe", "shallow", "aligned"): PaperFigure(97.51),
    ("coloredmnist", 0.2, "train-poe", "deep", "conflicting"): PaperFigure(3.23),
    ("coloredmnist", 0.2, "train-poe", "deep", "aligned"): PaperFigure(97.93),
    ("corruptedcifar10", 0.01, "train-poe", "shallow", "conflicting"): PaperFigure(38.52, 0.99),
    ("corruptedcifar10", 0.01, "train-poe", "shallow", "aligned"): PaperFigure(76.72),
    ("corruptedcifar10", 0.01, "train-poe", "deep", "conflicting"): PaperFigure(3.0),
    ("corruptedcifar10", 0.01, "train-poe", "deep", "aligned"): PaperFigure(99.34),
}
"""By data set, ratio, method, predictor and metric."""


def row_of(method: str) -> str | None:
    """The row of Table 1 that a method has."""
    plain = method.replace("-", "")
    rows = {row.lower().replace(" ", ""): row for row in next(iter(TABLE_1.values()))}
    return _ROWS.get(method) or rows.get(plain)


def table_1(dataset: str, ratio: float | None, method: str) -> PaperFigure | None:
    """The unbiased accuracy of a method in Table 1."""
    row = row_of(method)
    if row is None or dataset not in TABLE_1 or ratio not in RATIOS:
        return None
    return TABLE_1[dataset][row][RATIOS.index(ratio)]


def paper_figure(
    dataset: str, ratio: float | None, method: str, predictor: str, metric: str, *, reported: bool = True
) -> PaperFigure | None:
    """An accuracy that the paper publishes; `reported`: whether it is of the predictor that the method reports."""
    found = table_1(dataset, ratio, method) if reported and metric == "unbiased" else None
    return found or _OTHERS.get((dataset, ratio, method, predictor, metric))

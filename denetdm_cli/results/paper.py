"""The accuracies that the DeNetDM paper (NeurIPS 2024, arXiv 2403.19863) publishes, in %."""

from typing import NamedTuple


class Published(NamedTuple):
    """A mean, and the standard deviation over 5 seeds where one is given."""

    mean: float
    std: float | None = None


RATIOS = (0.005, 0.01, 0.02, 0.05)
"""The conflict ratios of Table 1."""

TABLE_1: dict[str, dict[str, tuple[Published, ...]]] = {
    "coloredmnist": {
        "Group DRO": (Published(59.67), Published(71.33), Published(76.30), Published(84.40)),
        "ERM": (Published(35.34, 0.13), Published(50.34, 0.16), Published(62.29, 1.47), Published(77.63, 0.13)),
        "JTT": (Published(53.03, 3.89), Published(61.68, 2.02), Published(74.23, 3.21), Published(85.03, 1.10)),
        "LfF": (Published(63.39, 1.97), Published(74.01, 2.21), Published(80.48, 0.45), Published(85.39, 0.94)),
        "DFA": (Published(59.12, 3.15), Published(71.04, 1.02), Published(82.86, 2.27), Published(88.29, 1.50)),
        "LC": (Published(63.48, 5.22), Published(78.41, 1.95), Published(83.63, 1.43), Published(88.18, 1.59)),
        "DeNetDM": (Published(74.72, 0.99), Published(85.22, 0.76), Published(89.29, 0.51), Published(93.54, 0.22)),
    },
    "corruptedcifar10": {
        "Group DRO": (Published(33.44), Published(38.30), Published(45.81), Published(57.32)),
        "ERM": (Published(23.08, 1.25), Published(25.82, 0.33), Published(30.06, 0.71), Published(39.42, 0.64)),
        "JTT": (Published(24.73, 0.60), Published(26.90, 0.31), Published(33.40, 1.06), Published(42.20, 0.31)),
        "LfF": (Published(28.57, 1.30), Published(33.07, 0.77), Published(39.91, 0.30), Published(50.27, 1.56)),
        "DFA": (Published(29.95, 0.71), Published(36.49, 1.79), Published(41.78, 2.29), Published(51.13, 1.28)),
        "LC": (Published(34.56, 0.69), Published(37.34, 1.26), Published(47.81, 2.00), Published(54.55, 1.26)),
        "DeNetDM": (Published(38.93, 1.16), Published(44.20, 0.77), Published(47.35, 0.70), Published(56.30, 0.42)),
    },
}
"""Unbiased accuracy on the test images, by data set, method and ratio."""

_OTHERS: dict[tuple[str, float | None, str, str], Published] = {
    # Table 2
    ("bar", 0.01, "target", "conflicting"): Published(73.84, 2.56),
    ("bar", 0.05, "target", "conflicting"): Published(79.61, 3.18),
    ("bffhq", None, "target", "conflicting"): Published(75.7, 2.8),
    ("celeba", None, "target", "worst_group"): Published(81.04),
    # the ablation of the losses, both of them on
    ("coloredmnist", 0.01, "target", "conflicting"): Published(84.44),
    ("coloredmnist", 0.01, "target", "aligned"): Published(89.17),
    ("corruptedcifar10", 0.01, "target", "conflicting"): Published(39.46),
    ("corruptedcifar10", 0.01, "target", "aligned"): Published(69.53),
    # the branches of stage 1, in the ablation of the depths
    ("coloredmnist", 0.01, "shallow", "conflicting"): Published(83.17, 0.96),
    ("coloredmnist", 0.01, "shallow", "aligned"): Published(88.25),
    ("coloredmnist", 0.01, "deep", "conflicting"): Published(1.92),
    ("coloredmnist", 0.01, "deep", "aligned"): Published(99.92),
    ("coloredmnist", 0.1, "shallow", "conflicting"): Published(93.12),
    ("coloredmnist", 0.1, "shallow", "aligned"): Published(96.47),
    ("coloredmnist", 0.1, "deep", "conflicting"): Published(1.84),
    ("coloredmnist", 0.1, "deep", "aligned"): Published(99.14),
    ("coloredmnist", 0.2, "shallow", "conflicting"): Published(94.49),
    ("coloredmnist", 0.2, "shallow", "aligned"): Published(97.51),
    ("coloredmnist", 0.2, "deep", "conflicting"): Published(3.23),
    ("coloredmnist", 0.2, "deep", "aligned"): Published(97.93),
    ("corruptedcifar10", 0.01, "shallow", "conflicting"): Published(38.52, 0.99),
    ("corruptedcifar10", 0.01, "shallow", "aligned"): Published(76.72),
    ("corruptedcifar10", 0.01, "deep", "conflicting"): Published(3.0),
    ("corruptedcifar10", 0.01, "deep", "aligned"): Published(99.34),
}
"""DeNetDM's by data set, ratio, predictor and metric."""


def published(dataset: str, ratio: float | None, predictor: str, metric: str) -> Published | None:
    """What the paper reports of DeNetDM, if it does."""
    if (predictor, metric) == ("target", "unbiased") and dataset in TABLE_1 and ratio in RATIOS:
        return TABLE_1[dataset]["DeNetDM"][RATIOS.index(ratio)]
    return _OTHERS.get((dataset, ratio, predictor, metric))

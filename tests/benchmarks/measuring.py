"""What the benchmarks share: wall times of epochs beside those of a yardstick taken right before and after each."""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import median

from denetdm_cli.training import stages
from denetdm_cli.training.events import EpochEvaluated, StageStarted


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def epochs(events: Iterator[stages.Event], yardstick: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Wall time of each epoch with its evaluation and checkpoints, and of the yardstick around it (mean of two)."""
    times, units, last = [], [seconds(yardstick)], 0.0
    for event in events:
        if isinstance(event, EpochEvaluated):
            times.append(time.perf_counter() - last)
            units.append(seconds(yardstick))
        if isinstance(event, EpochEvaluated | StageStarted):
            last = time.perf_counter()
    return times, [(before + after) / 2 for before, after in pairwise(units)]


def shown(values: list[float], digits: int = 2) -> str:
    return f"best {min(values):.{digits}f}, median {median(values):.{digits}f}"

"""A stage of many runs, trained as one program; arguments and events are those of the stages, run by run."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from denetdm_cli.config.load import differences
from denetdm_cli.config.schema import Config
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.training.batched import Stack
from denetdm_cli.training.events import Event, Finished
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.training.runner import Running, Stage
from denetdm_cli.training.stages import How, Shared, prepared_distill, prepared_train_poe
from denetdm_cli.training.trainer import Training
from denetdm_cli.utils import signals as stopping
from denetdm_cli.utils.errors import NumericError, UserError

T = TypeVar("T")

_WRITERS = 8


@dataclass(frozen=True)
class Failed:
    """A run does not go on, and its folder is as when that happens to it alone; the others go on."""

    error: UserError


def why_not_together(configs: Sequence[Config]) -> str | None:
    """What keeps runs with these configurations from being trained as one program; None where nothing does.

    They may differ in `seed`, in `out` and in all of `dataset`. What trains in one program must be MLPs, which draw no
    random numbers, in fp32, on images that stay as they are.
    """
    first = configs[0]
    for other in configs[1:]:
        for key, here, there in differences(first, other):
            if key not in ("seed", "out") and not key.startswith("dataset."):
                return f"{key} differs: {here!r} and {there!r}"
    if first.model.convolutional:
        return "a branch is no mlp"
    if first.data.augments:
        return "training images are augmented"
    if first.data.cache not in ("auto", "device"):
        return f"data.cache is {first.data.cache}"
    if first.compute.precision != "fp32" or first.compute.compile:
        return "compute asks for bf16 or torch.compile"
    return None


def train_poe_together(runs: Sequence[tuple[Config, StoredDataset]], how: How) -> Iterator[tuple[int, Event | Failed]]:
    """Stage 1 of many runs, which `why_not_together` has nothing against.

    Each run has the folder, files, resume state and events that `stages.train_poe` gives it alone, with the same
    results but for rounding; so each can be gone on with alone, and the other way round. The seconds of an epoch are
    those in which all were trained.

    Args:
        runs: the arguments of `stages.train_poe`, run by run.
        how: of all runs; they are trained by one process.
    Yields:
        A run's place in `runs`, and what happens to it: what happens to it alone, or `Failed`, also before it began.
    Raises:
        ConfigError: the images are not kept on the device.
        Stopped: a signal asked for it; the states of all runs are kept.
    """
    shared: Shared = {}
    return _together([partial(prepared_train_poe, *run, how, shared) for run in runs])


def distill_together(
    runs: Sequence[tuple[Config, StoredDataset, RunFolder, Path]], how: How
) -> Iterator[tuple[int, Event | Failed]]:
    """Stage 2 of many runs, as `train_poe_together`.

    Args:
        runs: the arguments of `stages.distill`, run by run.
        how: of all runs; they are trained by one process.
    Yields:
        As `train_poe_together`.
    Raises:
        ConfigError: the images are not kept on the device.
        Stopped: a signal asked for it; the states of all runs are kept.
    """
    shared: Shared = {}
    return _together([partial(prepared_distill, *run, how, shared) for run in runs])


def _together(
    preparations: Sequence[Callable[[], AbstractContextManager[Stage | Finished]]],
) -> Iterator[tuple[int, Event | Failed]]:
    """Hold all runs, and train those of one layout after those of another."""
    with ExitStack() as held:
        layouts: dict[object, dict[int, Running]] = defaultdict(dict)
        for number, prepare in enumerate(preparations):
            event: Event | Failed
            try:
                stage = held.enter_context(prepare())
                if isinstance(stage, Finished):
                    event = stage
                else:
                    running = Running(stage)
                    layouts[_layout(running.training)][number] = running
                    event = running.began()
            except UserError as error:
                event = Failed(error)
            yield number, event
            stopping.check()
        for runs in layouts.values():
            device = next(iter(runs.values())).training.batches.device
            # States hold torch's random streams, each run's own; the caller's are put back at the end.
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                yield from _train(runs)


def _layout(training: Training) -> object:
    """What must be equal to be stacked."""
    shapes = tuple(parameter.shape for parameter in training.optimizer.parameters)
    return len(training.batches), training.batches.shape, shapes


def _train(runs: dict[int, Running]) -> Iterator[tuple[int, Event | Failed]]:
    """Train runs of one layout to their end; those that are ahead of others wait for them."""
    stack: Stack | None = None
    stacked: list[int] = []
    while True:
        for number in [number for number, run in runs.items() if run.training.done]:
            yield number, runs.pop(number).finish()
        if not runs:
            return
        places = {number: (run.training.completed, run.training.steps) for number, run in runs.items()}
        group = {number: runs.pop(number) for number, place in places.items() if place == min(places.values())}
        if stack is None or list(group) != stacked:
            stack, stacked = Stack([run.training for run in group.values()]), list(group)
        yield from _epoch(stack, group)
        runs |= group


def _epoch(stack: Stack, runs: dict[int, Running]) -> Iterator[tuple[int, Event | Failed]]:
    """Train runs to the end of an epoch, and take those out that fail; what these still compute reaches no other."""
    for _ in stack.epoch():
        told, failed = _each(runs, lambda _, run: run.training.progress())
        yield from told.items()
        yield from failed.items()
        signal = stopping.waiting()
        _keep_states(runs, now=signal > 0)
        if signal:
            raise stopping.Stopped(signal)
    ends, failed = _each(runs, lambda _, run: run.training.end_epoch())
    yield from failed.items()
    try:
        measured, failed = _each(runs, lambda number, run: run.measure(ends[number]))
    except stopping.Stopped:
        _keep_states(runs, now=True)
        raise
    yield from failed.items()
    with ThreadPoolExecutor(_WRITERS) as writers:  # what takes time is to wait for the disk
        written = list(writers.map(lambda number: runs[number].write_epoch(measured[number]), runs))
    yield from zip(list(runs), written, strict=True)
    if signal := stopping.waiting():
        raise stopping.Stopped(signal)


def _each(runs: dict[int, Running], work: Callable[[int, Running], T]) -> tuple[dict[int, T], dict[int, Failed]]:
    """What `work` gives of each run, and why some fail, which are taken out."""
    done: dict[int, T] = {}
    failed: dict[int, Failed] = {}
    for number, run in list(runs.items()):
        try:
            done[number] = work(number, run)
        except NumericError as error:
            failed[number] = Failed(error)
            del runs[number]
    return done, failed


def _keep_states(runs: dict[int, Running], *, now: bool) -> None:
    """Write the states of runs within an epoch: now, or those that were last written long ago."""
    for run in runs.values():
        run.training.seed_noise()
        if now:
            run.keep_state()
        else:
            run.keep_state_in_time()

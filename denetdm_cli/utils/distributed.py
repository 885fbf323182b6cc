"""The processes that train one run together: which of them this is, and what they tell each other."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from denetdm_cli.utils import signals
from denetdm_cli.utils.errors import ConfigError, RankError, UserError, from_os_error

T = TypeVar("T")

_PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Ranks:
    """What a process knows of itself and the others.

    Attributes:
        rank: from 0; rank 0 writes and speaks.
        size: how many there are.
        local_rank: from 0 on this machine.
        local_size: how many there are on this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def is_main(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    def weight(self, images: int) -> float:
        """What this rank's mean over its share of so many images counts in the mean of the ranks' means."""
        return len(range(self.rank, images, self.size)) * self.size / images

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks of floating-point values of one shape."""
        return values if self.size == 1 else self.all_reduce_sum(values) / self.size

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks of values of one shape."""
        if self.size > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def all_reduce_max(self, value: float) -> float:
        """The largest of the ranks' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64, device=_talking_device())
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return float(found)

    def run_on_main(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, where alone it is done; its error is everyone's.

        Raises:
            UserError: `work` raised it.
        """
        if self.size == 1:
            return work()
        told: list[T | UserError | None] = [None]
        if self.is_main:
            try:
                told = [work()]
            except UserError as error:
                told = [error]
            except OSError as error:
                told = [from_os_error(error)]
        with nullcontext() if self.is_main else signals.by_default():  # nothing is kept while others are waited for
            distributed.broadcast_object_list(told)
        if isinstance(told[0], UserError):
            told[0].told = not self.is_main
            raise told[0]
        return cast("T", told[0])

    @contextmanager
    def enter_on_main(self, context: AbstractContextManager[None]) -> Iterator[None]:
        """A context that rank 0 alone is in; its error when it is entered is everyone's.

        Raises:
            UserError: it was raised on entering.
        """
        with ExitStack() as stack:
            self.run_on_main(lambda: stack.enter_context(context))
            yield


SINGLE_PROCESS = Ranks(0, 1, 0, 1)


def announced() -> Ranks:
    """What the environment of this process says, as torchrun sets it; alone where it says nothing.

    Raises:
        ConfigError: it says something that cannot be.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    said = {name: os.environ[name] for name in names if name in os.environ}
    if not said:
        return SINGLE_PROCESS
    try:
        rank, size, local_rank, local_size = (int(said[name]) for name in names)
        if not (0 <= local_rank <= rank < size and local_rank < local_size <= size):
            raise ValueError
    except (KeyError, ValueError):
        raise ConfigError(
            f"the environment announces several processes, but not as torchrun does: {said}",
            "Start them with torchrun or --nproc, or unset these variables.",
        ) from None
    return Ranks(rank, size, local_rank, local_size)


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Let the ranks talk: over NCCL between GPUs, over Gloo otherwise.

    Raises:
        ConfigError: they do not find each other.
        RankError: one of them was lost.
    """
    if ranks.size == 1:
        yield
        return
    try:
        with signals.by_default():  # the first rank may make data for long while the others wait
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"rank {ranks.rank} of {ranks.size} did not find the others: {str(error).splitlines()[0]}",
            "Start all ranks with torchrun or --nproc, and check MASTER_ADDR and MASTER_PORT.",
        ) from None
    try:
        yield
    except RuntimeError as error:
        if not re.search("gloo|nccl", str(error), re.IGNORECASE):
            raise
        raise RankError(
            f"rank {ranks.rank} of {ranks.size} has lost the others: {str(error).splitlines()[0]}"
        ) from None
    finally:
        distributed.destroy_process_group()


def _talking_device() -> torch.device:
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")

"""The ranks of one run: the processes that train it together, and the messages between them.

Tensors on a GPU go over NCCL. Everything else goes over a separate Gloo group: stop signals, epochs, what rank 0 saw of
the file system.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from denetdm_cli.utils import signals
from denetdm_cli.utils.errors import ConfigError, RankError, UserError, from_os_error

T = TypeVar("T")

_TIMEOUT = timedelta(hours=6)
"""For one message: rank 0 may make a data set while the others wait."""

_control: distributed.ProcessGroup | None = None
"""The Gloo group for what is not on a GPU, while `process_group` is active."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and the number of ranks.

    Every rank must call `all_reduce_*`, `all_gather`, `broadcast_buffers`, `run_on_main` and `enter_on_main` in one
    order.

    Attributes:
        rank: of this process, from 0; rank 0 is the main one, which writes files and prints.
        size: number of ranks.
        local_rank: of this process among those of this machine, from 0.
        local_size: number of ranks on this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def weight(self, images: int) -> float:
        """Weight of this rank's mean over its share of a batch of `images` in the mean of the ranks' means."""
        return len(range(self.rank, images, self.size)) * self.size / images

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Mean over the ranks of floating-point values of one shape."""
        return values if self.size == 1 else self.all_reduce_sum(values) / self.size

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks of values of one shape."""
        if self.size > 1:
            values = values.clone()
            distributed.all_reduce(values, group=_group(values))
        return values

    def all_reduce_max(self, value: float) -> float:
        """Largest of the ranks' values."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=_control)
        return float(largest)

    def all_gather(self, values: Tensor) -> Tensor:
        """Values (B, ...) of all ranks, rank by rank, (sum of all B, ...); B may differ between ranks.

        A method with tables of one value per training image gathers (index, loss) before it updates them.
        """
        if self.size == 1:
            return values
        counts = torch.zeros(self.size, dtype=torch.int64, device=values.device)
        counts[self.rank] = len(values)
        sizes = self.all_reduce_sum(counts).tolist()
        padded = values.new_zeros((max(sizes), *values.shape[1:]))
        padded[: len(values)] = values
        gathered = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(gathered, padded, group=_group(padded))
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Copy the buffers of a module, such as the running statistics of BatchNorm, from rank 0 to every rank.

        Between two steps of DistributedDataParallel each rank has statistics of its own.
        """
        if self.size > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0, group=_group(buffer))

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 alone, and return its result, or raise its error, on every rank.

        Raises:
            UserError: `work` raised it, or an OSError.
        """
        if self.size == 1:
            return work()
        message: list[T | UserError | None] = [None]
        if self.is_main:
            try:
                message = [work()]
            except UserError as error:
                message = [error]
            except OSError as error:
                message = [from_os_error(error)]
        # A rank that waits in the Gloo library hears no Python signal handler, and has nothing to save.
        with nullcontext() if self.is_main else signals.default_handlers():
            distributed.broadcast_object_list(message, group=_control)
        if isinstance(message[0], UserError):
            message[0].reported = not self.is_main
            raise message[0]
        return cast("T", message[0])

    @contextmanager
    def enter_on_main(self, context: AbstractContextManager[None]) -> Iterator[None]:
        """Enter a context on rank 0 alone; an error on entering is raised on every rank.

        Raises:
            UserError: entering raised it.
        """
        with ExitStack() as stack:
            self.run_on_main(lambda: stack.enter_context(context))
            yield


SINGLE_PROCESS = Ranks(0, 1, 0, 1)


def from_environment() -> Ranks:
    """The rank of this process by the variables that torchrun sets; `SINGLE_PROCESS` where there are none.

    Raises:
        ConfigError: some of the variables are missing or contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if not found:
        return SINGLE_PROCESS
    try:
        rank, size, local_rank, local_size = (int(found[name]) for name in names)
        if not (0 <= local_rank <= rank < size and local_rank < local_size <= size):
            raise ValueError
    except (KeyError, ValueError):
        raise ConfigError(
            f"the environment announces several processes, but not as torchrun does: {found}",
            "Start them with torchrun or --nproc, or unset these variables.",
        ) from None
    return Ranks(rank, size, local_rank, local_size)


@contextmanager
def process_group(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Connect the ranks: NCCL for tensors on a GPU, where `device` is one, and Gloo for the rest.

    Args:
        ranks: of this process; a single process is not connected to anything.
        device: where this process computes; becomes the current CUDA device.
    Raises:
        ConfigError: the ranks do not find each other.
        RankError: one of them was lost.
    """
    global _control
    if device.type == "cuda":
        torch.cuda.set_device(device)  # or NCCL and what names no device take cuda:0 on every rank
    if ranks.size == 1:
        yield
        return
    try:
        with signals.default_handlers():  # rank 0 may make a data set first, while the others wait
            if device.type == "cuda":
                distributed.init_process_group("nccl", timeout=_TIMEOUT, device_id=device)
            else:
                distributed.init_process_group("gloo", timeout=_TIMEOUT)
            _control = cast("distributed.ProcessGroup", distributed.new_group(backend="gloo", timeout=_TIMEOUT))
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
        _control = None
        distributed.destroy_process_group()


def _group(values: Tensor) -> distributed.ProcessGroup | None:
    """The group that carries a tensor; None is the default one."""
    return None if values.is_cuda else _control

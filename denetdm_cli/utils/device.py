"""Device, CPU threads, deterministic kernels and versions of a run."""

import os
import platform

import torch

from denetdm_cli import __version__
from denetdm_cli.utils.cpu import available_cores, thread_limit
from denetdm_cli.utils.distributed import SINGLE_PROCESS, Ranks
from denetdm_cli.utils.errors import ConfigError


def resolve_device(name: str, ranks: Ranks = SINGLE_PROCESS) -> torch.device:
    """The device of a name; `auto` is CUDA, then MPS, then the CPU, and every rank has a GPU to itself.

    Raises:
        ConfigError: this machine has no such device, or not enough of them.
    """
    present = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        present.append("mps")
    if ranks.size > 1 and (name == "mps" or name.startswith("cuda:")):
        raise ConfigError(
            f"device: {name!r} is one device, and there are {ranks.size} processes",
            "Use --device cuda, which gives each of them a GPU of its own, or --device cpu.",
        )
    if name == "auto":
        kinds = ("cuda:0", "mps") if ranks.size == 1 else ("cuda:0",)
        name = next((kind for kind in kinds if kind in present), "cpu").replace("cuda:0", "cuda")
    if name == "cuda":
        name = f"cuda:{ranks.local_rank}"
    if name not in present:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = "" if visible is None else f" CUDA_VISIBLE_DEVICES is {visible!r}: the GPUs in it count from 0."
        raise ConfigError(
            f"device: {name!r} is not on this machine",
            f"Devices here: {', '.join(present)}. Use --device auto or one of them.{hint}",
        )
    return torch.device(name)


def use_threads(count: int, ranks: Ranks = SINGLE_PROCESS) -> None:
    """Compute with `count` CPU threads, at most `thread_limit`; 0 is as many as that.

    The ranks on one machine divide its cores.
    """
    most = min(thread_limit(), max(1, available_cores() // ranks.local_size))
    torch.set_num_threads(min(count or most, most))


def use_deterministic_kernels() -> None:
    """Let cuDNN choose deterministic algorithms only, and choose them without timing them.

    With this, a run that was stopped and resumed equals one that was not, to the last bit, on the same machine and
    versions, with the same number of threads, on the CPU and on one GPU. It is not promised

    - on MPS, whose random state is not saved and whose kernels need not be deterministic;
    - with `compute.compile`, which may compile other kernels after a restart;
    - for networks with dropout under several ranks that were stopped within an epoch: every rank begins new random
      numbers there;
    - for another number of ranks than before, which sums gradients in another order.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def versions() -> dict[str, str]:
    """Versions that decide whether two runs can be bit-identical."""
    return {"denetdm": __version__, "torch": torch.__version__, "python": platform.python_version()}

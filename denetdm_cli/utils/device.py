"""Where and how a run computes: device, random numbers, versions."""

import os
import platform

import torch

from denetdm_cli import __version__
from denetdm_cli.utils.cpu import available_cpus, cores
from denetdm_cli.utils.distributed import SINGLE_PROCESS, Ranks
from denetdm_cli.utils.errors import ConfigError


def resolve_device(name: str, ranks: Ranks = SINGLE_PROCESS) -> torch.device:
    """The device a name stands for; `auto` is CUDA, then MPS, then the CPU, and every rank has a GPU of its own.

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
    """Compute with `count` CPU threads, but at most with the allotment of this process; 0 is all of it.

    The ranks on one machine divide its cores.
    """
    most = min(available_cpus(), max(1, cores() // ranks.local_size))
    torch.set_num_threads(min(count or most, most))


def versions() -> dict[str, str]:
    """Versions that decide whether two runs can be bit-identical."""
    return {"denetdm": __version__, "torch": torch.__version__, "python": platform.python_version()}

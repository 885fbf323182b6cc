"""Where and how a run computes: device, random numbers, versions."""

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from denetdm_cli import __version__
from denetdm_cli.allotment import cpu_allotment
from denetdm_cli.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device a name stands for; `auto` is CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    present = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        present.append("mps")
    if name == "auto":
        name = next((kind for kind in ("cuda:0", "mps") if kind in present), "cpu")
    if name == "cuda":
        name = "cuda:0"
    if name not in present:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = "" if visible is None else f" CUDA_VISIBLE_DEVICES is {visible!r}: the GPUs in it count from 0."
        raise ConfigError(
            f"device: {name!r} is not on this machine",
            f"Devices here: {', '.join(present)}. Use --device auto or one of them.{hint}",
        )
    return torch.device(name)


def use_threads(count: int) -> None:
    """Compute with `count` CPU threads, but at most with the allotment of this process; 0 is all of it."""
    allotment = cpu_allotment()
    torch.set_num_threads(min(count or allotment, allotment))


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed of its own for each purpose, so that no two uses share a stream of random numbers."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


@contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Give code that can only draw from torch's global CPU stream, such as initialisation, a stream of its own.

    The global stream is neither read nor moved.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, *names))
        yield


def versions() -> dict[str, str]:
    """Versions that decide whether two runs can be bit-identical."""
    return {"denetdm": __version__, "torch": torch.__version__, "python": platform.python_version()}

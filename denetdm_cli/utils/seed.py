"""Random numbers: a stream of its own for every purpose."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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

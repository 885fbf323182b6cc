"""A small MNIST that counts as the canonical one, and no network."""

import hashlib
import subprocess

import pytest
from mnist_files import NAMES, idx_bytes

from denetdm_cli.data.raw import mnist as mnist_module
from denetdm_cli.data.raw.mnist import IdxFile, Mnist


@pytest.fixture
def small(small_mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> Mnist:
    """Makes the small MNIST the canonical one."""
    files = tuple(
        IdxFile(name, array.shape, hashlib.md5(idx_bytes(array)).hexdigest())
        for name, array in zip(NAMES, small_mnist.arrays(), strict=True)
    )
    monkeypatch.setattr(mnist_module, "MNIST_FILES", files)
    return small_mnist


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("no process may be started here")

    monkeypatch.setattr(subprocess, "run", refuse)

"""A small CIFAR-10 that counts as the canonical one, and no network."""

import subprocess

import pytest
from cifar10_files import Tree, batches_of, canonical, make_cifar

from denetdm_cli.data.raw.cifar10 import Cifar10


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("no process may be started here")

    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.fixture
def small() -> Cifar10:
    return make_cifar()


@pytest.fixture
def contents(small: Cifar10, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Batches of the small CIFAR-10, which become the canonical ones."""
    contents = batches_of(small)
    canonical(monkeypatch, contents)
    return contents

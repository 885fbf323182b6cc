"""A small Colored MNIST, and runs on it, that the tests of the commands share; each works in a folder of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import EPOCHS, NAME, Outcome, call, good
from tests_support import glyph_mnist

from denetdm_cli.data.synthetic.colored_mnist import colored_mnist_folder, make_colored_mnist


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 200 training and 1,000 evaluation images of 18x18 pixels. Tests that change it copy it first."""
    root = tmp_path_factory.mktemp("shared") / "data"
    path = colored_mnist_folder(root, 0.1, 4)
    make_colored_mnist(glyph_mnist(200, 1000), path, ratio=0.1, severity=4, seed=0, replace=False)
    return root


@pytest.fixture(scope="session")
def train(data_root: Path) -> Callable[..., Outcome]:
    """Stage 1 in a few epochs, with more options."""
    options = ("--dataset", "coloredmnist", "--ratio", 0.1, "--device", "cpu", "--epochs", EPOCHS)

    def run(*more: object) -> Outcome:
        root = () if "--data-root" in more else ("--data-root", data_root)
        return call("train-poe", *options, *root, *more)

    return run


@pytest.fixture(scope="session")
def finished_run(data_root: Path, train: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with both stages. Tests that change it take `run`."""
    out = tmp_path_factory.mktemp("shared") / "runs"
    assert train("--out", out).code == 0
    good("distill", out / NAME / "seed0", "--epochs", 2)
    return out / NAME / "seed0"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run below `runs`, the place that `train` takes by default."""
    return Path(shutil.copytree(finished_run, tmp_path / "runs" / NAME / "seed0"))


@pytest.fixture
def data(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the data set."""
    return Path(shutil.copytree(data_root / NAME, tmp_path / "data" / NAME))

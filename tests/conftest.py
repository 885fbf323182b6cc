"""Data that several tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loopback import Site, serving
from tests_support import glyph_mnist

from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.config.schema import Config
from denetdm_cli.data.raw.mnist import Mnist
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.data.synthetic.colored_mnist import colored_mnist_folder, make_colored_mnist

for _name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):  # tests are alone, whatever started them
    os.environ.pop(_name, None)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder with the four real idx.gz files; tests that need them are skipped where it is not."""
    data = Path(os.environ.get("DENETDM_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    folder = data / "mnist"
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no real MNIST in {folder} (set DENETDM_TEST_DATA to the folder that holds mnist/)")
    return folder


@pytest.fixture(scope="session")
def small_mnist() -> Mnist:
    """400 training and 300 test images of 6x5 pixels, the classes in turn, the same bytes everywhere."""

    def images(count: int) -> np.ndarray:
        values = np.arange(count * 30, dtype=np.int64)
        grey = values * values * 7919 % 65521 % 256
        return np.where(values % 3 == 0, 0, grey).astype(np.uint8).reshape(count, 6, 5)

    def labels(count: int) -> np.ndarray:
        return (np.arange(count) * 7 % 10).astype(np.uint8)

    return Mnist(images(400), labels(400), images(300)[::-1].copy(), labels(300))


@pytest.fixture
def tiny_config(tmp_path: Path) -> Config:
    """Three epochs of either stage on a tiny Colored MNIST below `tmp_path`."""
    options = {
        "dataset.root": str(tmp_path / "data"),
        "dataset.ratio": 0.1,
        "out": str(tmp_path / "runs"),
        "device": "cpu",
        "train_poe.epochs": 3,
        "distill.epochs": 3,
    }
    return load_config(preset_path("coloredmnist"), (), options)


@pytest.fixture
def tiny_dataset(tiny_config: Config) -> StoredDataset:
    """600 training and 1,000 evaluation images of 18x18 pixels, every group present."""
    dataset = tiny_config.dataset
    path = colored_mnist_folder(Path(dataset.root), dataset.ratio, dataset.severity)
    mnist = glyph_mnist(600, 1000)
    return make_colored_mnist(
        mnist, path, ratio=dataset.ratio, severity=dataset.severity, seed=dataset.seed, replace=False
    )


@pytest.fixture
def site(model: bytes) -> Iterator[Site]:
    """A server on loopback that has the file of a model; `model` is that of the module that asks."""
    with serving() as made:
        made.content = model
        yield made

"""MNIST in the files it is published in, for the tests that read it."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from denetdm_cli.data.raw.mnist import Mnist

NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def put(folder: Path, mnist: Mnist, *, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(NAMES, mnist.arrays(), strict=True):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        else:
            (folder / name).write_bytes(idx_bytes(array))
    return folder


def assert_same(found: Mnist, expected: Mnist) -> None:
    for ours, theirs in zip(found.arrays(), expected.arrays(), strict=True):
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, theirs)


def shout(line: str) -> None:
    pytest.fail(f"nothing should be said, but: {line}")

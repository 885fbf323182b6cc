"""A small CIFAR-10 in every form it is published in, for the tests that read it."""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tests_support import like_python2

from denetdm_cli.data.raw import cifar10 as cifar
from denetdm_cli.data.raw.cifar10 import BATCHES, Cifar10

NAMES = [name for name, _ in BATCHES]


IMAGES = 20
"""In each of the batches that the tests make."""


Tree = dict[str, bytes]


def shout(line: str) -> None:
    pytest.fail(f"nothing should be said, but: {line}")


def quiet(line: str) -> None:
    pass


def assert_same(found: Cifar10, expected: Cifar10) -> None:
    assert found.origin == expected.origin
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        ours = getattr(found, name)
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, getattr(expected, name), err_msg=name)
    assert found.digests() == expected.digests()


def batch_of(data: object, labels: object) -> bytes:
    """A pickle as the published ones are: written by Python 2, with a name of numpy's that is no more."""
    content = pickle.dumps({b"data": data, b"labels": labels, b"filenames": [b"a.png"]}, protocol=3)
    return like_python2(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def make_cifar() -> Cifar10:
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (6 * IMAGES, 32, 32, 3)).astype(np.uint8)
    labels = random.randint(0, 10, 6 * IMAGES).astype(np.uint8)
    train = 5 * IMAGES
    return Cifar10(images[:train], labels[:train], images[train:], labels[train:], "batches")


def batches_of(data: Cifar10) -> Tree:
    images = np.concatenate([data.train_images, data.test_images]).transpose(0, 3, 1, 2).reshape(-1, 3072)
    labels = np.concatenate([data.train_labels, data.test_labels]).tolist()
    parts = [slice(start, start + IMAGES) for start in range(0, len(labels), IMAGES)]
    return {name: batch_of(images[part].copy(), labels[part]) for name, part in zip(NAMES, parts, strict=True)}


def make_tar(path: Path, contents: Tree, *more: tuple[tarfile.TarInfo, bytes], folder: str = "cifar-10-batches-py/"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        entries = [(tarfile.TarInfo(f"{folder}{name}"), content) for name, content in contents.items()]
        for info, content in (*more, *entries):
            if info.isfile():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def put(folder: Path, contents: Tree) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def canonical(monkeypatch: pytest.MonkeyPatch, contents: Tree, archive: Path | None = None) -> None:
    """Make these batches, and this archive of them, the canonical ones."""
    digests = tuple((name, hashlib.md5(contents[name]).hexdigest()) for name in NAMES)
    monkeypatch.setattr(cifar, "BATCHES", digests)
    if archive is not None:
        monkeypatch.setattr(cifar, "ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())

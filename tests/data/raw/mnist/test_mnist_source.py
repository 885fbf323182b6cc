"""MNIST in a local folder."""

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from mnist_files import NAMES, assert_same, idx_bytes, put, shout

from denetdm_cli.data.raw.mnist import Mnist, load_mnist
from denetdm_cli.utils.errors import DataError


def test_real_mnist(mnist_dir: Path, tmp_path: Path, no_network: None) -> None:
    mnist = load_mnist(tmp_path, mnist_dir, shout)
    assert mnist.train_images.shape == (60000, 28, 28)
    assert mnist.test_images.shape == (10000, 28, 28)
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.md5s() == {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    assert list(tmp_path.iterdir()) == [], "a local copy is not copied again"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", ["", "MNIST/raw", "raw"])
def test_source_folder(small: Mnist, tmp_path: Path, no_network: None, packed: bool, inside: str) -> None:
    put(tmp_path / "source" / inside, small, packed=packed)
    assert_same(load_mnist(tmp_path / "root", tmp_path / "source", shout), small)


def test_source_may_mix_idx_and_gz(small: Mnist, tmp_path: Path, no_network: None) -> None:
    put(tmp_path, small)
    (tmp_path / NAMES[1]).unlink()
    (tmp_path / f"{NAMES[1]}.gz").write_bytes(gzip.compress(idx_bytes(small.train_labels)))
    assert_same(load_mnist(tmp_path / "root", tmp_path, shout), small)


def test_gz_is_known_by_its_content(small: Mnist, tmp_path: Path, no_network: None) -> None:
    put(tmp_path, small, packed=True)
    for name in NAMES:
        (tmp_path / f"{name}.gz").rename(tmp_path / name)
    assert_same(load_mnist(tmp_path / "root", tmp_path, shout), small)


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(change(file.read_bytes()))


def flip(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 0x10
    return bytes(changed)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_missing_file_of_a_source(small: Mnist, tmp_path: Path, no_network: None, packed: bool, name: str) -> None:
    put(tmp_path / "source", small, packed=packed)
    (tmp_path / "source" / (f"{name}.gz" if packed else name)).unlink()
    put(tmp_path / "root" / "MNIST" / "raw", small)
    with pytest.raises(DataError) as error:
        load_mnist(tmp_path / "root", tmp_path / "source", shout)
    assert name in error.value.what
    assert not any(other in error.value.what for other in NAMES if other != name)
    assert str(tmp_path / "source") in error.value.what
    assert "--source" in error.value.fix


@pytest.mark.parametrize(
    ("packed", "damage", "words"),
    [
        (False, rewrite(lambda content: content[:-1]), "is cut off"),
        (False, rewrite(lambda content: content[:9]), "is cut off"),
        (False, rewrite(lambda content: content + b"\0"), "is too long"),
        (False, rewrite(lambda content: b""), "starts with nothing"),
        (False, rewrite(lambda content: b"<html>404</html>"), "starts with 3c68746d, expected 00000803"),
        (False, rewrite(lambda content: flip(content, 7)), "says it holds 384x6x5 values, expected 400x6x5"),
        (False, rewrite(lambda content: flip(content, 500)), "is damaged or holds another data set: MD5"),
        (True, rewrite(lambda content: content[: len(content) // 2]), "is cut off"),
        (True, rewrite(lambda content: content[:-3]), "is cut off"),
        (True, rewrite(lambda content: flip(content, len(content) // 2)), "is damaged"),
        (True, rewrite(lambda content: flip(content, -6)), "is damaged (gzip: CRC check failed"),
        (True, rewrite(lambda content: gzip.compress(b"x" * 100_000)), "starts with 78787878"),
        (True, rewrite(lambda content: gzip.compress(gzip.decompress(content) + b"\0")), "is too long"),
        (True, rewrite(lambda content: gzip.compress(flip(gzip.decompress(content), 500))), "MD5"),
    ],
)
def test_damaged_source(
    small: Mnist, tmp_path: Path, no_network: None, packed: bool, damage: Callable[[Path], object], words: str
) -> None:
    put(tmp_path / "source", small, packed=packed)
    file = tmp_path / "source" / (NAMES[0] + (".gz" if packed else ""))
    damage(file)
    put(tmp_path / "root" / "MNIST" / "raw", small)
    with pytest.raises(DataError) as error:
        load_mnist(tmp_path / "root", tmp_path / "source", shout)
    assert words in error.value.what
    assert str(file) in error.value.what
    assert "--source" in error.value.fix


def test_forged_gz_does_not_fill_the_memory(small: Mnist, tmp_path: Path, no_network: None) -> None:
    put(tmp_path, small, packed=True)
    content = idx_bytes(small.train_labels) + bytes(1 << 27)
    (tmp_path / f"{NAMES[1]}.gz").write_bytes(gzip.compress(content, 1))
    del content
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="is too long"):
            load_mnist(tmp_path / "root", tmp_path, shout)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["file", "nothing"])
def test_source_that_is_no_folder(small: Mnist, tmp_path: Path, no_network: None, kind: str) -> None:
    source = tmp_path / "source"
    if kind == "file":
        source.touch()
    with pytest.raises(DataError, match="is a file" if kind == "file" else "does not exist") as error:
        load_mnist(tmp_path, source, shout)
    for name in NAMES:
        assert name in error.value.fix

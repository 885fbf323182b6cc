"""CIFAR-10 as pickled batches and their archive; sources that are neither; the real images."""

import hashlib
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cifar10_files import NAMES, Tree, assert_same, batch_of, canonical, make_tar, put, quiet, shout

from denetdm_cli.data.raw import cifar10 as cifar
from denetdm_cli.data.raw.cifar10 import Cifar10, load_cifar10
from denetdm_cli.utils.errors import DataError


def test_the_canonical_md5s_are_those_of_torchvision() -> None:
    from torchvision.datasets import CIFAR10

    assert [list(batch) for batch in cifar.BATCHES] == [*CIFAR10.train_list, *CIFAR10.test_list]
    assert CIFAR10.tgz_md5 == cifar.ARCHIVE_MD5
    assert CIFAR10.filename == cifar._ARCHIVE
    assert CIFAR10.base_folder == cifar._FOLDER


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_folder_of_batches(small: Cifar10, contents: Tree, tmp_path: Path, inside: str) -> None:
    put(tmp_path / "source" / inside, {**contents, "batches.meta": b"never read"})
    found = load_cifar10(tmp_path / "root", tmp_path / "source", shout)
    assert_same(found, small)
    assert found.train_images.flags.c_contiguous
    assert not (tmp_path / "root").exists(), "a local copy is not copied again"


def test_earlier_copy_in_the_root_needs_no_network(small: Cifar10, contents: Tree, tmp_path: Path) -> None:
    put(tmp_path / "cifar-10-batches-py", contents)
    assert_same(load_cifar10(tmp_path, None, shout), small)


@pytest.mark.parametrize("name", NAMES)
def test_missing_batch(contents: Tree, tmp_path: Path, name: str) -> None:
    put(tmp_path / "source", contents)
    (tmp_path / "source" / name).unlink()
    put(tmp_path / "cifar-10-batches-py", contents)
    with pytest.raises(DataError) as error:
        load_cifar10(tmp_path, tmp_path / "source", shout)
    assert f"has no {name}." in error.value.what
    assert str(tmp_path / "source") in error.value.what
    for words in ("--source", "cifar-10-python.tar.gz", cifar.ARCHIVE_MD5, "class folders"):
        assert words in error.value.fix


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_with_another_md5_is_not_unpickled(
    contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(content: bytes) -> object:
        assert content in good
        return load(content)

    load, good = cifar.load_arrays, list(contents.values())
    monkeypatch.setattr(cifar, "load_arrays", refuse)
    changed = bytearray(contents[name])
    changed[len(changed) // 2] ^= 1
    put(tmp_path, {**contents, name: bytes(changed)})
    with pytest.raises(DataError) as error:
        load_cifar10(tmp_path, tmp_path, shout)
    found, expected = hashlib.md5(changed).hexdigest(), hashlib.md5(contents[name]).hexdigest()
    assert f"{name} is cut off, damaged or another file: MD5 {found}, expected {expected}" in error.value.what


def test_batches_of_the_right_md5_run_no_code_either(
    contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {trap}",)

    bomb = pickle.dumps(Bomb())
    pickle.loads(bomb)
    assert trap.exists(), "the trap must work, or the test shows nothing"
    trap.unlink()
    contents["data_batch_3"] = bomb
    canonical(monkeypatch, put(tmp_path, contents) and contents)
    with pytest.raises(DataError, match=r"data_batch_3 is not the pickle expected .*system is not admitted"):
        load_cifar10(tmp_path, tmp_path, shout)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not the pickle expected"),
        (pickle.dumps([1]), "is not the pickle expected"),
        (pickle.dumps({"data": 1}), "is not the pickle expected"),
        (pickle.dumps({"data": [1], "labels": [1]}), "does not hold one row of 3072 bytes for each label"),
        (batch_of(np.zeros((2, 3072), np.uint8), [1]), "does not hold one row"),
        (batch_of(np.zeros((1, 3071), np.uint8), [1]), "does not hold one row"),
        (batch_of(np.zeros((1, 3072), np.int16), [1]), "does not hold one row"),
        (batch_of(np.zeros((1, 3072), np.uint8), [10]), "has labels other than 0 to 9"),
        (batch_of(np.zeros((1, 3072), np.uint8), [-1]), "has labels other than 0 to 9"),
        (batch_of(np.zeros((1, 3072), np.uint8), [0.5]), "has labels other than 0 to 9"),
        (batch_of(np.zeros((1, 3072), np.uint8), [[1]]), "has labels other than 0 to 9"),
        (batch_of(np.zeros((1, 3072), np.uint8), 3), "has labels other than 0 to 9"),
    ],
)
def test_malformed_batch(
    contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    contents["test_batch"] = content
    put(tmp_path, contents)
    canonical(monkeypatch, contents)
    with pytest.raises(DataError, match=f"test_batch {words}"):
        load_cifar10(tmp_path, tmp_path, shout)


def test_a_huge_batch_is_not_read_whole(contents: Tree, tmp_path: Path) -> None:
    put(tmp_path, contents)
    with (tmp_path / "data_batch_2").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"data_batch_2 is too large"):
        load_cifar10(tmp_path, tmp_path, shout)


@pytest.mark.parametrize("way", ["file", "folder around it", "data root"])
@pytest.mark.parametrize("folder", ["cifar-10-batches-py/", "./cifar-10-batches-py/"])
def test_archive(
    small: Cifar10, contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, folder: str
) -> None:
    more = tarfile.TarInfo("cifar-10-batches-py/readme.html")
    archive = make_tar(tmp_path / "cifar-10-python.tar.gz", contents, (more, b"x"), folder=folder)
    canonical(monkeypatch, contents, archive)
    source = {"file": archive, "folder around it": tmp_path, "data root": None}[way]
    assert_same(load_cifar10(tmp_path, source, shout), small)
    assert list(tmp_path.iterdir()) == [archive], "nothing is unpacked onto the disk"


def test_archive_with_another_md5_is_not_opened(
    contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_tar(tmp_path / "any.tgz", contents)
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(DataError, match=f"expected {cifar.ARCHIVE_MD5}") as error:
        load_cifar10(tmp_path, archive, shout)
    assert hashlib.md5(archive.read_bytes()).hexdigest() in error.value.what


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (entry("../outside"), "leads out of it"),
        (entry("cifar-10-batches-py/../../outside"), "leads out of it"),
        (entry("/etc/outside"), "leads out of it"),
        (entry("cifar-10-batches-py/test_batch", tarfile.SYMTYPE, "/etc/passwd"), "holds a link"),
        (entry("cifar-10-batches-py/test_batch", tarfile.LNKTYPE, "cifar-10-batches-py/x"), "holds a link"),
    ],
)
def test_hostile_archive(
    contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: tarfile.TarInfo, words: str
) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", contents, (info, b""))
    canonical(monkeypatch, contents, archive)
    with pytest.raises(DataError, match=words) as error:
        load_cifar10(tmp_path, archive, shout)
    assert repr(info.name) in error.value.what


def test_archive_sizes_are_capped(contents: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "_BATCH_LIMIT", max(map(len, contents.values())))
    archive = make_tar(tmp_path / "a.tar.gz", contents)
    canonical(monkeypatch, contents, archive)
    load_cifar10(tmp_path, archive, shout)
    monkeypatch.setattr(cifar, "_BATCH_LIMIT", max(map(len, contents.values())) - 1)
    with pytest.raises(DataError, match=r"data_batch_\d is too large"):
        load_cifar10(tmp_path, archive, shout)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path, contents: make_tar(path, dict(list(contents.items())[1:])), "has no data_batch_1 in"),
        (lambda path, contents: make_tar(path, contents, folder="elsewhere/"), "has no data_batch_1, data_batch_2"),
        (lambda path, contents: make_tar(path, contents, folder="x/cifar-10-batches-py/"), "has no data_batch_1"),
        (lambda path, contents: make_tar(path, {**contents, "test_batch": b"x"}), "test_batch is cut off, damaged"),
        (lambda path, contents: path.write_bytes(b"\x1f\x8b\x08 not gzip"), "cannot be read"),
        (lambda path, contents: path.write_bytes(make_tar(path, contents).read_bytes()[:-5000]), "cannot be read"),
    ],
)
def test_damaged_archive(
    contents: Tree,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Tree], object],
    words: str,
) -> None:
    archive = tmp_path / "a.tar.gz"
    make(archive, contents)
    canonical(monkeypatch, contents, archive)
    with pytest.raises(DataError, match=words):
        load_cifar10(tmp_path, archive, shout)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "starts with nothing"),
        (b"\x89PNG", "neither a .tar.gz nor a .zip"),
        (b"PK\x03\x04 cut off", "cannot be read"),
        (b"PK\x05\x06" + bytes(18), "does not hold train/ and test/"),
    ],
)
def test_a_source_that_is_none(tmp_path: Path, content: bytes | None, words: str) -> None:
    source = tmp_path / "source"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_cifar10(tmp_path, source, shout)
    assert words in error.value.what
    assert str(source) in error.value.what
    assert "--source" in error.value.fix


def test_an_empty_folder_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither batches nor train/ and test/"):
        load_cifar10(tmp_path, tmp_path, shout)


def real(name: str) -> Path:
    data = Path(os.environ.get("DENETDM_TEST_DATA") or Path(__file__).resolve().parents[5] / "shared" / "data")
    if not (data / name).is_file():
        pytest.skip(f"no {name} in {data} (set DENETDM_TEST_DATA to the folder that holds it)")
    return data / name


def test_real_small_copy(tmp_path: Path) -> None:
    found = load_cifar10(tmp_path, real("cifar10-small.zip"), quiet)
    assert found.train_images.shape == (2400, 32, 32, 3)
    assert found.test_images.shape == (600, 32, 32, 3)
    assert np.bincount(found.train_labels).tolist() == [240] * 10
    # The first 50 of each test class have the mean and spread that were measured for all the corruptions.
    first = found.test_images.reshape(10, 60, 32, 32, 3)[:, :50].reshape(-1, 3)
    np.testing.assert_allclose(first.mean(0), [127.4, 124.8, 115.6], atol=0.051)
    np.testing.assert_allclose(first.std(0), [63.4, 62.8, 66.8], atol=0.051)


@pytest.mark.slow
def test_real_copy_of_everything(tmp_path: Path) -> None:
    found = load_cifar10(tmp_path, real("cifar10-jpeg.zip"), quiet)
    assert found.train_images.shape == (50000, 32, 32, 3)
    assert found.test_images.shape == (10000, 32, 32, 3)
    assert np.bincount(found.train_labels).tolist() == [5000] * 10
    assert np.bincount(found.test_labels).tolist() == [1000] * 10
    # Close to the well-known mean and standard deviation of the training images.
    some = found.train_images[::20].astype(np.float32) / 255
    np.testing.assert_allclose(some.mean((0, 1, 2)), [0.4914, 0.4822, 0.4465], atol=0.01)
    np.testing.assert_allclose(some.std((0, 1, 2)), [0.2470, 0.2435, 0.2616], atol=0.01)

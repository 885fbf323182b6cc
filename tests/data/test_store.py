"""Writing data sets and opening them again."""

import hashlib
import json
import pickle
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stored_sets import CLASSES, SPLITS, make_split, write, write_like_lff

from denetdm_cli import __version__
from denetdm_cli.data import store
from denetdm_cli.data import writer as writing
from denetdm_cli.data.store import MANIFEST, Split, open_dataset, require_groups
from denetdm_cli.utils.errors import DataError


class LfFReader:
    """What data/attr_dataset.py of alinlab/LfF does with a folder."""

    def __init__(self, root: Path, split: str) -> None:
        self.data = np.load(root / split / "images.npy")
        self.attr = np.load(root / split / "attrs.npy").astype(np.int64)
        with (root / "attr_names.pkl").open("rb") as file:
            self.attr_names = pickle.load(file)
        self.num_attrs = self.attr.shape[1]


def test_lff_reads_what_we_write(tmp_path: Path) -> None:
    write(tmp_path / "set")
    for name, split in SPLITS.items():
        reader = LfFReader(tmp_path / "set", name)
        assert reader.attr_names == ["digit", "color"]
        assert reader.num_attrs == 2
        assert reader.data.dtype == np.uint8
        np.testing.assert_array_equal(reader.data, split.images)
        np.testing.assert_array_equal(reader.attr, np.stack([split.target, split.bias], axis=1))
        assert np.load(tmp_path / "set" / name / "attrs.npy").dtype == np.uint8


def test_we_read_what_lff_writes_without_unpickling(tmp_path: Path) -> None:
    write_like_lff(tmp_path / "set")
    trap = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (trap,)  # type: ignore[return-value]

    bomb = pickle.dumps(Bomb())
    pickle.loads(bomb)
    assert trap.exists(), "the trap must work, or the test shows nothing"
    trap.unlink()
    (tmp_path / "set" / "attr_names.pkl").write_bytes(bomb)
    opened = open_dataset(tmp_path / "set", classes=CLASSES)
    assert not trap.exists()
    assert opened.manifest is None
    np.testing.assert_array_equal(opened.splits["train"].images, SPLITS["train"].images)
    np.testing.assert_array_equal(opened.splits["valid"].target, SPLITS["valid"].target)
    np.testing.assert_array_equal(opened.splits["valid"].bias, SPLITS["valid"].bias)
    assert opened.digest == write(tmp_path / "ours").digest, "the digest is of the arrays only"
    (tmp_path / "set" / "attr_names.pkl").unlink()
    assert open_dataset(tmp_path / "set").digest == opened.digest


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_labels_of_any_integer_dtype(tmp_path: Path, dtype: type) -> None:
    write_like_lff(tmp_path / "set")
    file = tmp_path / "set" / "train" / "attrs.npy"
    np.save(file, np.load(file).astype(dtype))
    split = open_dataset(tmp_path / "set").splits["train"]
    assert split.target.dtype == split.bias.dtype == np.uint8
    np.testing.assert_array_equal(split.bias, SPLITS["train"].bias)


def test_written_set_opens_the_same(tmp_path: Path) -> None:
    written = write(tmp_path / "set")
    opened = open_dataset(tmp_path / "set", classes=CLASSES)
    assert opened.manifest == written.manifest
    assert opened.digest == written.digest
    for dataset in (written, opened):
        assert dataset.path == tmp_path / "set"
        assert list(dataset.splits) == ["train", "valid"]
        for name, split in SPLITS.items():
            assert isinstance(dataset.splits[name].images, np.memmap)
            for field in ("images", "target", "bias"):
                np.testing.assert_array_equal(getattr(dataset.splits[name], field), getattr(split, field))


def test_test_split_is_optional_and_read(tmp_path: Path) -> None:
    write(tmp_path / "set", splits=SPLITS | {"test": make_split(9, 3)})
    assert len(open_dataset(tmp_path / "set").splits["test"].images) == 9


def test_manifest_says_recipe_counts_and_digests(tmp_path: Path) -> None:
    dataset = write(tmp_path / "set", seed=5)
    raw = json.loads((tmp_path / "set" / MANIFEST).read_text())
    assert raw["tool_version"] == __version__
    assert raw["recipe"] == {"name": "toy", "seed": 5, "ratio": 0.5, "note": "[\n 1\n]"}
    assert raw["attribute_names"] == ["digit", "color"]
    assert raw["class_names"] == ["a", "b", "c"]
    assert raw["bias_names"] == ["x", "y", "z"]
    for name, split in SPLITS.items():
        record = raw["splits"][name]
        assert record["images"] == len(split.images)
        assert record["image_shape"] == [4, 5, 3]
        counts = [
            [sum(1 for t, b in zip(split.target, split.bias, strict=True) if (t, b) == (i, j)) for j in range(3)]
            for i in range(3)
        ]
        assert record["group_counts"] == counts
        for file in ("images.npy", "attrs.npy"):
            content = (tmp_path / "set" / name / file).read_bytes()
            assert record["sha256"][file] == hashlib.sha256(content).hexdigest()
    assert raw["digest"] == dataset.digest


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_digest_is_what_sha256sum_gives(tmp_path: Path) -> None:
    dataset = write(tmp_path / "set")
    command = "LC_ALL=C sha256sum */*.npy | sha256sum"
    output = subprocess.run(
        command, shell=True, cwd=tmp_path / "set", capture_output=True, text=True, check=True
    ).stdout
    assert output.split()[0] == dataset.digest


def test_group_counts() -> None:
    split = Split(np.zeros((4, 1, 1, 3), np.uint8), np.array([0, 1, 1, 1], np.uint8), np.array([1, 0, 1, 1], np.uint8))
    counts = split.group_counts(2, 2)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[0, 1], [1, 2]]
    with pytest.raises(ValueError, match="below 1"):
        split.group_counts(1, 2)
    many = Split(np.zeros((1, 1, 1, 3), np.uint8), np.array([200], np.uint8), np.array([7], np.uint8))
    assert many.group_counts(201, 8)[200, 7] == 1


def test_require_groups_names_what_is_missing() -> None:
    split = Split(np.zeros((3, 1, 1, 3), np.uint8), np.array([0, 1, 1], np.uint8), np.array([0, 0, 1], np.uint8))
    with pytest.raises(DataError) as error:
        require_groups(split, "valid", 2)
    assert "valid" in error.value.what
    assert "1 of 4" in error.value.what
    assert "(0, 1)" in error.value.what
    require_groups(SPLITS["valid"], "valid", CLASSES)
    with pytest.raises(DataError, match="target label 2"):
        require_groups(SPLITS["valid"], "valid", 2)


class StopWritingError(BaseException):
    """Not an Exception, like KeyboardInterrupt."""


@pytest.mark.parametrize("replace", [False, True])
def test_interruption_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool) -> None:
    if replace:
        before = write(tmp_path / "set").digest
    saved: list[Path] = []
    add = writing.SplitWriter.add

    def stop_at_second(writer: writing.SplitWriter, images: np.ndarray, target: np.ndarray, bias: np.ndarray) -> None:
        saved.append(Path(writer._file.name))
        add(writer, images, target, bias)
        if len(saved) == 2:
            raise StopWritingError

    monkeypatch.setattr(writing.SplitWriter, "add", stop_at_second)
    with pytest.raises(StopWritingError):
        write(tmp_path / "set", replace=replace, splits=SPLITS | {"valid": make_split(9)})
    assert all(tmp_path / "set" not in file.parents for file in saved)
    assert [path.name for path in tmp_path.iterdir()] == (["set"] if replace else [])
    if replace:
        assert open_dataset(tmp_path / "set").digest == before


def test_full_disk_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError) as error:  # noqa: PT011
            write(tmp_path / "set", splits={"train": make_split(3000), "valid": make_split(9)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno is not None, "the command line tells a full disk by its number"
    assert list(tmp_path.iterdir()) == []


def test_existing_set_is_replaced_only_when_told(tmp_path: Path) -> None:
    first = write(tmp_path / "set", seed=1)
    with pytest.raises(DataError, match="exists already") as error:
        write(tmp_path / "set", seed=2)
    assert "--force" in error.value.fix
    assert open_dataset(tmp_path / "set").manifest == first.manifest
    (tmp_path / "set" / "stale").touch()
    write(tmp_path / "set", seed=2, replace=True)
    manifest = open_dataset(tmp_path / "set").manifest
    assert manifest is not None
    assert manifest.recipe["seed"] == 2
    assert not (tmp_path / "set" / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_replacing_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    write(tmp_path / "real", seed=1)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", seed=2, replace=True)
    assert (tmp_path / "link").is_symlink()
    manifest = open_dataset(tmp_path / "real").manifest
    assert manifest is not None
    assert manifest.recipe["seed"] == 2


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_data_set_is_never_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "set"
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="not a data set folder"):
        write(path, replace=True)
    assert (path if kind == "file" else path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({"train": SPLITS["train"], "valid": make_split(0)}, "images of split valid"),
        (
            SPLITS | {"train": Split(np.zeros((2, 4, 5), np.uint8), np.zeros(2, np.uint8), np.zeros(2, np.uint8))},
            "images of split train: found uint8 of shape (2, 4, 5)",
        ),
        (
            SPLITS | {"train": Split(SPLITS["train"].images, SPLITS["train"].target, np.full(30, 3, np.uint8))},
            "bias label 3; expected labels from 0 to 2",
        ),
        (
            SPLITS | {"train": Split(SPLITS["train"].images, SPLITS["train"].target[:9], SPLITS["train"].bias)},
            "uint8 of shape (30,)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_not_written(tmp_path: Path, splits: dict[str, Split], words: str) -> None:
    with pytest.raises(DataError) as error:
        write(tmp_path / "set", splits=splits)
    assert words in error.value.what
    assert list(tmp_path.iterdir()) == []


def test_a_set_without_bias_labels(tmp_path: Path) -> None:
    bare = {name: Split(split.images, split.target, None) for name, split in SPLITS.items()}
    with writing.new_dataset(tmp_path / "set", replace=False) as writer:
        for name, split in bare.items():
            with writer.split(name) as out:
                out.add(split.images[:5], split.target[:5], None)
                out.add(split.images[5:], split.target[5:], None)
        writer.describe(recipe={}, attribute_names=("label",), class_names=["a", "b", "c"], bias_names=())
    opened = open_dataset(tmp_path / "set")
    assert opened.splits["train"].bias is None
    assert opened.bias_names == opened.aligned == ()
    assert np.load(tmp_path / "set" / "train" / "attrs.npy").shape == (30, 1)
    assert opened.splits["train"].group_counts(3, 0).tolist() == [[10], [10], [10]]
    np.testing.assert_array_equal(opened.splits["train"].images, SPLITS["train"].images)


def test_blocks_give_the_bytes_of_np_save(tmp_path: Path) -> None:
    write(tmp_path / "set")
    np.save(tmp_path / "images.npy", SPLITS["train"].images)
    assert (tmp_path / "set/train/images.npy").read_bytes() == (tmp_path / "images.npy").read_bytes()


def test_the_evaluation_split_is_test_where_there_is_one(tmp_path: Path) -> None:
    opened = write(tmp_path / "two")
    assert (opened.evaluation_name, opened.held_out) == ("valid", None)
    opened = write(tmp_path / "three", splits=SPLITS | {"test": make_split(9, 3)})
    assert opened.evaluation_name == "test"
    assert len(opened.evaluation.target) == 9
    assert opened.held_out is opened.splits["valid"]
    assert opened.evaluation_digest == opened.checksums["test/images.npy"]
    (tmp_path / "only").mkdir()
    write(tmp_path / "only test", splits={"train": SPLITS["train"], "test": SPLITS["valid"]})
    assert open_dataset(tmp_path / "only test").evaluation_name == "test"


def test_a_manifest_written_before_there_were_other_aligned_values(tmp_path: Path) -> None:
    path = write(tmp_path / "set").path / MANIFEST
    raw = json.loads(path.read_text())
    assert raw.pop("aligned") == [0, 1, 2]
    path.write_text(json.dumps(raw))
    assert open_dataset(tmp_path / "set").aligned == (0, 1, 2)
    path.write_text(json.dumps(raw | {"aligned": [0, 1, 3]}))
    with pytest.raises(DataError, match="aligned"):
        open_dataset(tmp_path / "set")


def test_one_who_stops_the_program_does_not_wait_for_gigabytes_to_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "set")
    all_at_work, ended = threading.Barrier(4), []

    def endless(file: Path, stopped: Callable[[], bool]) -> str:
        all_at_work.wait(10)
        if file.parts[-2:] == ("train", "attrs.npy"):
            raise KeyboardInterrupt
        until = time.monotonic() + 10
        while not stopped() and time.monotonic() < until:
            time.sleep(0.001)
        ended.append(stopped())
        return ""

    monkeypatch.setattr(store, "sha256", endless)
    with pytest.raises(KeyboardInterrupt):
        open_dataset(tmp_path / "set")
    assert ended == [True] * 3


def test_a_large_file_is_read_again_only_when_touched_or_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_LARGE", 1000)
    write(tmp_path / "set")
    read: list[str] = []
    sha256 = store.sha256
    monkeypatch.setattr(
        store, "sha256", lambda file, _: read.append(file.parent.name + "/" + file.name) or sha256(file)
    )
    first = open_dataset(tmp_path / "set")
    assert "train/images.npy" not in read
    read.clear()
    assert open_dataset(tmp_path / "set", thorough=True).digest == first.digest
    assert "train/images.npy" in read
    images = np.load(tmp_path / "set/train/images.npy")
    images[0] += 1
    np.save(tmp_path / "set/train/images.npy", images)
    with pytest.raises(DataError, match="has changed"):
        open_dataset(tmp_path / "set")

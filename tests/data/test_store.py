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

from denetdm_cli import __version__
from denetdm_cli.data import store
from denetdm_cli.data import writer as writing
from denetdm_cli.data.store import MANIFEST, Split, StoredDataset, open_dataset, require_groups
from denetdm_cli.data.writer import write_dataset
from denetdm_cli.utils.errors import DataError

CLASSES = 3


def make_split(count: int, start: int = 0) -> Split:
    images = (np.arange(start, start + count * 4 * 5 * 3) % 251).astype(np.uint8).reshape(count, 4, 5, 3)
    order = np.arange(count)
    return Split(images, (order % CLASSES).astype(np.uint8), (order // CLASSES % CLASSES).astype(np.uint8))


SPLITS = {"train": make_split(30), "valid": make_split(18, 7)}


def write(path: Path, *, replace: bool = False, seed: int = 0, splits: dict[str, Split] = SPLITS) -> StoredDataset:
    return write_dataset(
        path,
        splits,
        recipe={"name": "toy", "seed": seed, "ratio": 0.5, "note": "[\n 1\n]"},
        attribute_names=("digit", "color"),
        class_names=["a", "b", "c"],
        bias_names=["x", "y", "z"],
        replace=replace,
    )


def write_like_lff(path: Path, splits: dict[str, Split] = SPLITS) -> None:
    for name, split in splits.items():
        (path / name).mkdir(parents=True)
        np.save(path / name / "images.npy", split.images)
        np.save(path / name / "attrs.npy", np.stack([split.target, split.bias], axis=1))
    (path / "attr_names.pkl").write_bytes(pickle.dumps(["digit", "color"]))


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


# Interruption, replacement


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


# Opening what is wrong


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: shutil.rmtree(d), ["does not exist"]),
        (lambda d: d.rename(d.with_name("moved")) and d.write_text("x"), ["is a file"]),
        (lambda d: shutil.rmtree(d / "valid"), ["no folder valid or test"]),
        (lambda d: (d / "train" / "attrs.npy").unlink(), ["train/attrs.npy", "missing"]),
        (lambda d: (d / "train" / "images.npy").write_bytes(b""), ["train/images.npy", "damaged"]),
        (lambda d: (d / "train" / "images.npy").write_bytes(b"<html>no such page</html>"), ["images.npy", "damaged"]),
        (lambda d: cut(d / "train" / "images.npy"), ["train/images.npy", "damaged"]),
        (lambda d: cut(d / "train" / "attrs.npy"), ["train/attrs.npy", "damaged"]),
        (lambda d: np.save(d / "train" / "images.npy", np.array([{}])), ["images.npy", "damaged"]),
        (lambda d: save_npz(d / "train" / "images.npy"), ["images.npy", "archive"]),
        (
            lambda d: np.save(d / "train" / "images.npy", np.zeros((30, 4, 5, 3), np.float32)),
            ["train/images.npy", "found float32 of shape (30, 4, 5, 3)", "expected uint8 of shape (N, H, W, 3)"],
        ),
        (lambda d: np.save(d / "train" / "images.npy", np.zeros((30, 3, 4, 5), np.uint8)), ["(30, 3, 4, 5)"]),
        (lambda d: np.save(d / "train" / "images.npy", np.zeros((30, 60), np.uint8)), ["(30, 60)"]),
        (lambda d: np.save(d / "train" / "images.npy", np.zeros((0, 4, 5, 3), np.uint8)), ["train/images.npy"]),
        (lambda d: np.save(d / "valid" / "images.npy", np.zeros((18, 5, 5, 3), np.uint8)), ["train 4x5, valid 5x5"]),
        (
            lambda d: np.save(d / "train" / "attrs.npy", np.zeros((29, 2), np.uint8)),
            ["train/attrs.npy", "found labels of 29 images", "expected 30"],
        ),
        (lambda d: np.save(d / "train" / "attrs.npy", np.zeros(30, np.uint8)), ["attrs.npy", "(30,)", "(N, 2)"]),
        (lambda d: np.save(d / "train" / "attrs.npy", np.zeros((30, 3), np.uint8)), ["(30, 3)"]),
        (lambda d: np.save(d / "train" / "attrs.npy", np.zeros((30, 2))), ["attrs.npy", "float64"]),
        (lambda d: np.save(d / "train" / "attrs.npy", np.zeros((30, 2), bool)), ["attrs.npy", "bool"]),
        (lambda d: np.save(d / "train" / "attrs.npy", np.full((30, 2), -1)), ["labels from -1 to -1"]),
        (lambda d: np.save(d / "train" / "attrs.npy", np.full((30, 2), 256)), ["256"]),
        (
            lambda d: np.save(d / "valid" / "attrs.npy", np.full((18, 2), 3, np.uint8)),
            ["valid/attrs.npy", "target label 3", "labels from 0 to 2"],
        ),
    ],
)
def test_bad_folder_of_another_tool(tmp_path: Path, damage: object, words: list[str]) -> None:
    write_like_lff(tmp_path / "set")
    open_dataset(tmp_path / "set", classes=CLASSES)
    damage(tmp_path / "set")  # type: ignore[operator]
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path / "set", classes=CLASSES)
    for word in words:
        assert word in error.value.what
    assert str(tmp_path / "set") in error.value.what
    assert "\n" not in error.value.what
    assert "make-data" in error.value.fix


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def save_npz(file: Path) -> None:
    with file.open("wb") as stream:
        np.savez(stream, a=np.zeros(3))


@pytest.mark.parametrize("name", ["train/images.npy", "train/attrs.npy", "valid/images.npy", "valid/attrs.npy"])
def test_changed_bytes_are_noticed(tmp_path: Path, name: str) -> None:
    write(tmp_path / "set")
    file = tmp_path / "set" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="has changed since the data set was made") as error:
        open_dataset(tmp_path / "set", classes=None)
    assert str(file) in error.value.what
    assert "--force" in error.value.fix


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: "", "damaged"),
        (lambda text: text[:-40], "damaged"),
        (lambda text: "[]", "damaged"),
        (lambda text: "{}", "no field 'format'"),
        (lambda text: text.replace('"recipe"', '"recipes"'), "no field 'recipe'"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2, expected 1"),
        (lambda text: text.replace('"images": 30', '"images": 31'), "split train"),
        (lambda text: text.replace('"digest": "', '"digest": "0'), "digest 0"),
        (lambda text: text.replace('"valid"', '"test"'), "splits train, valid"),
    ],
)
def test_damaged_manifest(tmp_path: Path, edit: object, words: str) -> None:
    write(tmp_path / "set")
    file = tmp_path / "set" / MANIFEST
    text = file.read_text()
    edited = edit(text)  # type: ignore[operator]
    assert edited != text
    file.write_text(edited)
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path / "set")
    assert words in error.value.what
    assert str(tmp_path / "set") in error.value.what


def test_labels_that_claim_more_than_the_memory_are_refused(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "images.npy", np.zeros((2, 2, 2, 3), np.uint8))
        with (tmp_path / name / "attrs.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (10**15, 2)}
            np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match=r"attrs\.npy is damaged"):
        open_dataset(tmp_path)


# Without bias labels, other shapes of groups, large files


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

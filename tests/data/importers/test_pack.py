import json
import os
import shutil
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from denetdm_cli.data.importers import decode
from denetdm_cli.data.importers import pack as importing
from denetdm_cli.data.importers.decode import read_image
from denetdm_cli.data.importers.listing import Item, Listing
from denetdm_cli.data.importers.pack import pack
from denetdm_cli.data.store import StoredDataset, open_dataset
from denetdm_cli.utils.errors import DataError, StorageError


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def info(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, warning: str) -> None:
        self.lines.extend(warning.splitlines())

    def advance(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))


class Stop(BaseException):
    """What is neither an error nor a KeyboardInterrupt."""


def numbered(folder: Path, count: int, classes: int = 2) -> list[Item]:
    """Images of one colour each, which tells their number."""
    folder.mkdir(exist_ok=True, parents=True)
    items = []
    for number in range(count):
        path = folder / f"{number:04}.png"
        Image.new("RGB", (6, 4), (number % 256, number // 256, 7)).save(path)
        items.append(Item(path, number % classes, number % 3))
    return items


def listing(root: Path, train: int = 20, test: int = 6) -> Listing:
    splits = {"train": numbered(root / "train", train), "test": numbered(root / "test", test)}
    return Listing(root, splits, ("a", "b"), ("x", "y", "z"), (2, 0), ("label", "bias"))


def packed(source: Listing, path: Path, log: Log | None = None, **options: Any) -> StoredDataset:
    settings = {"size": 8, "fit": "stretch", "recipe": {"name": "toy"}, "replace": False} | options
    return pack(source, path, reporter=log or Log(), **settings)


def numbers(images: np.ndarray) -> list[int]:
    return [int(image[0, 0, 0]) + 256 * int(image[0, 0, 1]) for image in images]


def test_everything_is_in_its_place(tmp_path: Path) -> None:
    source = listing(tmp_path / "in")
    log = Log()
    written = packed(source, tmp_path / "out", log)
    dataset = open_dataset(tmp_path / "out", thorough=True)
    assert list(dataset.splits) == ["train", "test"]
    for name, items in source.splits.items():
        split = dataset.splits[name]
        assert split.images.shape == (len(items), 8, 8, 3)
        assert numbers(split.images) == list(range(len(items)))
        assert split.target.tolist() == [item.target for item in items]
        assert split.bias is not None
        assert split.bias.tolist() == [item.bias for item in items]
    assert dataset.manifest == written.manifest
    assert dataset.manifest is not None
    assert dataset.class_names == ("a", "b")
    assert dataset.bias_names == ("x", "y", "z")
    assert dataset.aligned == (2, 0)
    assert dataset.manifest.attribute_names == ("label", "bias")
    assert dataset.manifest.recipe == {
        "name": "toy",
        "source_fingerprint": source.fingerprint(),
        "images_left_out": 0,
        "resized_to": 8,
        "fit": "stretch",
    }
    assert log.lines == []
    assert log.steps == [("train: reading images", 20, 20), ("test: reading images", 6, 6)]


def test_order_does_not_depend_on_which_thread_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = listing(tmp_path / "in", train=70)
    monkeypatch.setattr(importing, "thread_limit", lambda: 8)
    monkeypatch.setattr(importing, "_BLOCK_IMAGES", 9)
    random = np.random.RandomState(0)

    def slowly(path: Path, **options: Any) -> np.ndarray:
        time.sleep(random.rand() / 200)
        return read_image(path, **options)

    monkeypatch.setattr(importing, "read_image", slowly)
    log = Log()
    one = packed(source, tmp_path / "one", log)
    assert numbers(one.splits["train"].images) == list(range(70))
    assert [done for what, done, _ in log.steps if what.startswith("train")] == [9, 18, 27, 36, 45, 54, 63, 70]
    monkeypatch.setattr(importing, "thread_limit", lambda: 1)
    assert packed(source, tmp_path / "two").digest == one.digest


def test_few_images_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = listing(tmp_path / "in", train=200)
    monkeypatch.setattr(importing, "thread_limit", lambda: 2)
    monkeypatch.setattr(importing, "_BLOCK_BYTES", 10 * 8 * 8 * 3)
    lock = threading.Lock()
    state = {"read": 0, "written": 0, "most": 0}

    def counted(path: Path, **options: Any) -> np.ndarray:
        with lock:
            state["read"] += 1
            state["most"] = max(state["most"], state["read"] - state["written"])
        return read_image(path, **options)

    class Counts(Log):
        def advance(self, what: str, done: int, total: int) -> None:
            with lock:
                state["written"] = done + (200 if what.startswith("test") else 0)

    monkeypatch.setattr(importing, "read_image", counted)
    packed(source, tmp_path / "out", Counts())
    assert state["most"] <= 10 + 2 * importing._AHEAD + 2


def test_size_is_kept_where_none_is_given(tmp_path: Path) -> None:
    source = listing(tmp_path / "in")
    dataset = packed(source, tmp_path / "out", size=None)
    assert dataset.splits["train"].images.shape == (20, 4, 6, 3)
    assert dataset.manifest is not None
    assert dataset.manifest.recipe["resized_to"] is None
    assert dataset.manifest.recipe["fit"] is None
    Image.new("RGB", (5, 5)).save(tmp_path / "in" / "train" / "0007.png")
    with pytest.raises(DataError, match=r"train/0000\.png is 6x4, train/0007\.png is 5x5"):
        packed(source, tmp_path / "other", size=None)


def test_without_bias_labels(tmp_path: Path) -> None:
    splits = {
        name: [Item(item.path, item.target, None) for item in items]
        for name, items in listing(tmp_path / "in").splits.items()
    }
    dataset = packed(Listing(tmp_path / "in", splits, ("a", "b"), (), (), ("label",)), tmp_path / "out")
    assert dataset.splits["train"].bias is None
    assert dataset.aligned == ()
    assert np.load(tmp_path / "out" / "train" / "attrs.npy").shape == (20, 1)


def test_unreadable_images_are_named_and_left_out(tmp_path: Path) -> None:
    source = listing(tmp_path / "in", train=2600)
    bad = list(range(3, 2600, 100))
    for number in bad:
        source.splits["train"][number].path.write_bytes(b"no image")
    log = Log()
    dataset = packed(source, tmp_path / "out", log)
    train = dataset.splits["train"]
    assert numbers(train.images) == [number for number in range(2600) if number not in bad]
    assert train.target.tolist() == [number % 2 for number in range(2600) if number not in bad]
    assert dataset.manifest is not None
    assert dataset.manifest.recipe["images_left_out"] == len(bad) == 26
    assert log.lines[0].startswith("26 of 2,606 images cannot be read")
    assert log.lines[1].startswith("  train/0003.png: not an image")
    assert len(log.lines) == 27
    assert log.lines[-1].startswith("  train/2503.png: not an image")


def test_too_many_unreadable_images(tmp_path: Path) -> None:
    source = listing(tmp_path / "in", train=60)
    for item in source.splits["train"][10:40]:
        item.path.write_bytes(b"no image")
    with pytest.raises(DataError) as error:
        packed(source, tmp_path / "out")
    assert "30 of 66 images" in error.value.what
    assert "1.0%" in error.value.what
    assert "train/0010.png" in error.value.what
    assert "train/0039.png" in error.value.what, "every one is named"
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]
    assert packed(source, tmp_path / "out", max_unreadable=0.5).splits["train"].images.shape[0] == 30


def test_a_class_or_split_that_becomes_empty(tmp_path: Path) -> None:
    source = listing(tmp_path / "in")
    for item in source.splits["test"]:
        if item.target == 1:
            item.path.write_bytes(b"no image")
    with pytest.raises(DataError, match="no image can be read of some classes in split test: b"):
        packed(source, tmp_path / "out", max_unreadable=0.5)
    for item in source.splits["test"]:
        item.path.write_bytes(b"no image")
    with pytest.raises(DataError, match="in split test: a, b"):
        packed(source, tmp_path / "out", max_unreadable=0.5)
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stop(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("existing", [False, True])
def test_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, existing: bool
) -> None:
    source = listing(tmp_path / "in", train=300)
    before = packed(source, tmp_path / "out").digest if existing else None
    started = []

    def stops(path: Path, **options: Any) -> np.ndarray:
        started.append(path)
        if len(started) == 30:
            raise error
        return read_image(path, **options)

    monkeypatch.setattr(importing, "read_image", stops)
    monkeypatch.setattr(importing, "_BLOCK_IMAGES", 4)
    with pytest.raises(type(error)):
        packed(source, tmp_path / "out", replace=True, size=16)
    assert len(started) < 100
    assert sorted(path.name for path in tmp_path.iterdir()) == (["in", "out"] if existing else ["in"])
    if existing:
        assert open_dataset(tmp_path / "out").digest == before


@pytest.mark.parametrize("where", ["in the main thread", "while it waits", "in another thread"])
def test_threads_are_stopped_promptly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    source = listing(tmp_path / "in", train=300)
    begun, threads = [], threading.active_count()
    monkeypatch.setattr(importing, "_BLOCK_IMAGES", 4)
    monkeypatch.setattr(importing, "_AHEAD", 1000)  # all of them wait for their turn

    def reading(path: Path, **options: Any) -> np.ndarray:
        begun.append(path)
        if len(begun) == 20 and where == "while it waits":
            os.kill(os.getpid(), signal.SIGINT)
        if len(begun) == 20 and where == "in another thread":
            raise Stop
        time.sleep(0.005)
        return read_image(path, **options)

    class Stops(Log):
        def advance(self, what: str, done: int, total: int) -> None:
            if done == 20 and where == "in the main thread":
                raise Stop

    monkeypatch.setattr(importing, "read_image", reading)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt if where == "while it waits" else Stop):
            packed(source, tmp_path / "out", Stops())
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(begun) < 100
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == [tmp_path / "in"]


def test_existing_folders(tmp_path: Path) -> None:
    source = listing(tmp_path / "in")
    packed(source, tmp_path / "out")
    with pytest.raises(DataError, match="exists already"):
        packed(source, tmp_path / "out")
    assert packed(source, tmp_path / "out", replace=True, size=12).splits["train"].images.shape == (20, 12, 12, 3)


@pytest.mark.parametrize(("size", "needed"), [(100, "0.00 GB"), (2048, "0.33 GB"), (None, "0.00 GB")])
def test_disk_space_is_looked_at_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None, needed: str
) -> None:
    source = listing(tmp_path / "in")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(StorageError) as error:
        packed(source, tmp_path / "new" / "out", size=size)
    assert f"26 images take {needed}" in error.value.what
    assert not list(tmp_path.glob("new/*"))


def test_no_warning_reaches_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = listing(tmp_path / "in", train=120)
    Image.new("RGB", (40, 40)).save(source.splits["train"][5].path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(decode, "_MAX_PIXELS", 1000)
    log = Log()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        packed(source, tmp_path / "out", log)
    assert caught == []
    assert "train/0005.png: 40x40 are more than 1,000 pixels" in log.lines[1]


def test_fingerprint(tmp_path: Path) -> None:
    source = listing(tmp_path / "in")
    first = source.fingerprint()
    shutil.copytree(tmp_path / "in", tmp_path / "copy" / "deep")
    assert listing(tmp_path / "copy" / "deep").fingerprint() == first, "it does not depend on where the source lies"
    splits = dict(source.splits)
    changed = Item(splits["train"][0].path, 1, 0)
    assert (
        Listing(tmp_path / "in", splits | {"train": [changed, *splits["train"][1:]]}, (), (), (), ()).fingerprint()
        != first
    )
    assert (
        Listing(tmp_path / "in", {"valid": splits["test"], "train": splits["train"]}, (), (), (), ()).fingerprint()
        != first
    )
    splits["train"][3].path.write_bytes(b"other")
    assert source.fingerprint() != first


def test_manifest_is_plain_json(tmp_path: Path) -> None:
    packed(listing(tmp_path / "in"), tmp_path / "out", recipe={"name": "toy", "size": 8, "ratio": None})
    recipe = json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]
    assert recipe["size"] == 8
    assert recipe["ratio"] is None


def test_no_more_threads_than_the_allotment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[int] = []

    def pool(workers: int) -> ThreadPoolExecutor:
        pools.append(workers)
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(importing, "thread_limit", lambda: 3)
    monkeypatch.setattr(importing, "ThreadPoolExecutor", pool)
    packed(listing(tmp_path / "in"), tmp_path / "out")
    assert pools == [3]

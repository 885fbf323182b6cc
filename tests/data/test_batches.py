import itertools
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from denetdm_cli.config.schema import DataConfig
from denetdm_cli.data import batches as module
from denetdm_cli.data.batches import Batch, Batches
from denetdm_cli.data.store import Split
from denetdm_cli.utils.memory import announce_processes

IMAGES = 23
PLAIN: dict[str, object] = {
    "mean": None,
    "std": None,
    "random_crop_padding": 0,
    "random_resized_crop": None,
    "horizontal_flip": False,
}
NORMALISED = {**PLAIN, "mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
PADDED = {**NORMALISED, "random_crop_padding": 3, "horizontal_flip": True}
RESIZED = {**NORMALISED, "random_resized_crop": [0.2, 1.0], "horizontal_flip": True}
FLIPPED = {**PLAIN, "horizontal_flip": True}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _config(settings: dict[str, object] = PLAIN, cache: str = "auto") -> DataConfig:
    return DataConfig.model_validate({**settings, "cache": cache})


def _split(folder: Path | None = None) -> Split:
    """Images of 10 by 12 pixels, memory-mapped where there is a folder for them."""
    random = np.random.RandomState(0)
    images: NDArray[np.uint8] = random.randint(0, 256, (IMAGES, 10, 12, 3)).astype(np.uint8)
    if folder is not None:
        np.save(folder / "images.npy", images)
        images = np.load(folder / "images.npy", mmap_mode="r")
    return Split(images, *random.randint(0, 5, (2, IMAGES)).astype(np.uint8))


def _batches(settings: dict[str, object] = PLAIN, cache: str = "auto", *, augment: bool = True) -> Batches:
    return Batches(_split(), torch.device("cpu"), _config(settings, cache), augment=augment)


def _epoch(batches: Batches, seed: int = 0, size: int = 5, *, drop_last: bool = False) -> list[Batch]:
    return list(batches.shuffled(size, torch.Generator().manual_seed(seed), drop_last=drop_last))


def _same(found: list[Batch], expected: list[Batch]) -> bool:
    return len(found) == len(expected) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(found, expected, strict=True)
        for name in ("x", "y", "index")
    )


def _readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("denetdm-batches")]


def test_without_a_configuration_batches_are_pixels_over_255() -> None:
    split = _split()
    batches = Batches(split, torch.device("cpu"))
    (whole,) = batches.in_order(100)
    assert torch.equal(whole.x, torch.div(torch.from_numpy(split.images).permute(0, 3, 1, 2), 255))
    assert (len(batches), batches.shape, batches.cache) == (IMAGES, (3, 10, 12), "device")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", [PLAIN, NORMALISED, PADDED, RESIZED, FLIPPED])
def test_all_caches_give_the_same_bits(tmp_path: Path, settings: dict[str, object], device: str) -> None:
    split = _split(tmp_path)
    made = [
        Batches(split, torch.device(device), _config(settings, cache), augment=True)
        for cache in ("device", "host", "stream")
    ]
    assert [batches.cache for batches in made] == ["device", "host", "stream"]
    index = torch.tensor([4, 0, 22, 4], device=device)
    for other in made[1:]:
        for drop_last, size in itertools.product((True, False), (1, 5, 30)):
            found, expected = (_epoch(batches, size=size, drop_last=drop_last) for batches in (other, made[0]))
            assert _same(found, expected)
        assert _same(list(other.in_order(5)), list(made[0].in_order(5)))
        assert _same([other.take(index)], [made[0].take(index)])
    for batches in made:
        for batch in (*_epoch(batches), *batches.in_order(5), batches.take(index)):
            assert batch.x.is_contiguous()
            assert (batch.x.dtype, batch.y.dtype, batch.index.dtype) == (torch.float32, torch.int64, torch.int64)
            assert {part.device.type for part in (batch.x, batch.y, batch.index)} == {device}


@pytest.mark.parametrize("cache", ["device", "stream"])
@pytest.mark.parametrize("settings", [PLAIN, PADDED, RESIZED])
@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [5] * 4), (False, [5] * 4 + [3])])
def test_the_order_is_one_permutation_however_images_are_augmented(
    cache: str, settings: dict[str, object], drop_last: bool, sizes: list[int]
) -> None:
    batches = _batches(settings, cache)
    found = _epoch(batches, seed=11, drop_last=drop_last)
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(11))
    assert [len(batch.index) for batch in found] == [len(batch.x) for batch in found] == sizes
    assert torch.equal(torch.cat([batch.index for batch in found]), order[: sum(sizes)])
    for batch in found:
        assert torch.equal(batch.y, torch.from_numpy(batches.target)[batch.index])


def test_no_batch_is_left_where_all_images_are_an_incomplete_one() -> None:
    assert _epoch(_batches(), size=IMAGES + 1, drop_last=True) == []


@pytest.mark.parametrize("settings", [PADDED, RESIZED, FLIPPED])
def test_augmentation_is_for_shuffled_training_images_alone(settings: dict[str, object]) -> None:
    augmented, plain = _batches(settings), _batches(settings, augment=False)
    untouched = _batches({**settings, "random_crop_padding": 0, "random_resized_crop": None, "horizontal_flip": False})
    index = torch.arange(IMAGES).flip(0)
    for batches in (augmented, plain):
        assert _same(list(batches.in_order(4)), list(untouched.in_order(4)))
        assert _same([batches.take(index)], [untouched.take(index)])
    assert _same(_epoch(plain), _epoch(untouched))
    assert not _same(_epoch(augmented), _epoch(untouched))


@pytest.mark.parametrize("settings", [PADDED, RESIZED])
def test_what_an_image_gets_depends_on_the_generator_alone(settings: dict[str, object]) -> None:
    batches = _batches(settings)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = _epoch(batches, 0), _epoch(batches, 0), _epoch(batches, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert _same(first, again)

    def by_image(epoch: list[Batch]) -> torch.Tensor:
        return torch.cat([batch.x for batch in epoch])[torch.cat([batch.index for batch in epoch]).argsort()]

    same = (by_image(first) == by_image(other)).flatten(1).all(dim=1)
    assert int(same.sum()) < 3
    assert torch.equal(torch.cat([batch.x for batch in _epoch(batches, size=7)]), torch.cat([b.x for b in first]))


@pytest.mark.parametrize("settings", [PADDED, RESIZED])
def test_every_epoch_draws_crops_of_its_own(settings: dict[str, object]) -> None:
    # All images are one, so that the order makes no difference.
    split = _split()
    same = Split(np.repeat(split.images[:1], IMAGES, axis=0), split.target, split.bias)
    batches = Batches(same, torch.device("cpu"), _config(settings), augment=True)
    first, second = (torch.cat([batch.x for batch in _epoch(batches, seed)]) for seed in (0, 1))
    assert int((first == second).flatten(1).all(dim=1).sum()) < 3


def test_a_streamed_split_stays_on_the_disk(tmp_path: Path) -> None:
    # 120 MB of zeros that take no room on the disk.
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (2000, 100, 200, 3))
    images.flush()
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    labels = np.zeros(2000, np.uint8)
    tracemalloc.start()
    batches = Batches(Split(mapped, labels, labels), torch.device("cpu"), _config(cache="stream"))
    for _ in itertools.islice(batches.shuffled(8, torch.Generator(), drop_last=True), 5):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(batches._images, np.memmap)
    assert np.shares_memory(batches._images, mapped)
    assert peak < 20e6


def test_two_batches_are_read_ahead_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = _batches(cache="stream")
    read: list[list[int]] = []
    original = batches._read

    def note(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> torch.Tensor:
        assert threading.current_thread() is not threading.main_thread()
        read.append(rows.tolist())
        return original(images, rows)

    monkeypatch.setattr(batches, "_read", note)
    walk = batches.in_order(5)
    assert read == []
    for taken in range(1, 6):
        next(walk)
        expected = min(taken + 2, 5)
        deadline = time.monotonic() + 10
        while len(read) < expected and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(read) == expected
    assert list(walk) == []
    assert _readers() == []


def test_a_failure_in_the_background_reaches_whoever_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = _batches(cache="stream")
    original = batches._read

    def fail(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> torch.Tensor:
        if 10 in rows:
            raise OSError("the disk is gone")
        return original(images, rows)

    monkeypatch.setattr(batches, "_read", fail)
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(batch.index.tolist() for batch in batches.in_order(5))
    assert batches.take(torch.tensor([3])).index.tolist() == [3]
    assert _readers() == []


@pytest.mark.parametrize("settings", [PLAIN, PADDED])
def test_whoever_stops_early_leaves_nothing_running(settings: dict[str, object]) -> None:
    batches = _batches(settings, "stream")
    walk = batches.shuffled(2, torch.Generator(), drop_last=True)
    next(walk)
    assert len(_readers()) == 1
    walk.close()  # type: ignore[attr-defined]
    assert _readers() == []
    for _ in batches.in_order(2):
        break
    assert _readers() == []

    def interrupted() -> None:
        for _ in batches.in_order(2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert _readers() == []


def test_whoever_stops_early_does_not_wait_for_what_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = _batches(cache="stream")
    read = []
    original = batches._read

    def slowly(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> torch.Tensor:
        read.append(rows)
        time.sleep(0.1)
        return original(images, rows)

    monkeypatch.setattr(batches, "_read", slowly)
    for _ in batches.in_order(2):
        break
    assert len(read) <= 2


@pytest.mark.parametrize(
    ("kind", "memory", "on_device", "expected"),
    [
        ("cpu", 200, 0, "device"),
        ("cpu", 199, 0, "stream"),
        ("cpu", None, 0, "device"),
        ("mps", 200, 0, "device"),
        ("mps", 199, 0, "stream"),
        ("cuda", 0, 200, "device"),
        ("cuda", 200, 199, "host"),
        ("cuda", 199, 199, "stream"),
        ("cuda", None, 199, "host"),
    ],
)
def test_auto_takes_the_fastest_place_that_half_the_free_memory_holds(
    monkeypatch: pytest.MonkeyPatch, kind: str, memory: int | None, on_device: int, expected: str
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: memory)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (on_device, 1000))
    assert module._choose_cache(100, torch.device(kind)) == expected


def test_processes_that_share_a_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (800, 1000))
    for name in ("DENETDM_PROCESSES", "DENETDM_PROCESSES_PER_DEVICE"):
        monkeypatch.setenv(name, "1")
    for processes, expected in ((8, "device"), (9, "stream")):
        announce_processes(processes, 2)
        assert module._choose_cache(100, torch.device("cuda")) == expected


def test_a_cache_that_was_asked_for_is_not_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 0)
    assert [_batches(cache=cache).cache for cache in ("auto", "device", "host", "stream")] == [
        "stream",
        "device",
        "host",
        "stream",
    ]


def test_a_split_may_have_no_bias_labels() -> None:
    split = _split()
    batches = Batches(Split(split.images, split.target, None), torch.device("cpu"), _config(PADDED), augment=True)
    assert batches.bias is None
    assert len(_epoch(batches)) == 5


def test_images_in_another_layout_of_memory_are_the_same_images() -> None:
    split = _split()
    turned = Split(np.asfortranarray(split.images), split.target, split.bias)
    for cache in ("device", "stream"):
        batches = Batches(turned, torch.device("cpu"), _config(cache=cache))
        assert _same(list(batches.in_order(5)), list(_batches().in_order(5)))


def test_images_are_packed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(_batches(cache="device").in_order(5))
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * 10 * 12 * 3 + 1)
    assert _same(list(_batches(cache="device").in_order(5)), whole)


def test_the_layout_for_convolutions_changes_no_value() -> None:
    plain, laid = (Batches(_split(), torch.device("cpu"), channels_last=layout) for layout in (False, True))
    index = torch.tensor([3, 1, 2])
    one, other = plain.take(index).x, laid.take(index).x
    assert torch.equal(one, other)
    assert one.is_contiguous()
    assert other.is_contiguous(memory_format=torch.channels_last)

import hashlib
import json
import math
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from denetdm_cli.config.schema import ColoredMnistConfig
from denetdm_cli.data import recipe as common
from denetdm_cli.data.raw.mnist import Mnist, load_mnist
from denetdm_cli.data.recipe import bias_labels
from denetdm_cli.data.store import MANIFEST, StoredDataset, open_dataset
from denetdm_cli.data.synthetic import colored_mnist as coloredmnist
from denetdm_cli.data.synthetic.colored_mnist import (
    MEAN_COLOURS,
    STD_BY_SEVERITY,
    colored_mnist_folder,
    colored_mnist_recipe,
    make_colored_mnist,
)
from denetdm_cli.utils.errors import DataError


def slow_bias_labels(targets: list[int], ratio: float, classes: int) -> list[int]:
    """LfF's rule, word by word, one image at a time."""
    sizes = [targets.count(label) for label in range(classes)]
    seen = [0] * classes
    labels = []
    for label in targets:
        total, milestones = 0.0, []
        for j in range(classes):
            total += 1 - ratio if j == label else ratio / (classes - 1)
            milestones.append(round(sizes[label] * total))  # Python rounds half to even, like numpy
        labels.append(next(j for j, milestone in enumerate(milestones) if milestone > seen[label]))
        seen[label] += 1
    return labels


def make(mnist: Mnist, path: Path, *, ratio: float = 0.1, severity: int = 1, seed: int = 0) -> StoredDataset:
    return make_colored_mnist(mnist, path, ratio=ratio, severity=severity, seed=seed, replace=False)


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def real_mnist(mnist_dir: Path) -> Mnist:
    return load_mnist(mnist_dir, mnist_dir, print)


# Bias labels


@pytest.mark.parametrize(("ratio", "expected"), [(0.05, 3000), (0.02, 1199), (0.01, 598), (0.005, 300)])
def test_known_counts_on_mnist(real_mnist: Mnist, ratio: float, expected: int) -> None:
    bias = bias_labels(real_mnist.train_labels, ratio)
    assert np.count_nonzero(bias != real_mnist.train_labels) == expected


def test_known_row_of_cifar10() -> None:
    targets = np.arange(50000) % 10
    first = bias_labels(targets, 0.05)[targets == 0]
    assert np.bincount(first).tolist() == [4750, 28, 28, 27, 28, 28, 28, 27, 28, 28]
    evaluation = bias_labels(np.arange(10000) % 10, 0.9)
    assert (np.bincount(np.arange(10000) % 10 * 10 + evaluation) == 100).all()


@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.05, 0.02, 0.01, 0.005, 1e-6, 1 - 1e-6])
@pytest.mark.parametrize("classes", [2, 6, 10])
def test_rule_one_by_one(ratio: float, classes: int) -> None:
    targets = np.random.RandomState(3).randint(0, classes, 2000)
    targets[targets == 1] = 0  # an empty class is allowed
    bias = bias_labels(targets, ratio, classes)
    assert bias.dtype == np.uint8
    assert bias.tolist() == slow_bias_labels(targets.tolist(), ratio, classes)


@pytest.mark.parametrize("ratio", [0.05, 0.9])
def test_rule_on_real_labels(real_mnist: Mnist, ratio: float) -> None:
    labels = real_mnist.test_labels
    assert bias_labels(labels, ratio).tolist() == slow_bias_labels(labels.tolist(), ratio, 10)


def test_targets_out_of_range() -> None:
    with pytest.raises(DataError, match="found 0 to 10"):
        bias_labels(np.array([0, 10]), 0.1)
    with pytest.raises(DataError, match="found -1 to 3"):
        bias_labels(np.array([3, -1]), 0.1)


# Colours


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_colours_one_by_one(small_mnist: Mnist, tmp_path: Path, severity: int) -> None:
    dataset = make(small_mnist, tmp_path / "set", severity=severity, seed=11)
    std = {1: 0.05, 2: 0.02, 3: 0.01, 4: 0.005, 5: 0.002}[severity]
    sources = {"train": small_mnist.train_images, "valid": small_mnist.test_images}
    for number, (name, grey) in enumerate(sources.items()):
        split = dataset.splits[name]
        generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([11, number])))
        for index, image in enumerate(grey):
            for channel, noise in enumerate(generator.standard_normal(3)):
                value = min(max(MEAN_COLOURS[split.bias[index], channel] + std * noise, 0.0), 1.0)
                expected = [[math.trunc(value * int(pixel)) for pixel in row] for row in image]
                assert split.images[index, :, :, channel].tolist() == expected


def test_colours_are_computed_in_double_precision() -> None:
    assert coloredmnist._draw_colours(np.zeros(3, np.uint8), 0.05, 0, 0).dtype == np.float64
    below = np.nextafter(np.arange(1, 256) / 255, 0).repeat(3).reshape(255, 3)  # single precision rounds these up
    painted = coloredmnist._paint(np.full((255, 1, 1), 255, np.uint8), below)
    expected = [math.trunc(255 * value) for value in below[:, 0].tolist()]
    assert expected != list(range(1, 256))
    assert painted[:, 0, 0, 0].tolist() == expected


def test_real_colours_are_pinned_and_have_the_mean_and_spread_of_the_recipe(real_mnist: Mnist, tmp_path: Path) -> None:
    few = Mnist(
        real_mnist.train_images[:12000],
        real_mnist.train_labels[:12000],
        real_mnist.test_images[:1000],
        real_mnist.test_labels[:1000],
    )
    dataset = make(few, tmp_path / "set", ratio=0.5, severity=2)
    assert dataset.digest == "f7b9abe9e682b79eab62679b71c11b0f4061ec9af88bc967826407f0024929cf"
    split = dataset.splits["train"]
    # A pixel of grey 255 shows the colour itself, less than one step of 1/255 below it.
    lit = few.train_images.reshape(len(few.train_images), -1).argmax(axis=1)
    grey = few.train_images.reshape(len(few.train_images), -1).max(axis=1)
    colours = split.images.reshape(len(split.images), -1, 3)[np.arange(len(lit)), lit]
    for value in range(10):
        chosen = colours[(split.bias == value) & (grey == 255)] / 255 + 0.5 / 255
        assert len(chosen) > 300
        for channel, mean in enumerate(MEAN_COLOURS[value]):
            if 0.06 < mean < 0.94:  # elsewhere clipping moves the mean
                assert chosen[:, channel].mean() == pytest.approx(mean, abs=0.005)
                assert chosen[:, channel].std() == pytest.approx(0.02, rel=0.15)


def test_table_of_colours() -> None:
    assert MEAN_COLOURS.shape == (10, 3)
    assert MEAN_COLOURS[0].tolist() == [0.9837, 0.3125, 0.1686]
    assert MEAN_COLOURS[4].tolist() == [0.0880, 0.7780, 0.9818]
    assert MEAN_COLOURS[9].tolist() == [0.8337, 0.2024, 0.2669]
    assert STD_BY_SEVERITY == {1: 0.05, 2: 0.02, 3: 0.01, 4: 0.005, 5: 0.002}


# The bytes


def test_bytes_are_pinned(small_mnist: Mnist, tmp_path: Path) -> None:
    """If this fails, the same seed no longer gives the same files as on other machines and in earlier versions."""
    path = make(small_mnist, tmp_path / "set", ratio=0.2, severity=1, seed=42).path
    found = {name: hashlib.sha256(content).hexdigest() for name, content in files(path).items() if name != MANIFEST}
    assert found == {
        "attr_names.pkl": "1109814c463510020f4bd61a53e01e4c4e40f6003e313e8d6f6d0ac42ef4e038",
        "train/attrs.npy": "210964151ddb62d81144eead1c780ad6421b4c87e9d1db626362202c1626dd20",
        "train/images.npy": "2f89bdb5f849da14c8dc7776222582c7dc56cb7b067e6a54daa76aff39505cad",
        "valid/attrs.npy": "cbef9a63629163d5177962713ed9086fc696b772c3f2166c7d9ea8f752e8912a",
        "valid/images.npy": "8756c1f46b676ff37822fc71eb0cda02d67564d7ebbe3986656aaa44566b1acd",
    }


def test_same_seed_same_bytes_other_seed_other_images(small_mnist: Mnist, tmp_path: Path) -> None:
    first, again, other = (make(small_mnist, tmp_path / str(i), seed=seed).path for i, seed in enumerate([1, 1, 2]))
    assert files(first) == files(again)
    changed = {name for name, content in files(first).items() if files(other)[name] != content}
    assert changed == {"train/images.npy", "valid/images.npy", MANIFEST}


def test_evaluation_split_does_not_depend_on_the_ratio(small_mnist: Mnist, tmp_path: Path) -> None:
    one, two = (make(small_mnist, tmp_path / str(ratio), ratio=ratio) for ratio in (0.05, 0.3))
    for name in ("valid/images.npy", "valid/attrs.npy"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()
    assert one.splits["valid"].group_counts(10, 10).tolist() == [[3] * 10] * 10
    for dataset, ratio in ((one, 0.05), (two, 0.3)):
        train = dataset.splits["train"]
        assert np.mean(train.target != train.bias) == pytest.approx(ratio, abs=0.01)


def test_manifest_holds_the_settings(small_mnist: Mnist, tmp_path: Path) -> None:
    make(small_mnist, tmp_path / "set", ratio=0.25, severity=3, seed=7)
    raw = json.loads((tmp_path / "set" / MANIFEST).read_text())
    recipe = raw["recipe"]
    assert recipe["name"] == "coloredmnist"
    assert recipe["conflict_ratio"] == 0.25
    assert recipe["evaluation_conflict_ratio"] == 0.9
    assert recipe["severity"] == 3
    assert recipe["seed"] == 7
    labels = small_mnist.train_labels
    header = bytes([0, 0, 8, 1]) + len(labels).to_bytes(4, "big")
    assert recipe["md5 train-labels-idx1-ubyte"] == hashlib.md5(header + labels.tobytes()).hexdigest()
    assert raw["attribute_names"] == ["digit", "color"]
    assert raw["class_names"] == [str(digit) for digit in range(10)]
    assert len(set(raw["bias_names"])) == 10


# Opening what is there, making what is not


def ensure(
    root: Path, mnist: Mnist | None, *, ratio: float = 0.1, severity: int = 4, seed: int = 0, force: bool = False
) -> tuple[StoredDataset, bool]:
    def load() -> Mnist:
        assert mnist is not None, "MNIST may not be read here"
        return mnist

    return ensure_with(root, load, ratio=ratio, severity=severity, seed=seed, force=force)


def ensure_with(
    root: Path,
    load: Callable[[], Mnist],
    *,
    ratio: float = 0.1,
    severity: int = 4,
    seed: int = 0,
    force: bool = False,
) -> tuple[StoredDataset, bool]:
    config = ColoredMnistConfig(name="coloredmnist", root=str(root), ratio=ratio, severity=severity, seed=seed)
    return common.ensure(colored_mnist_recipe(config, load), force=force)


@pytest.mark.parametrize(
    ("ratio", "name"), [(0.005, "0.005"), (0.01, "0.01"), (0.050, "0.05"), (1e-5, "1e-05"), (np.float64(0.2), "0.2")]
)
def test_folder_name(ratio: float, name: str) -> None:
    assert colored_mnist_folder(Path("data"), ratio, 4) == Path("data") / f"ColoredMNIST-Skewed{name}-Severity4"


def test_made_once_then_opened(small_mnist: Mnist, tmp_path: Path) -> None:
    dataset, made = ensure(tmp_path, small_mnist)
    assert made
    assert dataset.path == tmp_path / "ColoredMNIST-Skewed0.1-Severity4"
    again, made = ensure(tmp_path, None)
    assert not made
    assert again.digest == dataset.digest
    _, made = ensure(tmp_path, small_mnist, ratio=0.2)
    assert made
    assert len(list(tmp_path.iterdir())) == 2


def test_other_settings_are_refused_without_force(small_mnist: Mnist, tmp_path: Path) -> None:
    dataset, _ = ensure(tmp_path, small_mnist, seed=1)
    before = files(dataset.path)
    with pytest.raises(DataError) as error:
        ensure(tmp_path, None, seed=2)
    assert "seed 1, asked for 2" in error.value.what
    assert "ratio" not in error.value.what
    assert str(dataset.path) in error.value.what
    assert error.value.fix.startswith("To train on it as it is: `--set dataset.seed=1`. ")
    assert "--force" in error.value.fix
    assert "--data-root" in error.value.fix
    assert files(dataset.path) == before
    forced, made = ensure(tmp_path, small_mnist, seed=2, force=True)
    assert made
    assert forced.digest != dataset.digest
    assert ensure(tmp_path, None, seed=2)[0].digest == forced.digest


def test_renamed_folder_is_noticed(small_mnist: Mnist, tmp_path: Path) -> None:
    ensure(tmp_path, small_mnist, ratio=0.2, seed=1)[0].path.rename(colored_mnist_folder(tmp_path, 0.1, 4))
    with pytest.raises(DataError, match=r"conflict_ratio 0\.2, asked for 0\.1; seed 1, asked for 0") as error:
        ensure(tmp_path, None, ratio=0.1)
    assert "train on it" not in error.value.fix, "no setting makes it the one that its name says"


def test_what_killed_processes_left_is_cleared_and_the_set_comes_back(small_mnist: Mnist, tmp_path: Path) -> None:
    dataset, _ = ensure(tmp_path, small_mnist)
    start = f".{dataset.path.name}.{platform.node()}.0123"
    dataset.path.rename(tmp_path / f"{start}.old")  # killed between the two renames
    (tmp_path / f"{start}.part").mkdir()
    again, made = ensure(tmp_path, None)
    assert not made
    assert again.digest == dataset.digest
    assert list(tmp_path.iterdir()) == [dataset.path]


def test_damaged_set_is_refused_then_forced(small_mnist: Mnist, tmp_path: Path) -> None:
    dataset, _ = ensure(tmp_path, small_mnist)
    (dataset.path / "train" / "images.npy").unlink()
    with pytest.raises(DataError, match=r"train/images\.npy is missing"):
        ensure(tmp_path, None)
    assert ensure(tmp_path, small_mnist, force=True)[0].digest == dataset.digest


def test_folder_of_another_tool_is_used_as_it_is(small_mnist: Mnist, tmp_path: Path) -> None:
    dataset, _ = ensure(tmp_path, small_mnist, seed=1)
    (dataset.path / MANIFEST).unlink()
    before = files(dataset.path)
    opened, made = ensure(tmp_path, None, seed=2)
    assert not made
    assert opened.manifest is None
    assert files(dataset.path) == before
    attrs = np.load(dataset.path / "valid" / "attrs.npy")
    attrs[attrs[:, 0] == 3, 1] = 0
    np.save(dataset.path / "valid" / "attrs.npy", attrs)
    with pytest.raises(DataError, match=r"no image in 9 of 100 \(target, bias\) groups: \(3, 1\)"):
        ensure(tmp_path, None)
    attrs[0, 1] = 10
    np.save(dataset.path / "valid" / "attrs.npy", attrs)
    with pytest.raises(DataError, match="bias label 10"):
        ensure(tmp_path, None)
    _, made = ensure(tmp_path, small_mnist, seed=2, force=True)
    assert made


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_is_never_replaced(tmp_path: Path, kind: str, force: bool) -> None:
    path = colored_mnist_folder(tmp_path, 0.1, 4)
    if kind == "folder":
        path.mkdir()
    mine = path if kind == "file" else path / "thesis.tex"
    mine.write_text("mine")
    with pytest.raises(DataError, match="not a data set folder"):
        ensure(tmp_path, None, force=force)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("same", [True, False])
def test_another_process_makes_it_meanwhile(small_mnist: Mnist, tmp_path: Path, same: bool) -> None:
    def load() -> Mnist:
        ensure(tmp_path, small_mnist, seed=0 if same else 1)
        return small_mnist

    if same:
        dataset, made = ensure_with(tmp_path, load)
        assert not made
        assert dataset.digest == open_dataset(dataset.path).digest
    else:
        with pytest.raises(DataError, match="seed 1, asked for 0"):
            ensure_with(tmp_path, load)


def test_failure_while_making_leaves_nothing(
    small_mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Mnist(
        small_mnist.train_images, small_mnist.train_labels + 1, small_mnist.test_images, small_mnist.test_labels
    )
    with pytest.raises(DataError, match="found 1 to 10"):
        ensure(tmp_path, bad)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("denetdm_cli.data.writer.SplitWriter.add", full)
    with pytest.raises(OSError, match="No space left"):
        ensure(tmp_path, small_mnist)
    assert list(tmp_path.iterdir()) == []


def test_large_sets_are_painted_chunk_by_chunk(
    small_mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(small_mnist, tmp_path / "whole").digest
    for chunk in (1, 7, 400):
        monkeypatch.setattr(coloredmnist, "_PAINT_CHUNK", chunk)
        assert make(small_mnist, tmp_path / str(chunk)).digest == whole

"""`denetdm make-data corruptedcifar10` from a small copy of CIFAR-10 in class folders."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli_support import call, contents, good, no_leftovers, plain, refused
from own_images import class_folders, paint
from PIL import Image

from denetdm_cli.cli.progress import DataReport
from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.data.raw import cifar10, frost
from denetdm_cli.data.store import open_dataset
from denetdm_cli.data.synthetic.corrupted_cifar10 import make_corrupted_cifar10


def folder(ratio: float, kind: int = 1, severity: int = 4) -> str:
    return f"CorruptedCIFAR10-Type{kind}-Skewed{ratio}-Severity{severity}"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test must not look for a network")

    monkeypatch.setattr(cifar10, "downloaded", refuse)
    monkeypatch.setattr(frost, "downloaded_wheel", refuse)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few images a class, of 32x32 pixels; enough for two in every group of the evaluation split."""
    counts = {"train": 10, "test": 20}
    return class_folders(tmp_path_factory.mktemp("cifar"), counts, side=32, classes=cifar10.CLASS_NAMES)


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """Files with the names of the frost textures and other bytes."""
    for number, (name, _) in enumerate(frost.TEXTURES):
        paint(tmp_path / "textures" / name, 0, 0, number, side=170)
    return tmp_path / "textures"


def test_several_ratios_at_once(source: Path, tmp_path: Path) -> None:
    words = ("make-data", "corruptedcifar10", "--type", 1, "--source", source, "--ratio", 0.1, "--ratio", 0.3)
    outcome = good(*words, "--preview", "sheet.png")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [folder(0.1), folder(0.3)]
    assert outcome.out.count("made now") == 2
    assert plain(outcome.out + outcome.err)
    assert "decoding 300 images" in outcome.err
    assert outcome.err.count("decoding") == 1, "the raw images are read once"
    assert no_leftovers(tmp_path)
    with Image.open("sheet.png") as sheet:
        assert sheet.format == "PNG"
    first, second = (open_dataset(tmp_path / "data" / folder(ratio)) for ratio in (0.1, 0.3))
    assert first.digest in outcome.out
    assert second.digest in outcome.out
    assert first.class_names == cifar10.CLASS_NAMES
    assert first.bias_names[0] == "gaussian noise"
    assert np.array_equal(first.evaluation.images, second.evaluation.images), "one evaluation split for all ratios"
    assert (first.evaluation.group_counts(10, 10) == 2).all(), "twenty images of a class, two of each corruption"
    for dataset, conflicting in ((first, 10), (second, 30)):
        assert int((dataset.splits["train"].bias != dataset.splits["train"].target).sum()) == conflicting

    before = contents(tmp_path)
    again = good(*words)
    assert again.out.count("was there already") == 2
    assert "decoding" not in again.err
    assert contents(tmp_path) == before


def test_what_is_there_is_replaced_only_when_forced(source: Path, tmp_path: Path) -> None:
    words = ("make-data", "corruptedcifar10", "--type", 1, "--ratio", 0.1, "--source", source)
    good(*words)
    before = contents(tmp_path)
    outcome = call(*words, "--seed", 3)
    refused(3, outcome, folder(0.1), "made with other settings: seed 0, asked for 3", "--seed 3 --force", "--data-root")
    assert contents(tmp_path) == before, "refused, so nothing changes"
    training = ("--dataset", "corruptedcifar10", "--set", "dataset.type=1", "--ratio", 0.1, "--device", "cpu")
    refused(3, call("train-poe", *training, "--set", "dataset.seed=3"), "seed 0, asked for 3")
    assert contents(tmp_path) == before

    assert "made now" in good(*words, "--seed", 3, "--force").out
    after = contents(tmp_path / "data" / folder(0.1))
    manifest = json.loads(after["manifest.json"])
    assert manifest["recipe"]["seed"] == 3
    assert manifest["recipe"]["source"] == "class folders"
    assert after["train/images.npy"] != before[f"data/{folder(0.1)}/train/images.npy"], "the noise is another one"
    assert after["train/attrs.npy"] == before[f"data/{folder(0.1)}/train/attrs.npy"], "labels go by place, not by seed"
    good(*words, "--force")
    assert contents(tmp_path) == before, "the same command gives the same bytes"


def test_what_is_not_looked_at_is_said(source: Path, textures: Path, tmp_path: Path) -> None:
    config = load_config(preset_path("corruptedcifar10"), (), {"dataset.ratio": 0.1}).dataset
    drawings = [np.array(Image.open(textures / name)) for name, _ in frost.TEXTURES]
    raw = cifar10.load_cifar10(tmp_path, source, print)
    path = tmp_path / "data" / folder(0.1, kind=0)
    make_corrupted_cifar10(raw, drawings, path, config, replace=False, reporter=DataReport())
    words = ("make-data", "corruptedcifar10", "--ratio", 0.1, "--source", source)
    for more, said in (((), "--source was"), (("--frost", "nowhere"), "--source and --frost were")):
        outcome = good(*words, *more)
        assert outcome.err == f"warning: {path} exists already, so {said} not used; --force makes it again\n"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_copy_without_all_classes(tmp_path: Path, split: str) -> None:
    counts = {"train": 1, "test": 1}
    class_folders(tmp_path / "cifar", counts, side=32, classes=cifar10.CLASS_NAMES[:-1])
    other = "test" if split == "train" else "train"
    class_folders(tmp_path / "cifar", {other: 1}, side=32, classes=cifar10.CLASS_NAMES[-1:])
    before = contents(tmp_path)
    outcome = call("make-data", "corruptedcifar10", "--type", 1, "--source", "cifar")
    refused(3, outcome, "CIFAR-10 source cifar", f"there are no images in {split}/truck", "class folders")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--type", 2), ["dataset.type: 2 is not allowed", "0, 1"]),
        (("--type", -1), ["dataset.type: -1 is not allowed"]),
        (("--severity", 5), ["dataset.severity: 5 is not allowed", "at least 1 and at most 4"]),
        (("--severity", 0), ["dataset.severity: 0 is not allowed"]),
        (("--ratio", 0.1, "--ratio", 1.0), ["dataset.ratio: 1.0 is not allowed", "below 1"]),
        (("--size", 64), ["make-data corruptedcifar10 has no option --size"]),
    ],
)
def test_settings_that_are_refused(source: Path, tmp_path: Path, words: tuple[object, ...], said: list[str]) -> None:
    refused(2, call("make-data", "corruptedcifar10", "--source", source, *words), *said)
    assert list(tmp_path.iterdir()) == []


def test_severity_and_type_are_in_the_name(source: Path, tmp_path: Path) -> None:
    good("make-data", "corruptedcifar10", "--type", 1, "--ratio", 0.02, "--severity", 2, "--source", source)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [folder(0.02, severity=2)]


@pytest.mark.parametrize("given", ["--frost", "in the data root"])
def test_other_textures_are_refused(
    source: Path, textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    words: tuple[object, ...] = ("make-data", "corruptedcifar10", "--type", 0, "--source", source, "--ratio", 0.1)
    if given == "--frost":
        before = contents(tmp_path)
        said = ["frost1.png is damaged or another file: SHA-256", "imagecorruptions 1.1.2"]
        refused(3, call(*words, "--frost", textures), "Frost textures", textures, *said)
        assert contents(tmp_path) == before
        refused(3, call(*words, "--frost", "nowhere"), "Frost textures nowhere", "no such file")
    else:
        (tmp_path / "data").mkdir()
        textures.rename(tmp_path / "data" / "frost")
        before = contents(tmp_path)

        def offline(*_: object, **__: object) -> None:
            raise frost.UnusableError("pip found no network")

        monkeypatch.setattr(frost, "downloaded_wheel", offline)
        said = ["The frost textures", "frost1.png is damaged or another file", "pip found no network", "--frost WHEEL"]
        refused(5, call(*words), *said)
        assert contents(tmp_path) == before, "what is there is not ours to delete"
    assert not (tmp_path / "data" / folder(0.1, kind=0)).exists()
    assert no_leftovers(tmp_path)


def test_without_the_images_and_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise cifar10.UnusableError("no network")

    monkeypatch.setattr(cifar10, "downloaded", offline)
    for command in (["make-data", "corruptedcifar10"], ["train-poe", "--dataset", "corruptedcifar10"]):
        options = ["--type", "1"] if command[0] == "make-data" else ["--set", "dataset.type=1"]
        refused(5, call(*command, *options), "CIFAR-10", "no network", "cifar-10-python.tar.gz", "--source FILE")
    assert not list(tmp_path.rglob("*.npy"))
    assert no_leftovers(tmp_path)


@pytest.mark.slow
def test_training_on_it(source: Path, tmp_path: Path) -> None:
    good("make-data", "corruptedcifar10", "--type", 1, "--ratio", 0.1, "--source", source)
    words = ["--set", "dataset.type=1", "--ratio", 0.1, "--device", "cpu", "--epochs", 1, "--batch-size", 50]
    good("train-poe", "--dataset", "corruptedcifar10", *words, "--set", "model.deep.depth=8")
    run = tmp_path / "runs" / folder(0.1) / "seed0"
    target = ("--set", "model.target={name: cnn, depth: 3, width: 64}")
    assert "unbiased*" in good("distill", run, "--epochs", 1, "--batch-size", 50, *target).out
    good("evaluate", run)


def test_group_tables_name_every_class(source: Path, tmp_path: Path) -> None:
    """Ten corruptions with long names leave little room; what a row is about must not give way."""
    made = good("make-data", "corruptedcifar10", "--type", 1, "--ratio", 0.1, "--source", source).out
    assert "images by group" not in made, "what is made has the counts of its recipe"
    words = ["--set", "dataset.type=1", "--ratio", 0.1, "--device", "cpu", "--epochs", 1, "--batch-size", 50]
    mlps = [
        word for name in ("shallow", "deep") for word in ("--set", f"model.{name}={{name: mlp, depth: 3, width: 64}}")
    ]
    good("train-poe", "--dataset", "corruptedcifar10", *words, *mlps)
    counted = good("validate", tmp_path / "data" / folder(0.1)).out.partition("images by group")[2]
    judged = good("evaluate", tmp_path / "runs" / folder(0.1) / "seed0").out.partition("accuracy by group")[2]
    for table in (counted, judged):
        named = [name for name in cifar10.CLASS_NAMES if f"\n {name[:4]}" in table]
        assert named == list(cifar10.CLASS_NAMES), table

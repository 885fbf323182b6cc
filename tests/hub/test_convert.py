import hashlib
import io
import json
import os
import pickle
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from official_reference import SIZES, Reference, images
from safetensors.torch import save_file
from torch import Tensor, nn

from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.hub.convert import convert_to_official, convert_to_ours
from denetdm_cli.hub.official import Official
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel
from denetdm_cli.models.state_dict import read_state_dict
from denetdm_cli.results.score import mean_and_std, score_all
from denetdm_cli.training import checkpoint
from denetdm_cli.utils.errors import CheckpointError, ConfigError

CPU = torch.device("cpu")
MNIST = Official("coloredmnist", "train-poe")


@pytest.fixture(scope="module")
def mnist() -> OrderedDict[str, Tensor]:
    return Reference("coloredmnist", "train-poe").state_dict()


@pytest.fixture
def th(tmp_path: Path, mnist: OrderedDict[str, Tensor]) -> Path:
    """Stage 1 of Colored MNIST as the official code saves it."""
    path = tmp_path / "debiased_model.th"
    torch.save(mnist, path)
    return path


@pytest.mark.parametrize("stage", ["train-poe", "distill"])
def test_group_accuracies_are_those_of_the_official_evaluation(tmp_path: Path, stage: str) -> None:
    reference, random = Reference("coloredmnist", stage), np.random.RandomState(0)
    attributes = np.stack([np.arange(600) % 10, np.arange(600) // 10 % 10], axis=1).astype(np.uint8)
    pixels = random.randint(0, 256, (600, 28, 28, 3)).astype(np.uint8)
    for split in ("train", "valid"):
        folder = tmp_path / "ColoredMNIST-Skewed0.01-Severity4" / split
        folder.mkdir(parents=True)
        np.save(folder / "images.npy", pixels)
        np.save(folder / "attrs.npy", attributes)
        (folder / "attr_names.pkl").write_bytes(pickle.dumps(["digit", "color"]))
    torch.save(reference.state_dict(), tmp_path / "a.th")
    convert_to_ours(tmp_path / "a.th", tmp_path / "a.safetensors")
    (score,) = score_all([tmp_path / "a.safetensors"], CPU, NotImplemented, data=folder.parent)

    weights = {"shallow": (1, 0), "target": (1, 0), "product": (1, 1), "deep": (0, 1)}
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    for name, metrics in score.metrics.items():
        with torch.inference_mode():
            right = reference(x, *weights[name]).argmax(1).numpy() == attributes[:, 0]
        table = np.zeros((10, 10))
        for target, bias in np.ndindex(10, 10):
            table[target, bias] = right[(attributes == [target, bias]).all(axis=1)].mean()
        diagonal = np.eye(10, dtype=bool)
        expected = {"unbiased": table, "aligned": table[diagonal], "conflicting": table[~diagonal]}
        assert {key: metrics[key] for key in expected} == pytest.approx({k: v.mean() for k, v in expected.items()})
        assert 0 < metrics["unbiased"] < 1
    assert score.part == "evaluation"

    trained_on = {**score.metadata["dataset"], "digest": "a" * 64}
    other = replace(score, path=tmp_path / "b.safetensors", metadata={**score.metadata, "dataset": trained_on})
    with pytest.raises(ConfigError) as refused:
        mean_and_std([score, other])
    assert refused.value.what.endswith("different training data: aaaaaaaaaaaaaaaa, unknown")


def test_what_a_converted_model_says_of_itself(tmp_path: Path, th: Path) -> None:
    out = tmp_path / "ours.safetensors"
    convert_to_ours(th, out, origin={"url": "https://example.org/x", "published_accuracy": None, "sha256": "no"})
    loaded = checkpoint.load_method(out, CPU)
    said = loaded.metadata
    digest = hashlib.sha256(th.read_bytes()).hexdigest()
    source = {k: v for k, v in said["source"].items() if k not in ("config", "converted_by")}
    assert source == {
        "url": "https://example.org/x",
        "published_accuracy": None,
        "file": "debiased_model.th",
        "sha256": digest,
    }
    assert [said[key] for key in ("epoch", "seed", "separation", "metrics", "device")] == [None] * 5
    assert "teacher" not in said
    assert said["start_weights"] == {}
    facts = said["dataset"]
    assert [facts[key] for key in ("path", "digest", "evaluation_digest", "recipe")] == [None] * 4
    assert facts["image_shape"] == [28, 28, 3]
    assert facts["class_names"] == list("0123456789")
    assert said["selection"] == {
        "rule": "paper",
        "teacher_rule": None,
        "metric": "shallow.conflicting",
        "selected_on": "evaluation",
        "picked_on": ["evaluation"],
        "reported_on": "evaluation",
        "selected_on_test_data": True,
        "used_bias_labels": True,
    }
    assert said["reported_metric"] == "unbiased"
    assert loaded.config == load_config(preset_path("coloredmnist"), ["selection=paper"])
    assert not re.search(r"/tmp|20\d\d-", json.dumps(said))


@pytest.mark.slow
def test_stage_2_of_bffhq_says_what_it_is(tmp_path: Path) -> None:
    torch.save(Reference("bffhq", "distill").state_dict(), tmp_path / "a.th")
    convert_to_ours(tmp_path / "a.th", tmp_path / "a.safetensors")
    loaded = checkpoint.load_method(tmp_path / "a.safetensors", CPU)
    said = loaded.metadata
    assert said["dataset"]["class_names"] == ["young", "old"]
    assert (said["dataset"]["evaluation_split"], said["dataset"]["own_valid_split"]) == ("test", True)
    assert said["dataset"]["image_shape"] == [224, 224, 3]
    assert (said["selection"]["metric"], said["selection"]["teacher_rule"]) == ("target.conflicting", "paper")
    assert said["teacher"] is None
    assert said["reported_metric"] == "conflicting"
    assert loaded.config.model.target.weights is None
    assert loaded.config.data == load_config(preset_path("bffhq")).data


def test_equal_files_give_equal_bytes(tmp_path: Path, th: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    convert_to_ours(th, one)
    convert_to_ours(th, two)
    assert one.read_bytes() == two.read_bytes()
    convert_to_official(one, tmp_path / "one.th")
    convert_to_official(two, tmp_path / "two.th")
    assert (tmp_path / "one.th").read_bytes() == (tmp_path / "two.th").read_bytes()


@pytest.mark.parametrize("old_format", [False, True])
def test_other_ways_to_save_a_state_dict(tmp_path: Path, mnist: OrderedDict[str, Tensor], old_format: bool) -> None:
    path = tmp_path / "a.th"
    for state in (
        dict(mnist),
        {"state_dict": mnist, "epoch": 3, "note": "best"},
        OrderedDict((f"module.{name}", tensor) for name, tensor in mnist.items()),
        {"state_dict": {f"module.{name}": nn.Parameter(tensor) for name, tensor in mnist.items()}},
    ):
        torch.save(state, path, _use_new_zipfile_serialization=not old_format)
        read = read_state_dict(path, "a model")
        assert list(read) == list(mnist)
        assert all(torch.equal(read[name], mnist[name]) for name in mnist)


def test_what_was_changed_is_said(tmp_path: Path, mnist: OrderedDict[str, Tensor]) -> None:
    path, out = tmp_path / "a.th", tmp_path / "a.safetensors"
    torch.save({name: tensor.half() for name, tensor in mnist.items()}, path)
    convert_to_ours(path, out)
    assert checkpoint.load(out)[1]["source"]["stored_as"] == "float16"
    cifar = Reference("corruptedcifar10", "train-poe").state_dict()
    torch.save({k: v for k, v in cifar.items() if not k.endswith("num_batches_tracked")}, path)
    convert_to_ours(path, out, force=True)
    assert checkpoint.load(out)[1]["source"]["num_batches_tracked"] == "not in the file; set to 0"
    assert "stored_as" not in checkpoint.load(out)[1]["source"]


def _add(path: Path, number: float) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({**state, "classifier.bias": state["classifier.bias"] + number}, path)


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path, th: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sub" / "ours.safetensors"
    convert_to_ours(th, out)
    first, time = out.read_bytes(), out.stat().st_mtime_ns
    monkeypatch.setattr("denetdm_cli.hub.convert.__version__", "99")
    assert convert_to_ours(th, out) == MNIST  # another version of the program makes no other model
    assert out.stat().st_mtime_ns == time
    for change in ({"origin": {"url": "another"}}, {}):
        if not change:
            _add(th, 1)
        with pytest.raises(CheckpointError, match="exists and holds something else"):
            convert_to_ours(th, out, **change)
        assert out.read_bytes() == first
    convert_to_ours(th, out, force=True)
    changed = out.read_bytes()
    assert changed != first

    back = tmp_path / "back.th"
    convert_to_official(out, back)
    time = back.stat().st_mtime_ns
    convert_to_official(out, back)
    assert back.stat().st_mtime_ns == time
    _add(back, 1)
    with pytest.raises(CheckpointError, match="exists and holds something else"):
        convert_to_official(out, back)
    convert_to_official(out, back, force=True)
    state = torch.load(back, weights_only=True)
    assert torch.equal(state["classifier.bias"], checkpoint.load(out)[0]["head.bias"])
    for other in (tmp_path / "text", tmp_path / "empty"):
        other.write_bytes(b"mine" if other.name == "text" else b"")
        for convert, source in ((convert_to_ours, th), (convert_to_official, out)):
            with pytest.raises(CheckpointError, match="exists and holds something else"):
                convert(source, other)


def test_no_destination_that_is_a_folder_or_the_file_itself(tmp_path: Path, th: Path) -> None:
    before = th.read_bytes()
    with pytest.raises(CheckpointError, match="is the file to convert"):
        convert_to_ours(th, th, force=True)
    assert th.read_bytes() == before
    with pytest.raises(CheckpointError, match="is a folder"):
        convert_to_ours(th, tmp_path, force=True)


def test_a_failed_write_leaves_nothing(tmp_path: Path, th: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tmp_path / "ours.safetensors"
    convert_to_ours(th, ours)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for convert, source in ((convert_to_ours, th), (convert_to_official, ours)):
        with pytest.raises(OSError, match="No space"):
            convert(source, tmp_path / "new")
        assert sorted(tmp_path.iterdir()) == [th, ours]


def _ours(path: Path, dataset: str, stage: str, *settings: str, classes: int = 10, size: int | None = None) -> Path:
    """A checkpoint as a run here leaves it, untrained."""
    config = load_config(preset_path(dataset), settings)
    side = size or SIZES.get(dataset, 224)
    build = ProductOfExperts if stage == "train-poe" else TargetModel
    model = build(config.model, (3, side, side), classes, seed=0)
    metadata = {
        "stage": stage,
        "epoch": 1,
        "seed": 0,
        "dataset": {
            "path": "x",
            "digest": "0",
            "evaluation_digest": "0",
            "image_shape": [side, side, 3],
            "class_names": [str(number) for number in range(classes)],
            "bias_names": [],
            "evaluation_split": "valid",
            "own_valid_split": False,
        },
        "selection": {
            "rule": "last",
            "metric": None,
            "teacher_rule": None,
            "selected_on": None,
            "picked_on": [],
            "reported_on": "evaluation",
            "selected_on_test_data": False,
        },
        "reported_metric": "unbiased",
        "versions": {},
        "config": config.model_dump(mode="json"),
    }
    checkpoint.save(path, model.state_dict(), metadata)
    return path


@pytest.mark.slow
def test_a_model_trained_here_goes_to_the_official_code(tmp_path: Path) -> None:
    settings = ["model.target.width=64", "train_poe.epochs=3", "seed=4", "dataset.ratio=0.05", "model.shallow.depth=3"]
    ours = _ours(tmp_path / "ours.safetensors", "corruptedcifar10", "distill", *settings)  # starts from ImageNet
    assert convert_to_official(ours, tmp_path / "a.th") == Official("corruptedcifar10", "distill")
    reference = Reference("corruptedcifar10", "distill")
    reference.load_state_dict(torch.load(tmp_path / "a.th", weights_only=True), strict=True)
    x = images(32)
    with torch.inference_mode():
        found = checkpoint.load_method(ours, CPU).method.predict_all(x)
        torch.testing.assert_close(found["target"], reference(x, 1, 0), rtol=1e-5, atol=1e-5)


def test_only_the_branches_in_the_file_must_be_official(tmp_path: Path) -> None:
    first = _ours(tmp_path / "1.safetensors", "coloredmnist", "train-poe", "model.target.depth=7")
    assert convert_to_official(first, tmp_path / "1.th") == Official("coloredmnist", "train-poe")
    second = _ours(tmp_path / "2.safetensors", "cmnist", "distill", "model.shallow.depth=4", size=28)
    assert convert_to_official(second, tmp_path / "2.th") == Official("coloredmnist", "distill")


@pytest.mark.parametrize(
    ("dataset", "stage", "settings", "more", "message"),
    [
        ("coloredmnist", "train-poe", ["model.deep.depth=7"], {}, r"stage 1 .*: model\.deep\.depth 7, official 5$"),
        ("coloredmnist", "distill", ["model.target.depth=4"], {}, r"stage 2 .*: model\.target\.depth 4, official 5$"),
        ("coloredmnist", "train-poe", [], {"size": 14}, r"image shape \(14, 14, 3\), official \(28, 28, 3\)$"),
        ("coloredmnist", "train-poe", [], {"classes": 6}, "number of classes 6, official 10$"),
        (
            "coloredmnist",
            "train-poe",
            ["data.mean=[0.5, 0.5, 0.5]", "data.std=[1.0, 1.0, 1.0]"],
            {},
            r"data\.mean \[0\.5, 0\.5, 0\.5\], official None; data\.std",
        ),
        (
            "corruptedcifar10",
            "train-poe",
            ["model.deep.depth=8", "model.shallow={name: cifar_resnet, depth: 14}"],
            {},
            r"corruptedcifar10, stage 1 .*model\.shallow\.name cifar_resnet, official cnn.*model\.deep\.depth 8",
        ),
        ("bar", "train-poe", [], {"classes": 6}, r"number of classes 6, official 10"),
    ],
)
def test_another_architecture_is_refused_with_what_differs(
    tmp_path: Path, dataset: str, stage: str, settings: list[str], more: dict[str, int], message: str
) -> None:
    ours = _ours(tmp_path / "ours.safetensors", dataset, stage, *settings, **more)
    with pytest.raises(CheckpointError) as caught:
        convert_to_official(ours, tmp_path / "a.th")
    assert re.search(message, caught.value.what)
    assert "denetdm export" in caught.value.fix
    assert list(tmp_path.iterdir()) == [ours]


def test_only_a_checkpoint_of_ours_goes_to_the_official_code(tmp_path: Path, th: Path) -> None:
    with pytest.raises(CheckpointError, match="PyTorch pickle") as caught:
        convert_to_official(th, tmp_path / "a.th")
    assert f"denetdm convert {th}" in caught.value.fix
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not written by denetdm"):
        convert_to_official(tmp_path / "a.safetensors", tmp_path / "a.th")
    assert not (tmp_path / "a.th").exists()


def test_unknown_facts_are_allowed_but_not_left_out(tmp_path: Path, th: Path) -> None:
    out = tmp_path / "ours.safetensors"
    convert_to_ours(th, out)
    tensors, metadata = checkpoint.load(out)
    for broken in ({k: v for k, v in metadata.items() if k != "seed"}, {**metadata, "epoch": "two"}):
        checkpoint.save(out, tensors, broken)
        with pytest.raises(CheckpointError, match=r"in its metadata, (seed|epoch)"):
            checkpoint.load_method(out, CPU)


def test_a_stream_of_bytes_is_enough(mnist: OrderedDict[str, Tensor], tmp_path: Path) -> None:
    """The name inside an archive is that of the file torch.save wrote to; any is taken."""
    buffer = io.BytesIO()
    torch.save(mnist, buffer)
    (tmp_path / "renamed").write_bytes(buffer.getvalue())
    assert convert_to_ours(tmp_path / "renamed", tmp_path / "out") == MNIST

"""Networks, batches and start weights that do not fit: refused before anything is written."""

import json
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from cli_support import Outcome, call, contents, good, plain, refused
from own_images import class_folders, tiny
from safetensors.torch import save_file
from torchvision.models import shufflenet_v2_x0_5

IMAGES = 20
"""Of the training split."""


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


@pytest.fixture(autouse=True)
def made(tmp_path: Path) -> Path:
    """Twenty training images of 16x16 pixels."""
    source = class_folders(tmp_path / "images", {"train": IMAGES // 2, "test": 5})
    good("make-data", "folder", "--source", source, "--size", 16)
    return tmp_path / "data" / "mine"


def branches(shallow: str = "", deep: str = "", target: str = "") -> list[str]:
    given = {"shallow": shallow, "deep": deep, "target": target}
    return [
        word
        for name, section in given.items()
        for word in ("--set", f"model.{name}={{{section or 'name: mlp, depth: 3, width: 64'}}}")
    ]


def stage_1(*more: object, networks: list[str] | None = None) -> Outcome:
    return call("train-poe", *tiny("mine", *more, networks=networks or branches()))


def stage_2(run: Path, *more: object) -> Outcome:
    return call("distill", run, "--epochs", 1, "--batch-size", 8, *more)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished stage 1."""
    assert stage_1("--epochs", 1).code == 0
    return tmp_path / "runs" / "mine" / "seed0"


class TestBranches:
    @pytest.mark.parametrize(
        ("networks", "said"),
        [
            (branches("name: mlp, depth: 3, width: 8"), "shallow 8, deep 64, target 64"),
            (branches(deep="name: resnet18, weights: null, width: 512"), "shallow 64, deep 512, target 64"),
            (branches(*["name: mlp, depth: 3, width: 32"] * 2, "name: cifar_resnet, depth: 8"), "target 64"),
        ],
    )
    def test_features_of_different_widths(self, tmp_path: Path, networks: list[str], said: str) -> None:
        refused(2, stage_1(networks=networks), "the same width", said)
        assert not (tmp_path / "runs").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("section", "words"),
        [
            ("name: resnet19, weights: null, width: 64", ["model.deep.name", "'resnet19'", "resnet18"]),
            ("name: vit_b_17, weights: null, width: 64", ["model.deep.name", "'vit_b_17'", "vit_b_16"]),
            ("name: transformer, width: 64", ["model.deep.name: 'transformer' is not allowed", "mlp", "resnet18"]),
            ("name: cifar_resnet, depth: 21", ["model.deep", "21 is no depth", "20"]),
            ("name: cnn, depth: 5, width: 64", ["model.deep.depth: 5 is not allowed", "3, 4"]),
        ],
    )
    def test_names_and_depths_that_there_are_not(self, tmp_path: Path, section: str, words: list[str]) -> None:
        refused(2, stage_1(networks=branches(deep=section)), *words)

    @pytest.mark.slow
    @pytest.mark.parametrize("depth", [3, 4])
    def test_a_cnn_takes_small_images(self, depth: int) -> None:
        section = f"name: cnn, depth: {depth}, width: 64"
        assert stage_1("--epochs", 1, networks=branches(section)).code == 0

    def test_a_target_that_there_is_not(self, run: Path) -> None:
        outcome = stage_2(run, "--set", "model.target={name: resnet19, weights: null, width: 64}")
        refused(2, outcome, "model.target.name", "resnet19")


class TestBatches:
    NORMALISED = "name: shufflenet_v2_x0_5, weights: null, width: 64"
    """Ends in maps of one pixel, for images of 16x16."""

    def test_larger_than_the_data(self, tmp_path: Path) -> None:
        outcome = stage_1("--batch-size", IMAGES + 1)
        refused(2, outcome, f"train_poe.batch_size: {IMAGES + 1}", f"{IMAGES} images", "--batch-size")
        assert not (tmp_path / "runs").exists()

    def test_larger_than_the_data_in_stage_2(self, run: Path) -> None:
        outcome = call("distill", run, "--epochs", 1, "--batch-size", IMAGES + 1)
        refused(2, outcome, f"distill.batch_size: {IMAGES + 1}", f"{IMAGES} images")
        assert not (run / "distill").exists()

    @pytest.mark.slow
    def test_a_last_batch_of_one_image(self, tmp_path: Path) -> None:
        options = ("--batch-size", IMAGES - 1, "--set", "train_poe.drop_last=false")
        normalised = branches(deep=self.NORMALISED)
        outcome = stage_1(*options, networks=normalised)
        words = (f"train_poe.batch_size: {IMAGES - 1} leaves a last batch of one", "model.deep (shufflenet_v2_x0_5)")
        refused(2, outcome, *words, "16x16 pixels to one", "drop_last=true")
        assert not (tmp_path / "runs").exists()
        for networks in (None, branches(deep="name: cifar_resnet, depth: 8"), branches(target=self.NORMALISED)):
            assert stage_1(*options, "--force", networks=networks).code == 0, "in these, one image does"
        assert stage_1("--batch-size", IMAGES - 1, "--force", networks=normalised).code == 0, "the one is left out"

    def test_a_last_batch_of_one_image_in_stage_2(self, run: Path) -> None:
        target = ("--set", f"model.target={{{self.NORMALISED}}}")
        words = ("--epochs", 1, "--batch-size", IMAGES - 1)
        refused(2, call("distill", run, *words, *target), "distill.batch_size", "--set distill.drop_last=true")
        assert not (run / "distill").exists()
        good("distill", run, *words, *target, "--set", "distill.drop_last=true")

    def test_one_image_a_batch(self) -> None:
        options = ("--batch-size", 1, "--epochs", 1)
        refused(
            2, stage_1(*options, networks=branches(self.NORMALISED)), "train_poe.batch_size: 1 makes batches of one"
        )
        assert stage_1(*options).code == 0

    @pytest.mark.parametrize("setting", ["random_crop_padding=-1", "random_resized_crop=[0.5]", "std=[1, 1, 0]"])
    def test_augmentation_that_there_is_not(self, tmp_path: Path, setting: str) -> None:
        outcome = call("train-poe", "--dataset", "folder", "--set", f"data.{setting}")
        refused(2, outcome, f"data.{setting.partition('=')[0]}")
        assert not (tmp_path / "runs").exists()

    def test_two_crops_at_once(self, tmp_path: Path) -> None:
        outcome = call("train-poe", "--dataset", "folder", "--set", "data.random_resized_crop=[0.5, 1]")
        refused(2, outcome, "random_crop_padding and random_resized_crop exclude each other")
        assert not (tmp_path / "runs").exists()


class TestStartWeights:
    DEEP = "name: shufflenet_v2_x0_5, weights: {}, width: 64"

    def test_imagenet_without_a_network(self, tmp_path: Path) -> None:
        networks = branches(deep=self.DEEP.format("imagenet"))
        words = ("ImageNet weights of shufflenet_v2_x0_5 (model.deep.weights)", "no network", ".pth")
        refused(5, stage_1(networks=networks), *words, "--set model.deep.weights=null")

    def test_imagenet_without_a_network_in_stage_2(self, run: Path, tmp_path: Path) -> None:
        target = ("--set", "model.target={name: shufflenet_v2_x0_5, weights: imagenet, width: 64}")
        refused(5, stage_2(run, *target), "(model.target.weights)", "--set model.target.weights=null")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, ["no file", "imagenet or null"]),
            (b"", ["is empty", "download it again"]),
            (b"PK\x03\x04nonsense", ["is cut short or damaged: its zip archive cannot be read", "download it again"]),
            (b"some words", ["is no file of weights", ".pth or .safetensors"]),
            (b"<!DOCTYPE html>", ["is a web page", "in a browser"]),
            ("folder", ["is a folder", ".pth or .safetensors"]),
            ("diverged", ["no finite number in conv1.1.bias"]),
            ("other", ["does not hold the tensors of shufflenet_v2_x0_5", "missing: conv1", "extra: conv.weight"]),
            ("pickle", ["holds more than tensors: it calls torch", "nothing in it was run", "model.state_dict()"]),
        ],
    )
    @pytest.mark.parametrize("ending", [".pth", ".safetensors"])
    def test_a_wrong_file(self, tmp_path: Path, content: object, words: list[str], ending: str) -> None:
        file = tmp_path / f"weights{ending}"
        if content == "other":
            tensors = {"conv.weight": torch.ones(3, 3)}
            save_file(tensors, file) if ending == ".safetensors" else torch.save(tensors, file)
        elif content == "diverged":
            state = shufflenet_v2_x0_5(weights=None).state_dict()
            state["conv1.1.bias"][0] = torch.nan
            save_file(state, file) if ending == ".safetensors" else torch.save(state, file)
        elif content == "pickle":
            torch.save(torch.nn.Linear(2, 2), file)
        elif content == "folder":
            file.mkdir()
        elif isinstance(content, bytes):
            file.write_bytes(content)
        outcome = stage_1(networks=branches(deep=self.DEEP.format(file)))
        refused(4, outcome, f"model.deep.weights: {'no file ' if content is None else ''}{file}", *words)
        assert plain(outcome.err)

    def test_a_network_that_starts_from_no_file(self) -> None:
        outcome = stage_1("--set", "model.deep.weights=imagenet")
        refused(2, outcome, "model.deep.weights: unknown key", "weights goes with a classifier of torchvision")

    @pytest.mark.slow
    def test_a_sound_file_is_named_in_the_results(self, tmp_path: Path) -> None:
        file = tmp_path / "weights.pth"
        torch.save(shufflenet_v2_x0_5(weights=None).state_dict(), file)
        networks = branches(deep=self.DEEP.format(file))
        assert stage_1("--epochs", 1, networks=networks).code == 0
        run = tmp_path / "runs" / "mine" / "seed0"
        assert (
            json.loads((run / "train-poe" / "results.json").read_text())["start_weights"]["deep"]["file"] == file.name
        )
        file.unlink()
        good("evaluate", run)
        assert stage_1("--epochs", 1, networks=networks).code == 0, "it is finished, so no file is looked for"


REFUSED = {
    "too small an image": (2, "name: alexnet, weights: null, width: 64"),
    "no such network": (2, "name: resnet19, weights: null, width: 64"),
    "no such file": (4, "name: shufflenet_v2_x0_5, weights: nowhere.pth, width: 64"),
    "no network to download from": (5, "name: shufflenet_v2_x0_5, weights: imagenet, width: 64"),
}


class TestNothingIsLeft:
    """What was refused before its first step is no run, and nothing of it is in the way of the mended command."""

    @pytest.mark.parametrize("kind", REFUSED)
    def test_of_stage_1(self, tmp_path: Path, kind: str) -> None:
        code, section = REFUSED[kind]
        before = contents(tmp_path)
        refused(code, stage_1(networks=branches(deep=section)))
        assert contents(tmp_path) == before, "what cannot be trained leaves no run folder behind"

    @pytest.mark.parametrize("kind", REFUSED)
    def test_of_stage_2(self, run: Path, tmp_path: Path, kind: str) -> None:
        code, section = REFUSED[kind]
        before = contents(tmp_path)
        refused(code, stage_2(run, "--set", f"model.target={{{section}}}"))
        assert contents(tmp_path) == before, "what cannot be trained leaves no run folder behind"

    @pytest.mark.parametrize("kind", REFUSED)
    def test_the_mended_command_of_stage_1_runs(self, kind: str) -> None:
        code, section = REFUSED[kind]
        refused(code, stage_1(networks=branches(deep=section)))
        outcome = stage_1()
        assert outcome.code == 0, outcome

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", REFUSED)
    def test_the_mended_command_of_stage_2_runs(self, run: Path, kind: str) -> None:
        code, section = REFUSED[kind]
        refused(code, stage_2(run, "--set", f"model.target={{{section}}}"))
        outcome = stage_2(run)
        assert outcome.code == 0, outcome

    def test_what_was_finished_stays_when_it_is_forced_in_vain(self, run: Path) -> None:
        before = contents(run)
        refused(2, stage_1("--force", networks=branches(deep=REFUSED["no such network"][1])))
        assert contents(run) == before, "a finished run is not given up for one that cannot begin"

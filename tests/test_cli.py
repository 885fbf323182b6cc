"""The commands as a user meets them: what they print, how they end, and what is on the disk afterwards."""

import contextlib
import csv
import errno
import gzip
import io
import json
import os
import pickle
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import Outcome, call, child, contents, good, no_leftovers, plain, refused
from PIL import Image
from safetensors.torch import save_file
from tests_support import glyph_mnist

from denetdm_cli import __version__, checkpoint, config, console
from denetdm_cli.data.coloredmnist import coloured_mnist_folder, make_coloured_mnist
from denetdm_cli.data.mnist import MNIST_FILES
from denetdm_cli.data.store import MANIFEST
from denetdm_cli.files import folder_lock
from denetdm_cli.methods.poe import ProductOfExpertsTraining
from denetdm_cli.stages import Began, EpochDone, Finished
from denetdm_cli.training import Progress

NAME = "ColoredMNIST-Skewed0.1-Severity4"
EPOCHS = 3


def models(folder: Path) -> dict[str, Any]:
    """What the checkpoints of a stage hold, but for the place of the run."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors, metadata = checkpoint.load(file)
        metadata["config"].pop("out", None)
        found[file.name] = ({name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, metadata)
    return found


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 200 training and 1,000 evaluation images of 18x18 pixels. Tests that change it copy it first."""
    root = tmp_path_factory.mktemp("shared") / "data"
    path = coloured_mnist_folder(root, 0.1, 4)
    make_coloured_mnist(glyph_mnist(200, 1000), path, ratio=0.1, severity=4, seed=0, replace=False)
    return root


@pytest.fixture(scope="session")
def train(data_root: Path) -> Callable[..., Outcome]:
    """Stage 1 in a few epochs, with more options."""
    options = ("--dataset", "coloredmnist", "--ratio", 0.1, "--device", "cpu", "--epochs", EPOCHS)

    def run(*more: object) -> Outcome:
        root = () if "--data-root" in more else ("--data-root", data_root)
        return call("train-poe", *options, *root, *more)

    return run


@pytest.fixture(scope="session")
def finished_run(data_root: Path, train: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with both stages. Tests that change it take `run`."""
    out = tmp_path_factory.mktemp("shared") / "runs"
    assert train("--out", out).code == 0
    good("distill", out / NAME / "seed0", "--epochs", 2)
    return out / NAME / "seed0"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run below `runs`, the place that `train` takes by default."""
    return Path(shutil.copytree(finished_run, tmp_path / "runs" / NAME / "seed0"))


@pytest.fixture
def data(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the data set."""
    return Path(shutil.copytree(data_root / NAME, tmp_path / "data" / NAME))


class TestProgram:
    def test_help_and_configs_answer_without_torch(self, tmp_path: Path) -> None:
        code = """
import contextlib, io, sys
from denetdm_cli.cli import main
for words in ("--help", "--version", "train-poe --help", "distill --help", "evaluate --help", "make-data --help",
              "configs ls", "configs show coloredmnist"):
    sys.argv = ["denetdm", *words.split()]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main()
    except SystemExit as end:
        assert not end.code, words
    assert out.getvalue().strip(), words
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "torchvision", "numpy", "PIL", "safetensors"}))
"""
        done = child("-c", code)
        assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)

    def test_a_mistake_ends_the_process_with_its_code(self) -> None:
        done = child("-m", "denetdm_cli", "train-poe", "--dataset", "colredmnist", "--ratio", 0.1)
        refused(2, Outcome(done.returncode, done.stdout, done.stderr), "'colredmnist'", "'coloredmnist'")
        assert plain(done.stderr)
        assert list(Path.cwd().iterdir()) == []

    def test_version(self) -> None:
        assert good("--version").out == f"denetdm {__version__}\n"

    def test_every_command_is_listed(self) -> None:
        out = good("--help").out
        assert all(name in out for name in ("make-data", "train-poe", "distill", "evaluate", "configs"))

    @pytest.mark.parametrize(
        "arguments",
        [
            ["train"],
            ["train-poe", "--data-set", "coloredmnist"],
            ["train-poe", "--dataset", "coloredmnist", "--ratio", "a lot"],
            ["train-poe", "--dataset", "coloredmnist", "--select", "best"],
            ["evaluate"],
            ["evaluate", "x", "--split", "all"],
            ["distill", "x", "--teacher", "me"],
        ],
    )
    def test_wrong_usage(self, arguments: list[str]) -> None:
        outcome = call(*arguments)
        assert outcome.code == 2
        assert outcome.out == ""
        assert "Usage: denetdm" in outcome.err
        assert plain(outcome.err)


class TestConfigs:
    def test_ls(self) -> None:
        assert good("configs", "ls").out.split() == config.preset_names()

    def test_show_prints_the_file(self) -> None:
        assert good("configs", "show", "coloredmnist").out == config.preset_path("coloredmnist").read_text("utf-8")

    def test_cp_gives_a_file_that_train_takes(self, data_root: Path, tmp_path: Path) -> None:
        outcome = good("configs", "cp", "coloredmnist", "my configs/mine.yaml")
        assert "train-poe --config 'my configs/mine.yaml'" in outcome.out
        copy = tmp_path / "my configs" / "mine.yaml"
        assert copy.read_bytes() == config.preset_path("coloredmnist").read_bytes()
        copy.write_text(copy.read_text("utf-8").replace("ratio: 0.01 ", "ratio: 0.1 "), "utf-8")
        good("train-poe", "--config", copy, "--data-root", data_root, "--epochs", 1, "--device", "cpu")
        assert (tmp_path / "runs" / NAME / "seed0" / "train-poe" / "results.json").is_file()

    def test_cp_into_a_folder(self, tmp_path: Path) -> None:
        good("configs", "cp", "coloredmnist", ".")
        assert (tmp_path / "coloredmnist.yaml").is_file()

    def test_cp_replaces_only_when_forced(self, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text("precious")
        refused(2, call("configs", "cp", "coloredmnist", "mine.yaml"), "mine.yaml exists", "--force")
        assert contents(tmp_path) == {"mine.yaml": b"precious"}
        good("configs", "cp", "coloredmnist", "mine.yaml", "--force")
        assert (tmp_path / "mine.yaml").read_bytes() == config.preset_path("coloredmnist").read_bytes()

    @pytest.mark.parametrize("command", ["show", "cp"])
    def test_an_unknown_name(self, tmp_path: Path, command: str) -> None:
        target = ["mine.yaml"] if command == "cp" else []
        refused(2, call("configs", command, "colormnist", *target), "'colormnist'", "'coloredmnist'", "configs ls")
        assert list(tmp_path.iterdir()) == []


class TestConfiguration:
    def test_options_reach_the_run_folder(self, train: Callable[..., Outcome], data_root: Path, tmp_path: Path) -> None:
        more = ("--seed", 3, "--batch-size", 50, "--select", "valid", "--epochs", 1)
        outcome = train(*more, "--set", "train_poe.learning_rate=2e-3", "--set", "model.deep.depth=4", "--out", "there")
        assert outcome.code == 0
        saved = config.load(tmp_path / "there" / NAME / "seed3" / "train-poe" / "config.yaml")
        changed = {
            key: value for key, value, _ in config.differences(saved, config.load(config.preset_path("coloredmnist")))
        }
        assert changed == {
            "dataset.ratio": 0.1,
            "dataset.root": str(data_root),
            "model.deep.depth": 4,
            "train_poe.epochs": 1,
            "train_poe.batch_size": 50,
            "train_poe.learning_rate": 2e-3,
            "selection": "valid",
            "seed": 3,
            "device": "cpu",
            "out": str(tmp_path / "there"),
        }
        assert "valid" in outcome.out

    def test_every_problem_comes_at_once(self, train: Callable[..., Outcome], tmp_path: Path) -> None:
        settings = ["model.deep.name=resnet", "train_poe.epoch=3", "distill.tau=.nan", "distill.drop_last=1"]
        outcome = train("--ratio", 1.5, "--seed", -1, "--device", "gpu", *(w for s in settings for w in ("--set", s)))
        refused(
            2,
            outcome,
            "8 problems in the configuration ",
            "dataset.ratio: 1.5 is not allowed; must be a finite number above 0 and below 1",
            "model.deep.weights: missing",
            "model.deep.depth: unknown key",
            "train_poe.epoch: unknown key (value 3); ",
            "did you mean 'train_poe.epochs'?",
            "distill.tau: nan is not allowed; must be a finite number above 0",
            "distill.drop_last: 1 is not allowed; must be true or false",
            "seed: -1 is not allowed; must be a whole number at least 0",
            "device: 'gpu' is not allowed; must be auto, cpu, cuda, cuda:N or mps",
            "denetdm configs show coloredmnist",
        )
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("ratio", ["0", "1", "-0.5", "2", "nan", "inf"])
    @pytest.mark.parametrize("command", ["train-poe", "make-data"])
    def test_a_ratio_outside_0_to_1(self, tmp_path: Path, command: str, ratio: str) -> None:
        name = ["coloredmnist"] if command == "make-data" else ["--dataset", "coloredmnist"]
        refused(2, call(command, *name, "--ratio", ratio), "dataset.ratio: ", "above 0 and below 1")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("given", [[], ["--dataset", "coloredmnist", "--config", "mine.yaml"]])
    def test_one_of_dataset_and_config(self, given: list[str]) -> None:
        refused(2, call("train-poe", *given), "either --dataset NAME or --config FILE", "coloredmnist")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (None, ["no configuration file mine.yaml", "--dataset NAME"]),
            ("seed: 1\n\tout: 2\n", ["mine.yaml, line 2, column 1", "Correct that line"]),
            ("seed: 1\nseed: 2\n", ["mine.yaml, line 2", "'seed' is given twice"]),
            ("", ["mine.yaml holds no mapping", "configs cp coloredmnist FILE"]),
            ("dataset: {name: coloredmnist}\n", ["mine.yaml:", "dataset.ratio: missing", "model: missing"]),
        ],
    )
    def test_a_file_that_cannot_be_used(self, tmp_path: Path, text: str | None, words: list[str]) -> None:
        if text is not None:
            (tmp_path / "mine.yaml").write_text(text)
        before = contents(tmp_path)
        refused(2, call("train-poe", "--config", "mine.yaml"), *words)
        assert contents(tmp_path) == before

    def test_a_device_that_is_not_there(self, train: Callable[..., Outcome], run: Path, tmp_path: Path) -> None:
        before = contents(tmp_path)
        for outcome in (
            train("--device", "cuda:99", "--out", "other"),
            call("distill", run, "--device", "cuda:99", "--out", "other"),
            call("evaluate", run, "--device", "cuda:99"),
            call("evaluate", run, "--device", "gpu"),
        ):
            refused(2, outcome, "device: '", "is not on this machine", "cpu", "--device auto")
        assert contents(tmp_path) == before

    def test_a_batch_larger_than_the_data(self, train: Callable[..., Outcome], tmp_path: Path) -> None:
        refused(2, train("--batch-size", 201), "train_poe.batch_size: 201", "200 images", "--batch-size")
        assert list(tmp_path.iterdir()) == []


class TestMakeData:
    def write_idx(self, folder: Path, change: Callable[[int, bytes], tuple[str, bytes]]) -> Path:
        """Four files that begin as those of MNIST do; `change` gives suffix and content of each."""
        folder.mkdir()
        for number, file in enumerate(MNIST_FILES):
            suffix, content = change(number, file.header + bytes(1000))
            (folder / f"{file.name}{suffix}").write_bytes(content)
        return folder

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda n, content: ("", content), ["train-images-idx3-ubyte", "is cut off"]),
            (lambda n, content: ("", content[:7]), ["train-images-idx3-ubyte", "is cut off"]),
            (lambda n, content: ("", b""), ["train-images-idx3-ubyte", "starts with nothing"]),
            (lambda n, content: (".gz", gzip.compress(content)[:-20]), ["train-images-idx3-ubyte.gz", "is cut off"]),
            (lambda n, content: (".gz", gzip.compress(content)[:20] + b"x" * 20), ["-ubyte.gz", "is damaged (gzip"]),
            (lambda n, content: ("", b"<html>" + content), ["train-images-idx3-ubyte", "is not the idx file"]),
            (lambda n, content: ("", content[:4] + b"\0\0\0\x05" + content[8:]), ["5x28x28", "60000x28x28"]),
            (lambda n, content: ("" if n else ".bak", content), ["has no train-images-idx3-ubyte"]),
        ],
    )
    def test_an_idx_file_that_is_not_whole(
        self, tmp_path: Path, change: Callable[[int, bytes], tuple[str, bytes]], words: list[str]
    ) -> None:
        source = self.write_idx(tmp_path / "mnist", change)
        before = contents(tmp_path)
        for command in (["make-data", "coloredmnist"], ["train-poe", "--dataset", "coloredmnist"]):
            refused(3, call(*command, "--source", source), f"MNIST source {source}", *words, "(each may end in .gz)")
        assert contents(tmp_path) == before
        assert no_leftovers(tmp_path)

    def test_a_source_that_is_not_there(self, tmp_path: Path) -> None:
        refused(3, call("make-data", "coloredmnist", "--source", "nowhere"), "source nowhere does not exist")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["colormnist", "mnist"])
    def test_an_unknown_data_set(self, name: str) -> None:
        refused(2, call("make-data", name), f"unknown data set or preset '{name}'", "coloredmnist")

    def test_what_is_there_is_shown_and_kept(self, data: Path, tmp_path: Path) -> None:
        before = contents(data)
        outcome = good("make-data", "coloredmnist", "--ratio", 0.1, "--preview", "sheet.png")
        assert "was there already" in outcome.out
        assert str(data.parent.name) in outcome.out
        assert "Digest " in outcome.out
        assert contents(data) == before
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.format == "PNG"

    def test_other_settings_are_refused(self, data: Path, train: Callable[..., Outcome]) -> None:
        before = contents(data)
        for outcome in (
            call("make-data", "coloredmnist", "--ratio", 0.1, "--seed", 7),
            train("--set", "dataset.seed=7", "--data-root", data.parent),
        ):
            refused(3, outcome, data.name, "made with other settings: seed 0, asked for 7", "--force")
        assert contents(data) == before


def like_lff(folder: Path, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """A folder as LfF's code writes it: no manifest, int64 labels."""
    for name, (images, attrs) in splits.items():
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "images.npy", images)
        np.save(folder / name / "attrs.npy", attrs.astype(np.int64))
    (folder / "attr_names.pkl").write_bytes(pickle.dumps(["digit", "color"]))
    return folder


def arrays(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        name: (np.load(folder / name / "images.npy"), np.load(folder / name / "attrs.npy"))
        for name in ("train", "valid")
    }


def _no_images(folder: Path) -> None:
    (folder / "train" / "images.npy").unlink()
    (folder / MANIFEST).touch()  # or nothing would say that this is a data set


def _cut(folder: Path) -> None:
    file = folder / "valid" / "images.npy"
    file.write_bytes(file.read_bytes()[:-1])


def _saved(split: str, file: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / split / f"{file}.npy"
        np.save(path, change(np.load(path)))

    return damage


def _without_group(attrs: np.ndarray) -> np.ndarray:
    attrs[(attrs == (3, 4)).all(axis=1)] = (3, 3)
    return attrs


DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no labels": (lambda folder: (folder / "valid" / "attrs.npy").unlink(), ["valid/attrs.npy is missing"]),
    "no evaluation split": (lambda folder: shutil.rmtree(folder / "valid"), ["has no folder valid or test"]),
    "cut short": (_cut, ["valid/images.npy is damaged"]),
    "grey": (_saved("train", "images", lambda a: a[..., 0]), ["train/images.npy: found uint8 of shape (200, 18, 18)"]),
    "floats": (_saved("valid", "images", lambda a: a / 255), ["valid/images.npy: found float64", "expected uint8"]),
    "objects": (_saved("valid", "attrs", lambda a: a.astype(object)), ["valid/attrs.npy is damaged"]),
    "three columns": (_saved("train", "attrs", lambda a: a[:, [0, 1, 1]]), ["train/attrs.npy", "shape (200, 3)"]),
    "too few labels": (_saved("train", "attrs", lambda a: a[:-1]), ["found labels of 199 images; expected 200"]),
    "label too high": (_saved("valid", "attrs", lambda a: a + 1), ["valid/attrs.npy: found", "label 10; expected"]),
    "label below 0": (_saved("train", "attrs", lambda a: a - 1), ["train/attrs.npy: found labels from -1"]),
    "other size": (_saved("train", "images", lambda a: a[:, 1:]), ["different sizes: train 17x18, valid 18x18"]),
}  # fmt: skip


class TestDataFolders:
    @pytest.fixture
    def lff(self, data_root: Path, tmp_path: Path) -> Path:
        return like_lff(tmp_path / "lff" / NAME, arrays(data_root / NAME))

    def test_one_of_lff_is_trained_and_evaluated_on(
        self, lff: Path, train: Callable[..., Outcome], finished_run: Path
    ) -> None:
        before = contents(lff)
        assert train("--data-root", lff.parent, "--epochs", 1).code == 0
        results = json.loads(good("evaluate", finished_run, "--data", lff, "--json").out)["results"]
        own = json.loads(good("evaluate", finished_run, "--json").out)["results"]
        assert results[0]["metrics"] == own[0]["metrics"]
        assert results[0]["evaluated_on"]["path"] == str(lff)
        assert contents(lff) == before

    @pytest.mark.parametrize("name", DAMAGES)
    def test_a_damaged_one_is_refused(
        self, lff: Path, tmp_path: Path, train: Callable[..., Outcome], finished_run: Path, name: str
    ) -> None:
        damage, words = DAMAGES[name]
        damage(lff)
        before = contents(tmp_path)
        refused(3, train("--data-root", lff.parent), *words)
        refused(3, call("evaluate", finished_run, "--data", lff, "--predictions", "p.csv"), *words)
        assert contents(tmp_path) == before

    def test_a_group_without_images_is_left_out_and_said_so(
        self, lff: Path, train: Callable[..., Outcome], finished_run: Path
    ) -> None:
        _saved("valid", "attrs", _without_group)(lff)
        refused(3, train("--data-root", lff.parent), "no image in 1 of 100", "(3, 4)")
        outcome = good("evaluate", finished_run, "--data", lff)
        assert "1 of 100 groups have no image here; no mean counts them." in outcome.out
        found = json.loads(good("evaluate", finished_run, "--data", lff, "--json").out)["results"][0]["metrics"][
            "target"
        ]
        assert found["groups"][3][4] is None
        shares = [share for row in found["groups"] for share in row if share is not None]
        assert found["unbiased"] == pytest.approx(sum(shares) / 99)

    def test_missing_images_are_refused(self, lff: Path, tmp_path: Path, finished_run: Path) -> None:
        _no_images(lff)
        refused(3, call("evaluate", finished_run, "--data", lff), "train/images.npy is missing")
        refused(3, call("evaluate", finished_run, "--data", tmp_path / "nowhere"), "nowhere does not exist")
        refused(3, call("evaluate", finished_run, "--data", lff / MANIFEST), "is a file, not a folder")

    def test_images_of_another_size_are_refused(self, data_root: Path, tmp_path: Path, finished_run: Path) -> None:
        small = {name: (images[:, 2:], attrs) for name, (images, attrs) in arrays(data_root / NAME).items()}
        folder = like_lff(tmp_path / "small", small)
        refused(3, call("evaluate", finished_run, "--data", folder), folder, "[16, 18, 3]", "[18, 18, 3]")

    @pytest.mark.parametrize("file", ["train/images.npy", "valid/attrs.npy"])
    def test_a_changed_byte_is_refused(self, data: Path, train: Callable[..., Outcome], file: str) -> None:
        content = bytearray((data / file).read_bytes())
        content[-1] ^= 1
        (data / file).write_bytes(content)
        before = contents(data)
        refused(3, train("--data-root", data.parent), file, "has changed since", "make-data")
        assert contents(data) == before
        assert not Path("runs").exists()

    def test_something_else_in_its_place_is_left_alone(self, tmp_path: Path, train: Callable[..., Outcome]) -> None:
        (tmp_path / "data" / NAME).mkdir(parents=True)
        (tmp_path / "data" / NAME / "thesis.txt").write_text("precious")
        before = contents(tmp_path)
        refused(3, train("--data-root", "data"), "is not a data set folder", "--data-root")
        assert contents(tmp_path) == before


class TestRunFolder:
    @pytest.mark.parametrize("again", [[], ["--resume"]])
    @pytest.mark.parametrize("stage", ["train-poe", "distill"])
    def test_a_finished_run_says_so(
        self, run: Path, train: Callable[..., Outcome], stage: str, again: list[str]
    ) -> None:
        before = contents(run)
        outcome = train(*again) if stage == "train-poe" else call("distill", run, "--epochs", 2, *again)
        assert outcome.code == 0
        assert f"{run / stage} is finished already; nothing was trained" in outcome.err
        assert "--force" in outcome.err
        assert "unbiased" in outcome.out
        after = contents(run)
        assert after == before

    def test_other_settings_are_refused(self, run: Path, train: Callable[..., Outcome]) -> None:
        before = contents(run)
        for resume in ([], ["--resume"]):
            outcome = train("--epochs", 9, "--set", "train_poe.weight_decay=0", *resume)
            refused(
                4,
                outcome,
                run / "train-poe",
                f"train_poe.epochs: {EPOCHS} there, 9 now",
                "train_poe.weight_decay: 0.001 there, 0.0 now",
                "--out",
                "--force",
            )
        refused(4, call("distill", run, "--epochs", 9), "distill.epochs: 2 there, 9 now", "--force")
        refused(4, train("--select", "valid"), "give --select to distill or evaluate")
        assert contents(run) == before

    def test_settings_of_stage_1_are_fixed_in_stage_2(self, run: Path) -> None:
        before = contents(run)
        outcome = call("distill", run, "--set", "model.deep.depth=4", "--set", "seed=5")
        refused(2, outcome, "model.deep.depth: 5 in stage 1, 4 now", "seed: 0 in stage 1, 5 now")
        assert contents(run) == before

    def test_force_starts_anew(self, run: Path, train: Callable[..., Outcome]) -> None:
        before = contents(run / "distill")
        assert train("--epochs", 1, "--force").code == 0
        assert config.load(run / "train-poe" / "config.yaml").train_poe.epochs == 1
        assert len((run / "train-poe" / "metrics.jsonl").read_text().splitlines()) == 1
        assert contents(run / "distill") == before

    def test_the_same_command_gives_the_same_bytes(self, run: Path, train: Callable[..., Outcome]) -> None:
        before = models(run / "train-poe")
        assert before.keys() == {"last.safetensors", "valid.safetensors", "paper.safetensors"}
        assert train("--force").code == 0
        assert models(run / "train-poe") == before

    def test_resume_and_force_exclude_each_other(self, run: Path, train: Callable[..., Outcome]) -> None:
        before = contents(run)
        refused(2, train("--resume", "--force", "--epochs", 9), "--resume", "--force")
        assert contents(run) == before

    def test_there_is_nothing_to_resume(self, tmp_path: Path, train: Callable[..., Outcome], run: Path) -> None:
        refused(4, train("--resume", "--out", "other"), f"nothing to resume in {tmp_path / 'other'}", "--resume")
        refused(4, call("distill", run, "--resume", "--select", "paper"), "nothing to resume in")
        assert not (tmp_path / "other").exists()

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path: Path, train: Callable[..., Outcome]) -> None:
        folder = tmp_path / "runs" / NAME / "seed0" / "train-poe"
        folder.mkdir(parents=True)
        (folder / "thesis.txt").write_text("precious")
        for more in ([], ["--force"]):
            refused(4, train(*more), f"{folder} exists and is not a run folder", "--out")
        assert contents(tmp_path) == {f"runs/{NAME}/seed0/train-poe/thesis.txt": b"precious"}

    def test_leftovers_of_a_killed_process_do_no_harm(self, tmp_path: Path, train: Callable[..., Outcome]) -> None:
        folder = tmp_path / "runs" / NAME / "seed0" / "train-poe"
        folder.mkdir(parents=True)
        (folder / ".config.yaml.abc.part").write_text("half")
        assert train("--epochs", 1).code == 0
        assert no_leftovers(tmp_path)

    @pytest.mark.parametrize("out", ["file", "file/below"])
    def test_an_out_that_is_no_folder(self, tmp_path: Path, train: Callable[..., Outcome], out: str) -> None:
        (tmp_path / "file").write_text("precious")
        refused(7, train("--out", out), tmp_path / "file", "give another one")
        assert contents(tmp_path) == {"file": b"precious"}

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"rules": {}}', '{"rules": 3}'])
    def test_damaged_results(self, run: Path, train: Callable[..., Outcome], text: str) -> None:
        (run / "train-poe" / "results.json").write_text(text)
        refused(4, train(), "results.json is damaged", "--force")

    def test_relative_folders_are_pinned(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(run / "train-poe")
        good("distill", ".", "--select", "valid", "--epochs", 1)
        assert sorted(path.name for path in run.iterdir()) == ["distill", "distill-from-valid", "train-poe"]
        assert not (run / "train-poe" / "distill-from-valid").exists()

    def test_distill_writes_where_out_says(self, finished_run: Path, tmp_path: Path) -> None:
        before = contents(finished_run)
        good("distill", finished_run, "--epochs", 1, "--out", "elsewhere")
        assert (tmp_path / "elsewhere" / NAME / "seed0" / "distill" / "results.json").is_file()
        assert contents(finished_run) == before


class TestDistillNeedsStage1:
    def test_no_run_folder(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for name in ("empty", "nowhere"):
            refused(4, call("distill", name), f"{tmp_path / name} holds no stage 1", "denetdm train-poe")
        assert list((tmp_path / "empty").iterdir()) == []
        assert not (tmp_path / "nowhere").exists()

    def test_only_stage_2(self, run: Path) -> None:
        shutil.rmtree(run / "train-poe")
        before = contents(run)
        for path in (run, run / "distill", run / "distill" / "last.safetensors"):
            refused(4, call("distill", path), "holds no stage 1", "denetdm train-poe")
        assert contents(run) == before

    def test_not_finished(self, run: Path) -> None:
        (run / "train-poe" / "results.json").unlink()
        shutil.rmtree(run / "distill")
        refused(4, call("distill", run), f"{run / 'train-poe'} is not finished", "--resume")
        assert not (run / "distill").exists()

    @pytest.mark.parametrize("keep", [0, 100, -1, None])
    def test_a_teacher_that_is_damaged_or_gone(self, run: Path, keep: int | None) -> None:
        path = run / "train-poe" / "last.safetensors"
        shutil.rmtree(run / "distill")
        if keep is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:keep])
        refused(4, call("distill", run), path)
        assert not (run / "distill").exists()

    def test_a_teacher_of_another_architecture(self, run: Path, train: Callable[..., Outcome], tmp_path: Path) -> None:
        narrow = [w for name in ("shallow", "deep", "target") for w in ("--set", f"model.{name}.width=50")]
        assert train(*narrow, "--out", "narrow", "--epochs", 1).code == 0
        shutil.rmtree(run / "distill")
        shutil.copy(tmp_path / "narrow" / NAME / "seed0" / "train-poe" / "last.safetensors", run / "train-poe")
        refused(4, call("distill", run), run / "train-poe" / "last.safetensors", "width")
        assert not (run / "distill").exists()

    def test_a_teacher_that_is_a_target_model(self, run: Path) -> None:
        shutil.copy(run / "distill" / "last.safetensors", run / "train-poe" / "last.safetensors")
        shutil.rmtree(run / "distill")
        refused(4, call("distill", run), "is not a stage-1 checkpoint", "train-poe")
        assert not (run / "distill").exists()


def rewritten(path: Path, tensors: dict[str, torch.Tensor | None], metadata: dict[str, Any] | None = None) -> Path:
    """The checkpoint with some tensors or metadata put in, or, where None, taken out."""
    old_tensors, old_metadata = checkpoint.load(path)
    new = {name: tensor for name, tensor in {**old_tensors, **tensors}.items() if tensor is not None}
    said = {key: value for key, value in {**old_metadata, **(metadata or {})}.items() if value is not None}
    save_file(new, path, metadata={"denetdm": json.dumps(said)})
    return path


class TestCheckpoints:
    @pytest.fixture
    def path(self, finished_run: Path, tmp_path: Path) -> Path:
        return Path(shutil.copy(finished_run / "train-poe" / "last.safetensors", tmp_path / "model.safetensors"))

    def is_refused(self, path: Path, *words: object) -> None:
        before = path.read_bytes()
        refused(4, call("evaluate", path, "--json", "--predictions", "p.csv"), path, *words)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("keep", [0, 3, 8, 200, 0.5, -1])
    def test_cut_short(self, path: Path, keep: float) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
        self.is_refused(path, "cut short or damaged", "Copy it again")

    def test_not_ours(self, path: Path) -> None:
        save_file({"weight": torch.ones(2)}, path)
        self.is_refused(path, "was not written by denetdm", "denetdm train-poe")
        path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
        self.is_refused(path, "damaged")

    @pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
    def test_a_pickle(self, path: Path, tmp_path: Path, kind: str) -> None:
        path.unlink()
        path = tmp_path / "model.th"
        state = {"state_dict": {"fc.weight": torch.ones(2)}}
        if kind == "pickle":
            path.write_bytes(pickle.dumps(state))
        else:
            torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
        self.is_refused(path, "PyTorch pickle", "was not opened", "save them as safetensors", "denetdm train-poe")

    def test_missing_and_extra_tensors(self, path: Path) -> None:
        rewritten(path, {"deep.layers.0.bias": None, "head.scale": torch.ones(1)})
        self.is_refused(path, "missing: deep.layers.0.bias", "extra: head.scale")

    def test_of_another_architecture(self, path: Path) -> None:
        rewritten(path, {"head.weight": torch.ones(10, 50)})
        self.is_refused(path, "head.weight is float32[10, 50], not float32[10, 100]")

    def test_that_says_another_architecture(self, path: Path) -> None:
        _, metadata = checkpoint.load(path)
        metadata["config"]["model"]["shallow"]["depth"] = 4
        rewritten(path, {}, metadata)
        self.is_refused(path, "missing: shallow.layers.2.bias, shallow.layers.2.weight")

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"config": None}, "config: "),
            ({"config": {"seed": 0}}, "model: missing"),
            ({"stage": "train-erm"}, "stage: "),
            ({"stage": None}, "stage: "),
            ({"selection": None}, "selection: "),
            ({"selection": {"rule": "last"}}, "selection.teacher_rule: "),
            ({"versions": 3}, "versions: "),
            ({"epoch": "last"}, "epoch: "),
            ({"dataset": {}}, "dataset.path: "),
            ({"dataset": {"image_shape": [18, -18, 3]}}, "dataset.image_shape.1: "),
        ],
    )
    def test_metadata_that_does_not_say_enough(self, path: Path, change: dict[str, Any], word: str) -> None:
        _, metadata = checkpoint.load(path)
        if "image_shape" in (change.get("dataset") or {}):
            change = {"dataset": {**metadata["dataset"], **change["dataset"]}}
        rewritten(path, {}, change)
        self.is_refused(path, "does not describe its model", word, "denetdm")

    def test_the_state_of_a_stopped_run(self, path: Path) -> None:
        checkpoint.save(path, checkpoint.load(path)[0], {"epoch": 3})
        self.is_refused(path, "does not describe its model", "last.safetensors")

    def test_of_another_data_set(self, finished_run: Path, tmp_path: Path) -> None:
        other = coloured_mnist_folder(tmp_path / "data", 0.1, 4)
        make_coloured_mnist(glyph_mnist(210, 1000), other, ratio=0.1, severity=4, seed=0, replace=False)
        before = contents(other)
        words = ("was trained on other data than", other.name, "--data-root")
        refused(4, call("evaluate", finished_run / "train-poe", "--data-root", "data"), *words, "--data DIR")
        refused(4, call("distill", finished_run, "--data-root", "data", "--out", "runs", "--epochs", 1), *words)
        assert contents(other) == before
        assert not Path("runs").exists()
        outcome = good("evaluate", finished_run / "train-poe", "--data", other, "--json")
        assert json.loads(outcome.out)["results"][0]["selected_on_these_images"] is False

    def test_that_is_not_there(self, finished_run: Path, tmp_path: Path) -> None:
        refused(4, call("evaluate", "gone.safetensors"), "no checkpoint file gone.safetensors")
        refused(4, call("evaluate", "gone"), "no checkpoint or run folder gone", ".safetensors")
        refused(4, call("evaluate", tmp_path), f"{tmp_path} holds no run")
        refused(
            4, call("evaluate", finished_run.parent), finished_run.parent, "several runs", f"Name them: {finished_run}"
        )

    def test_a_run_without_an_epoch(self, run: Path) -> None:
        (run / "train-poe" / "last.safetensors").unlink()
        refused(4, call("evaluate", run / "train-poe"), "holds no last.safetensors", "no epoch was completed")

    @pytest.mark.parametrize("damage", ["cut", "other"])
    def test_resume_from_a_damaged_state(self, run: Path, train: Callable[..., Outcome], damage: str) -> None:
        folder = run / "train-poe"
        (folder / "results.json").unlink()
        state = folder / "resume.safetensors"
        shutil.copy(folder / "last.safetensors", state)  # tensors of a model, not of a training
        if damage == "cut":
            state.write_bytes(state.read_bytes()[:1000])
        before = contents(run)
        refused(4, train("--resume"), state)
        after = contents(run)
        assert [name for name in before | after if before.get(name) != after.get(name)] == ["train-poe/config.yaml"]


class TestStops:
    """A training that is stopped loses nothing and goes on to the same bytes."""

    @pytest.fixture
    def stopped(self, tmp_path: Path, finished_run: Path, train: Callable[..., Outcome]) -> Iterator[Path]:
        """The folder of a stage 1 that a test stops; in the end it must go on to what an unstopped one reaches."""
        folder = tmp_path / "runs" / NAME / "seed0" / "train-poe"
        yield folder
        assert no_leftovers(tmp_path)
        outcome = train("--resume")
        assert outcome.code == 0, outcome
        assert models(folder) == models(finished_run / "train-poe")
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == EPOCHS

    def test_ctrl_c_while_data_are_made(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def pressed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("denetdm_cli.data.coloredmnist._paint", pressed)
        monkeypatch.setattr("denetdm_cli.data.mnist.load_mnist", lambda *_: glyph_mnist(100, 100))
        outcome = call("make-data", "coloredmnist")
        assert (outcome.code, outcome.out) == (130, "")
        assert "nothing is half-made" in outcome.err
        assert list((tmp_path / "data").glob("*")) == []

    def test_a_device_that_is_not_there_is_refused_before_data_are_made(self, tmp_path: Path) -> None:
        refused(2, call("train-poe", "--dataset", "coloredmnist", "--device", "cuda:99"), "cuda:99", "cpu")
        assert not (tmp_path / "data").exists()

    def test_completed_epochs_are_never_deleted_unasked(self, run: Path, train: Callable[..., Outcome]) -> None:
        folder = run / "train-poe"
        (folder / "results.json").unlink()
        before = contents(folder)
        for words in ([], ["--resume"]):
            refused(4, train(*words), "resume.safetensors is missing", "--force")
            assert contents(folder) == before
        (folder / "metrics.jsonl").write_bytes(b"\xff\n\n")
        (folder / "resume.safetensors").write_bytes((folder / "last.safetensors").read_bytes())
        refused(4, train("--resume"), "")

    def test_a_second_process_is_refused(self, run: Path, train: Callable[..., Outcome]) -> None:
        before = contents(run / "train-poe")
        with folder_lock(run / "train-poe") as free:
            assert free
            refused(4, train("--force"), "another process is at work")
        assert contents(run / "train-poe") == before
        assert train().code == 0

    def test_out_by_set_is_out(self, run: Path, tmp_path: Path) -> None:
        assert call("distill", run, "--set", "out=elsewhere", "--epochs", 1).code == 0
        assert (tmp_path / "elsewhere" / NAME / "seed0" / "distill" / "results.json").is_file()

    def test_ctrl_c(self, stopped: Path, train: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
        update = console._Lines.update

        def pressed(self: Any, event: Any) -> None:
            update(self, event)
            if getattr(event, "record", {}).get("epoch") == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(console._Lines, "update", pressed)
        outcome = train()
        monkeypatch.undo()
        monkeypatch.chdir(stopped.parents[3])
        assert outcome.code == 130
        assert "completed epochs are kept" in outcome.err
        assert re.search(r"denetdm train-poe --dataset coloredmnist .* --resume\n", outcome.err)
        assert outcome.out == ""
        before = contents(stopped)
        refused(4, train(), "was stopped before its end", "--resume", "--force")
        refused(4, train("--resume", "--epochs", 9), "other settings", "train_poe.epochs")
        refused(4, call("distill", stopped.parent), "is not finished")
        assert contents(stopped) == before
        good("evaluate", stopped, "--device", "cpu")

    @pytest.mark.parametrize("writes", [1, 3, 4, 7, 9, 12])
    def test_no_space(
        self, stopped: Path, train: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, writes: int
    ) -> None:
        fsync, count = os.fsync, 0

        def full(descriptor: int) -> None:
            nonlocal count
            count += 1
            if count > writes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            outcome = train()
        refused(7, outcome, str(stopped), "No space left on device", "Make room", "--resume")
        assert no_leftovers(stopped)
        assert not (stopped / "results.json").exists()
        if (stopped / "resume.safetensors").exists():
            good("evaluate", stopped, "--device", "cpu")

    def test_no_space_on_a_real_disk(self, train: Callable[..., Outcome], tmp_path: Path, finished_run: Path) -> None:
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("only root on Linux can mount a small disk")
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
        try:
            folder = disk / NAME / "seed0" / "train-poe"
            refused(7, train("--out", disk), folder, "No space left on device", "--resume")
            assert no_leftovers(disk)
            subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
            assert train("--out", disk, "--resume").code == 0
            assert models(folder) == models(finished_run / "train-poe")
        finally:
            subprocess.run(["umount", "-l", disk], check=True)

    def test_a_loss_that_is_not_finite(
        self, stopped: Path, train: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        losses, steps = ProductOfExpertsTraining.losses, 0

        def broken(self: Any, batch: Any) -> dict[str, torch.Tensor]:
            nonlocal steps
            steps += 1
            terms = losses(self, batch)
            return {name: term * float("nan") for name, term in terms.items()} if steps == 3 + 3 + 2 else terms

        with monkeypatch.context() as patch:
            patch.setattr(ProductOfExpertsTraining, "losses", broken)  # three steps an epoch
            refused(6, train(), "the loss 'poe' became nan in epoch 3, step 2", "learning rate", "--force")
        assert checkpoint.load(stopped / "last.safetensors")[1]["epoch"] == 2
        assert len((stopped / "metrics.jsonl").read_text().splitlines()) == 2
        assert not (stopped / "results.json").exists()
        good("evaluate", stopped, "--device", "cpu")

    def test_weights_that_break_in_the_last_step_are_not_kept(
        self, train: Callable[..., Outcome], tmp_path: Path
    ) -> None:
        # One step an epoch: its loss is finite, and the weights it leaves give none that is.
        refused(6, train("--set", "train_poe.learning_rate=1e30", "--batch-size", 200), "epoch")
        assert not list(tmp_path.rglob("last.safetensors"))

    def test_a_learning_rate_out_of_bounds(self, train: Callable[..., Outcome], tmp_path: Path) -> None:
        outcome = train("--set", "train_poe.learning_rate=1e30")
        refused(6, outcome, "the loss 'poe' became ", " in epoch 1, step ", "Lower the learning rate", "--force")
        folder = tmp_path / "runs" / NAME / "seed0" / "train-poe"
        assert contents(folder).keys() == {"config.yaml", "metrics.jsonl"}
        refused(4, train(), "train_poe.learning_rate: 1e+30 there, 0.001 now")
        assert train("--force").code == 0

    def test_a_signal_and_resume(self, data_root: Path, tmp_path: Path) -> None:
        command = ["train-poe", "--dataset", "coloredmnist", "--ratio", "0.1", "--device", "cpu", "--epochs", "25"]
        command += ["--data-root", str(data_root)]
        folder = tmp_path / "runs" / NAME / "seed0" / "train-poe"
        with subprocess.Popen(
            [sys.executable, "-m", "denetdm_cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            until = time.monotonic() + 50
            while not (folder / "resume.safetensors").exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.005)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=50)
        assert process.returncode == 130, err
        assert out == ""
        assert plain(err)
        assert "Traceback" not in err
        assert f"Go on with: denetdm {' '.join(command)} --resume\n" in err
        assert no_leftovers(tmp_path)
        done = len((folder / "metrics.jsonl").read_text().splitlines())
        assert 1 <= done < 25
        completed = checkpoint.load(folder / "resume.safetensors")[1]["epoch"]

        resumed = good(*command, "--resume")
        assert f"epochs {completed + 1} to 25" in resumed.err
        assert good(*command, "--out", "straight").code == 0
        straight = tmp_path / "straight" / NAME / "seed0" / "train-poe"
        assert models(folder) == models(straight)
        records = [(path / "metrics.jsonl").read_text().splitlines() for path in (folder, straight)]
        assert [{**json.loads(line), "seconds": 0} for line in records[0]] == [
            {**json.loads(line), "seconds": 0} for line in records[1]
        ]


class TestEvaluate:
    def test_needs_nothing_but_the_checkpoint(self, finished_run: Path, tmp_path: Path) -> None:
        for stage in ("train-poe", "distill"):
            results = json.loads((finished_run / stage / "results.json").read_text())
            for rule in ("last", "valid", "paper"):
                alone = shutil.copy(finished_run / stage / f"{rule}.safetensors", tmp_path / "alone.safetensors")
                document = json.loads(good("evaluate", alone, "--json", "--device", "cpu").out)
                assert document["results"][0]["metrics"] == results["rules"][rule]["metrics"]
                assert document["results"][0]["selection"]["rule"] == rule

    def test_json_is_all_that_is_on_stdout(self, finished_run: Path, data_root: Path) -> None:
        outcome = good("evaluate", finished_run, "--json", "--device", "cpu")
        document = json.loads(outcome.out)
        assert document.keys() == {"results", "summary"}
        (result,) = document["results"]
        assert result["checkpoint"] == str(finished_run / "distill" / "last.safetensors")
        assert (result["stage"], result["epoch"], result["seed"], result["device"]) == ("distill", 2, 0, "cpu")
        assert result["evaluated_on"]["split"] == "evaluation"
        assert result["evaluated_on"]["images"] == 1000
        assert result["evaluated_on"]["path"] == str(data_root / NAME)
        assert result["versions"]["denetdm"] == __version__
        assert document["summary"]["target"]["unbiased"] == {
            "mean": result["metrics"]["target"]["unbiased"],
            "std": None,
        }

    @pytest.mark.parametrize(("split", "images"), [("evaluation", 1000), ("valid", 100), ("test", 900), ("train", 200)])
    def test_split(self, finished_run: Path, split: str, images: int) -> None:
        (result,) = json.loads(good("evaluate", finished_run, "--split", split, "--json").out)["results"]
        assert (result["evaluated_on"]["split"], result["evaluated_on"]["images"]) == (split, images)

    def test_select(self, finished_run: Path) -> None:
        (result,) = json.loads(good("evaluate", finished_run, "--select", "valid", "--json").out)["results"]
        assert Path(result["checkpoint"]).name == "valid.safetensors"
        assert result["evaluated_on"]["split"] == "test"
        assert result["selected_on_these_images"] is False
        (result,) = json.loads(good("evaluate", finished_run, "--select", "paper", "--json").out)["results"]
        assert result["selection"]["selected_on_test_data"] is True
        assert result["selected_on_these_images"] is True
        assert "SELECTED ON TEST DATA" in good("evaluate", finished_run, "--select", "paper").out
        path = finished_run / "distill" / "last.safetensors"
        refused(2, call("evaluate", path, "--select", "paper"), path, "'last'", "'paper'")

    @pytest.mark.parametrize(
        ("stage", "predictors"), [("train-poe", ["shallow", "deep", "product"]), ("distill", ["target"])]
    )
    def test_predictions(
        self, finished_run: Path, data_root: Path, tmp_path: Path, stage: str, predictors: list[str]
    ) -> None:
        outcome = good("evaluate", finished_run / stage, "--predictions", "new/p.csv", "--json")
        with (tmp_path / "new" / "p.csv").open(newline="") as file:
            header, *lines = csv.reader(file)
        assert len(set(header)) == len(header)
        rows = [dict(zip(header, line, strict=True)) for line in lines]
        attrs = np.load(data_root / NAME / "valid" / "attrs.npy")
        assert [(int(row["index"]), int(row["target"]), int(row["bias"])) for row in rows] == [
            (index, target, bias) for index, (target, bias) in enumerate(attrs.tolist())
        ]
        (result,) = json.loads(outcome.out)["results"]
        for name in predictors:
            right = statistics.fmean(row["target"] == row[f"predicted_{name}"] for row in rows)
            assert right == pytest.approx(result["metrics"][name]["accuracy"])
            assert all(0.1 <= float(row[f"confidence_{name}"]) <= 1 for row in rows)
        assert {row["checkpoint"] for row in rows} == {result["checkpoint"]}

    def test_predictions_that_cannot_be_written(self, finished_run: Path, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        refused(7, call("evaluate", finished_run, "--predictions", "folder", "--json"), "folder")
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    def test_several_give_mean_and_standard_deviation(
        self, finished_run: Path, train: Callable[..., Outcome], tmp_path: Path
    ) -> None:
        for seed in (1, 2):
            assert train("--seed", seed).code == 0
        runs = [finished_run / "train-poe", *(tmp_path / "runs" / NAME / f"seed{seed}" for seed in (1, 2))]
        document = json.loads(good("evaluate", *runs, "--json", "--predictions", "p.csv").out)
        assert [result["seed"] for result in document["results"]] == [0, 1, 2]
        for predictor, metrics in document["summary"].items():
            for metric, summary in metrics.items():
                values = [result["metrics"][predictor][metric] for result in document["results"]]
                assert summary["mean"] == pytest.approx(statistics.fmean(values))
                assert summary["std"] == pytest.approx(statistics.stdev(values))
        assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + 3 * 1000
        table = good("evaluate", *runs).out
        assert "3 checkpoints: mean (standard deviation)" in table
        assert all(f"seed {seed}," in table for seed in (0, 1, 2))

    def test_what_cannot_be_averaged(self, finished_run: Path) -> None:
        stages = [finished_run / "train-poe", finished_run / "distill"]
        refused(2, call("evaluate", *stages, "--json", "--predictions", "p.csv"), "different stage: distill, train-poe")
        rules = [finished_run / "distill" / f"{rule}.safetensors" for rule in ("last", "paper")]
        refused(2, call("evaluate", *rules), "different selection rule: last, paper", "--select")
        assert not Path("p.csv").exists()

    def test_a_folder_named_in_a_checkpoint_is_not_written_to(self, run: Path, tmp_path: Path) -> None:
        path = run / "distill" / "last.safetensors"
        tensors, metadata = checkpoint.load(path)
        metadata["config"]["dataset"]["root"] = str(tmp_path / "somebody")
        checkpoint.save(path, tensors, metadata)
        refused(3, call("evaluate", path), "somebody", "--data-root")
        assert not (tmp_path / "somebody").exists()

    def test_predictions_do_not_replace_a_file_of_another_kind(self, run: Path) -> None:
        config = run / "train-poe" / "config.yaml"
        before = config.read_bytes()
        refused(2, call("evaluate", run, "--predictions", config), "--predictions", ".csv")
        assert config.read_bytes() == before

    def test_which_of_several_distilled_stages(self, run: Path) -> None:
        def chosen(*words: str) -> str:
            return str(json.loads(good("evaluate", run, "--json", *words).out)["results"][0]["checkpoint"])

        shutil.copytree(run / "distill", run / "distill-from-valid")
        assert chosen() == str(run / "distill" / "last.safetensors")
        assert chosen("--select", "valid") == str(run / "distill-from-valid" / "valid.safetensors")
        shutil.copytree(run / "distill", run / "distill-from-paper")
        shutil.rmtree(run / "distill")
        refused(4, call("evaluate", run), "several stages", run / "distill-from-paper")

    def test_what_was_trained_otherwise_has_no_mean(
        self, finished_run: Path, train: Callable[..., Outcome], tmp_path: Path
    ) -> None:
        assert train("--seed", 1, "--epochs", 1).code == 0
        other = tmp_path / "runs" / NAME / "seed1" / "train-poe"
        refused(2, call("evaluate", finished_run / "train-poe", other), "different train_poe.epochs")
        refused(2, call("evaluate", other, other / "last.safetensors"), "given twice")

    def test_images_that_picked_the_epoch_are_named(self, finished_run: Path, data_root: Path) -> None:
        def on_them(*words: object) -> bool:
            (result,) = json.loads(good("evaluate", finished_run / "train-poe", "--json", *words).out)["results"]
            return bool(result["selected_on_these_images"])

        assert on_them("--select", "paper", "--split", "valid")
        assert on_them("--select", "paper", "--split", "test")
        assert on_them("--select", "valid", "--split", "evaluation")
        assert on_them("--select", "paper", "--data", data_root / NAME)
        assert not on_them("--select", "valid", "--split", "test")
        assert not on_them("--select", "paper", "--split", "train")
        assert not on_them("--select", "last", "--split", "evaluation")

    def test_a_model_of_a_teacher_picked_on_test_data_says_so(self, run: Path) -> None:
        assert "SELECTED ON TEST DATA" in good("distill", run, "--select", "paper").out
        last = run / "distill-from-paper" / "last.safetensors"
        (result,) = json.loads(good("evaluate", last, "--json").out)["results"]
        said = result["selection"]
        assert (said["rule"], said["teacher_rule"], said["selected_on_test_data"]) == ("last", "paper", True)
        assert said["used_bias_labels"]
        assert result["selected_on_these_images"]
        table = good("evaluate", last).out
        assert "its teacher by the rule paper, SELECTED ON TEST DATA" in table
        assert "nothing selected" not in table
        refused(2, call("evaluate", last, run / "distill"), "different teacher: last, paper")

    def test_a_run_folder_with_a_dot_in_its_name(self, run: Path) -> None:
        good("evaluate", run.rename(run.parent / "seed0.old"))


class TestOutput:
    def test_pipes_get_plain_lines(
        self, train: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        outcome = train()
        lines = outcome.err.splitlines()
        assert f"{tmp_path}" in lines[1]
        assert lines[2].startswith(f"train-poe epoch 1/{EPOCHS}  loss ")
        assert lines[-2].startswith(f"train-poe epoch {EPOCHS}/{EPOCHS}  loss ")
        assert lines[-1].startswith("warning: the branches ")  # so few steps do not separate them
        assert all(word in lines[-2] for word in ("shallow ", "deep ", "product ", " images/s", " left"))
        assert "Next: denetdm distill runs/" in outcome.out
        distilled = good("distill", f"runs/{NAME}/seed0", "--epochs", 1)
        assert "Next: denetdm evaluate runs/" in distilled.out
        evaluated = good("evaluate", f"runs/{NAME}/seed0")
        assert evaluated.err == ""
        for text in (outcome.out, outcome.err, distilled.out, distilled.err, evaluated.out):
            assert text
            assert plain(text)

    def test_a_line_an_epoch_but_at_most_one_a_second(self, train: Callable[..., Outcome]) -> None:
        began = time.monotonic()
        outcome = train("--epochs", 12)
        told = re.findall(r"epoch (\d+)/12 ", outcome.err)
        assert (told[0], told[-1]) == ("1", "12")
        assert len(told) <= 3 + time.monotonic() - began

    @pytest.mark.parametrize("columns", [80, 100, 120])
    def test_a_terminal_gets_a_bar_that_fits(self, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.delenv("NO_COLOR", raising=False)
        metrics = {"conflicting": 0.987654, "aligned": 1.0}
        record = {
            "epoch": 100,
            "losses": {"total": 12.3456},
            "evaluation": {"shallow": metrics, "deep": metrics, "product": metrics},
            "images": 123456,
            "seconds": 1.0,
        }
        finished = Finished(Path("folder"), {}, already=False)
        events = [
            Began("train-poe", Path("folder"), 99, 100, 123456),
            Progress(99, 5, 2.5),
            EpochDone(record),
            finished,
        ]
        with contextlib.redirect_stderr(Terminal()) as screen:
            assert console.follow(iter(events), "denetdm again") is finished
        shown = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()))
        assert all(len(line) <= columns for line in shown)
        assert re.fullmatch(
            r"train-poe epoch 100/100 \S+ 100% loss 12\.3456 123,456 images/s [0-9:-]+ left *", shown[-3]
        )
        assert shown[-2].strip() == "conflicting/aligned % shallow 98.8/100.0 deep 98.8/100.0 product 98.8/100.0"

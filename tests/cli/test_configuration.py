"""Options, --set and files: what reaches a run, and what is refused before anything is done."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_support import NAME, Outcome, call, contents, refused

from denetdm_cli.config.load import differences, load_config, preset_path


class TestConfiguration:
    def test_options_reach_the_run_folder(self, train: Callable[..., Outcome], data_root: Path, tmp_path: Path) -> None:
        more = ("--seed", 3, "--batch-size", 50, "--select", "valid", "--epochs", 1)
        outcome = train(*more, "--set", "train_poe.learning_rate=2e-3", "--set", "model.deep.depth=4", "--out", "there")
        assert outcome.code == 0
        saved = load_config(tmp_path / "there" / NAME / "seed3" / "train-poe" / "config.yaml")
        changed = {key: value for key, value, _ in differences(saved, load_config(preset_path("coloredmnist")))}
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

    def test_every_problem_comes_at_once(self, tmp_path: Path) -> None:
        settings = ["model.deep.name=resnet", "train_poe.epoch=3", "distill.tau=.nan", "distill.drop_last=1"]
        words = ("--ratio", 1.5, "--seed", -1, "--device", "gpu", *(w for s in settings for w in ("--set", s)))
        outcome = call("train-poe", "--dataset", "coloredmnist", *words)
        refused(
            2,
            outcome,
            "7 problems in the configuration ",
            "dataset.ratio: 1.5 is not allowed; must be a finite number above 0 and below 1",
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
            ("seed: 1\n", ["mine.yaml:", "dataset: missing", "a section with a name"]),
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

    def test_a_command_computes_with_the_threads_of_the_run(self, train: Callable[..., Outcome], run: Path) -> None:
        before = torch.get_num_threads()
        try:
            for command in (lambda: train("--epochs", 1, "--out", "other"), lambda: call("evaluate", run)):
                torch.set_num_threads(2)
                assert command().code == 0
                assert torch.get_num_threads() == 1
        finally:
            torch.set_num_threads(before)

"""`denetdm evaluate` on Colored MNIST."""

import csv
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_support import NAME, Outcome, call, good, refused

from denetdm_cli import __version__
from denetdm_cli.training import checkpoint


class TestEvaluate:
    def test_needs_nothing_but_the_checkpoint(self, finished_run: Path, tmp_path: Path) -> None:
        for stage in ("train-poe", "distill"):
            results = json.loads((finished_run / stage / "results.json").read_text())
            for rule in ("last", "valid", "paper"):
                alone = shutil.copy(finished_run / stage / f"{rule}.safetensors", tmp_path / "alone.safetensors")
                document = json.loads(good("evaluate", alone, "--json", "--device", "cpu").out)
                # evaluate also says what the deep branch does beside the target
                found = document["results"][0]["metrics"]
                expected = results["rules"][rule]["metrics"]
                assert {name: found[name] for name in expected} == expected
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
        refused(2, call("evaluate", finished_run, "--predictions", "folder", "--json"), "folder is a folder")
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
        refused(2, call("evaluate", run, "--predictions", "p.xlsx"), "--predictions p.xlsx ends in .xlsx", ".csv")
        assert not Path("p.xlsx").exists()

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

    def test_settings_of_stage_2_make_no_difference_to_stage_1(
        self, finished_run: Path, train: Callable[..., Outcome], tmp_path: Path
    ) -> None:
        assert train("--seed", 1, "--set", "distill.tau=3").code == 0
        good("evaluate", finished_run / "train-poe", tmp_path / "runs" / NAME / "seed1" / "train-poe")

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

    def test_they_are_the_same_images_beside_other_training_images(self, finished_run: Path, data: Path) -> None:
        (data / "manifest.json").unlink()
        np.save(data / "train" / "images.npy", np.load(data / "train" / "images.npy")[::-1])
        words = ("--select", "paper", "--data", data, "--json")
        (result,) = json.loads(good("evaluate", finished_run / "train-poe", *words).out)["results"]
        assert result["evaluated_on"]["digest"] != result["trained_on"]["digest"]
        assert result["selected_on_these_images"] is True

    @pytest.mark.slow
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

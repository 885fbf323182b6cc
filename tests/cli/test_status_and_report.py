"""`denetdm status` and `denetdm report` on real runs, whole and broken."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import EPOCHS, NAME, STAMP, Outcome, call, child, contents, good, plain, refused
from run_folders import finished

from denetdm_cli.methods import METHODS
from denetdm_cli.utils.files import folder_lock


def stages(outcome: Outcome) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["run"], each["stage"]): each for each in json.loads(outcome.out)["stages"]}


class TestStatus:
    def test_a_finished_run(self, run: Path) -> None:
        before = contents(run)
        outcome = good("status")
        first, second = outcome.out.splitlines()[2:]
        results = json.loads((run / "distill" / "results.json").read_text())
        accuracy = 100 * results["rules"]["last"]["metrics"]["target"]["unbiased"]
        assert first.split()[:4] == [f"{NAME}/seed0", "train-poe", "done", f"{EPOCHS}/{EPOCHS}"]
        assert second.split()[:4] == [f"{NAME}/seed0", "distill", "done", "2/2"]
        assert second.endswith(f"target unbiased {accuracy:.2f} (rule last)")
        assert outcome.err == "2 done\n"
        assert plain(outcome.out)
        assert contents(run) == before

    def test_json(self, run: Path) -> None:
        found = stages(good("status", run, "--json"))[str(run), "train-poe"]
        results = json.loads((run / "train-poe" / "results.json").read_text())
        assert found["state"] == "done"
        assert found["path"] == str(run / "train-poe")
        assert (found["epoch"], found["epochs"], found["seconds_left"]) == (EPOCHS, EPOCHS, None)
        assert found["headline"] == {
            "predictor": "shallow",
            "metric": "unbiased",
            "value": results["rules"]["last"]["metrics"]["shallow"]["unbiased"],
            "epoch": EPOCHS,
            "rule": "last",
        }

    def test_one_bad_run_hides_no_other(self, run: Path, tmp_path: Path) -> None:
        runs = tmp_path / "runs" / NAME
        damage: dict[str, Callable[[Path], Any]] = {
            "seed1": lambda stage: (stage / "results.json").write_text("{"),
            "seed2": lambda stage: [(stage / name).unlink() for name in ("results.json", "config.yaml")],
            "seed3": lambda stage: [
                (stage / "results.json").unlink(),
                (stage / "metrics.jsonl").write_bytes(b"\xff\n"),
            ],
            "seed4": lambda stage: [shutil.rmtree(stage), stage.write_text("a file")],
        }
        for seed, break_it in damage.items():
            break_it(Path(shutil.copytree(run, runs / seed)) / "train-poe")
        outcome = good("status")
        assert outcome.err == "6 done, 2 failed, 1 stopped\n"
        assert outcome.out.count(" done ") == 6
        for seed in ("seed1", "seed2", "seed3"):
            assert f"{Path('runs', NAME, seed, 'train-poe')}: " in outcome.out

    def test_running_and_stopped(self, run: Path) -> None:
        folder = run / "train-poe"
        (folder / "results.json").unlink()
        with folder_lock(folder):
            found = stages(good("status", run, "--json"))[str(run), "train-poe"]
            assert (found["state"], found["epoch"], found["headline"]["rule"]) == ("running", EPOCHS, None)
            assert " 0 s " in good("status", run).out
        assert stages(good("status", run, "--json"))[str(run), "train-poe"]["state"] == "failed"

    def test_a_run_that_can_go_on(self, train: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
        from denetdm_cli.cli import progress

        def pressed(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(progress._Lines, "update", pressed)
            assert train().code == 130
        out = good("status").out
        assert f" stopped  1/{EPOCHS} " in out
        assert "needs 0 s" in out
        assert "(epoch 1)" in out

    def test_several_folders_are_named_as_typed_and_counted_once(self, run: Path) -> None:
        relative = Path("runs", NAME, "seed0")
        lines = good("status", "runs", relative).out.splitlines()[2:]
        assert [line.split()[0] for line in lines] == [str(relative)] * 2

    def test_a_name_with_control_characters_is_escaped(self, tmp_path: Path) -> None:
        runs = tmp_path / "a\x1b[31m\nb"
        stage = finished(runs, 0, 0.5)
        (stage / "results.json").unlink()
        out = good("status", runs.parent).out
        assert plain(out)
        assert "\N{REPLACEMENT CHARACTER}" not in out
        assert r"a\x1b[31m\nb" in out

    def test_quiet_leaves_the_table(self, tmp_path: Path) -> None:
        finished(tmp_path / "runs", 0, 0.5)
        outcome = good("status", "--quiet")
        assert outcome.out == good("status").out
        assert outcome.err == ""

    def test_nothing_there(self, tmp_path: Path) -> None:
        refused(4, call("status"), "runs does not exist")
        (tmp_path / "runs").mkdir()
        for words in ((), ("--quiet",)):
            outcome = good("status", *words)
            assert (outcome.out, outcome.err) == ("", "no run in runs\n")
        assert json.loads(good("status", "--json").out) == {"stages": []}


class TestAnotherMethod:
    """A method with one predictor and no teacher, of which neither command knows more than its results."""

    def test_status(self, tmp_path: Path) -> None:
        stage = finished(tmp_path / "runs", 0, 0.5, stage="erm")
        assert good("status").out.splitlines()[2].endswith("target unbiased 50.00 (rule last)")
        (stage / "results.json").unlink()
        assert f" 2/{METHODS['erm'].Settings().epochs} " in good("status").out

    def test_report(self, tmp_path: Path) -> None:
        for seed in (0, 1):
            finished(tmp_path / "runs", seed, 0.5, stage="erm")
        out = good("report", "runs").out
        assert out.splitlines()[0] == "coloredmnist, erm"
        assert "50.34 (0.16)" in out, "ERM in Table 1 of the paper"

    def test_a_real_run(self, data_root: Path, tmp_path: Path) -> None:
        options = ("--dataset", "coloredmnist", "--ratio", 0.1, "--device", "cpu", "--epochs", 1, "--batch-size", 64)
        good("train", "erm", *options, "--data-root", data_root)
        run = tmp_path / "runs" / NAME / "seed0"
        found = stages(good("status", "--json"))[f"{NAME}/seed0", "erm"]
        assert (found["state"], found["headline"]["predictor"]) == ("done", "target")
        (result,) = json.loads(good("evaluate", run, "--json").out)["results"]
        assert result["metrics"]["target"]["unbiased"] == pytest.approx(found["headline"]["value"])
        (group,) = json.loads(good("report", "runs", "--format", "json").out)["groups"]
        assert set(group["differing_settings"]) == {"erm.epochs", "erm.batch_size"}

    def test_settings_of_other_methods_make_no_difference(self, tmp_path: Path) -> None:
        finished(tmp_path / "a", 0, 0.5, stage="erm", settings=("distill.epochs=3", "model.deep.depth=4"))
        finished(tmp_path / "b", 1, 0.5, stage="erm")
        (group,) = json.loads(good("report", "a", "b", "--format", "json").out)["groups"]
        assert group["differing_settings"] == {}


class TestReport:
    @pytest.fixture
    def two_seeds(self, run: Path, train: Callable[..., Outcome]) -> Path:
        assert train("--seed", 1).code == 0
        good("distill", run.parent / "seed1", "--epochs", 2)
        return run.parent

    def test_real_runs(self, two_seeds: Path) -> None:
        document = json.loads(good("report", "runs", "--format", "json").out)
        stage_2, stage_1 = document["groups"]
        assert (stage_2["dataset"], stage_2["conflict_ratio"], stage_2["teacher_rule"]) == ("coloredmnist", 0.1, "last")
        assert stage_2["differing_settings"] == {
            "distill.epochs": {"value": 2, "preset": 100},
            "train_poe.epochs": {"value": EPOCHS, "preset": 100},
        }
        assert [run["path"] for run in stage_1["runs"]] == [str(two_seeds / f"seed{k}" / "train-poe") for k in (0, 1)]
        results = [json.loads((two_seeds / f"seed{k}" / "train-poe" / "results.json").read_text()) for k in (0, 1)]
        for figure in stage_1["figures"]:
            values = [
                100 * each["rules"][figure["rule"]]["metrics"][figure["predictor"]][figure["metric"]]
                for each in results
            ]
            assert figure["n"] == 2
            assert figure["mean"] == pytest.approx(np.mean(values))
            assert figure["std"] == pytest.approx(np.std(values, ddof=1))
        paper = [f["paper"] for f in stage_1["figures"] if (f["predictor"], f["metric"]) == ("shallow", "conflicting")]
        assert paper == [{"mean": 93.12, "std": None}] * 3

    def test_the_table(self, tmp_path: Path) -> None:
        for seed, value in ((0, 0.5), (1, 0.54), (2, 0.58)):
            finished(tmp_path / "runs", seed, value)
        outcome = good("report", "runs")
        assert outcome.err == ""
        assert outcome.out.splitlines()[0] == "coloredmnist, distill, teacher by rule last"
        row = outcome.out.splitlines()[4]
        figures = "54.00 (4.00) -31.22 55.00 (4.00) -30.22 56.00 (4.00)* -29.22 85.22 (0.76)"
        assert " ".join(row.split()) == f"1 % target unbiased 0-2 3 {figures}"
        assert "sample standard deviation (n - 1)" in outcome.out
        assert "* SELECTED ON TEST DATA" in outcome.out
        part = "measured on the evaluation split without the images that rule valid picks on"
        assert f"Rule valid: {part}; the others on all of it." in outcome.out
        finished(tmp_path / "from-valid", 0, 0.5, teacher="valid")
        assert f"Rule last, valid, paper: {part}." in good("report", "from-valid").out
        assert "preset" not in outcome.out

    def test_other_settings_are_marked(self, tmp_path: Path) -> None:
        finished(tmp_path / "runs", 0, 0.5, settings=("train_poe.epochs=3",))
        out = good("report", "runs").out
        assert out.splitlines()[0].endswith(", train_poe.epochs=3")
        assert "published, other settings" in out
        assert "NOT the settings of the preset: train_poe.epochs=3 (preset: 100)." in out

    def test_settings_are_shown_as_they_are_written(self, tmp_path: Path) -> None:
        settings = ("train_poe.drop_last=false", "data.random_resized_crop=[0.5, 1]")
        finished(tmp_path / "runs", 0, 0.5, settings=settings)
        out = good("report", "runs").out
        assert ", data.random_resized_crop=[0.5, 1.0], train_poe.drop_last=false\n" in out
        assert "data.random_resized_crop=[0.5, 1.0] (preset: not set); train_poe.drop_last=false (preset: true)." in out
        normalised = ("data.mean=null", "data.std=null")
        finished(tmp_path / "bar", 0, 0.5, preset="bar", settings=normalised)
        assert ", data.mean=null, data.std=null\n" in good("report", "bar").out

    @pytest.mark.parametrize("layout", ["markdown", "latex", "table"])
    def test_forms_for_people_hold_the_same(self, tmp_path: Path, layout: str) -> None:
        for seed, value in ((0, 0.5), (2, 0.54)):
            finished(tmp_path / "runs", seed, value, stage="train-poe")
        out = good("report", "runs", "--format", layout).out
        assert "0, 2" in out
        assert out.count("42.00 (2.83)") == 2, "of the shallow branch, conflicting and unbiased"
        assert out.count("83.17 (0.96)") == 1

    def test_csv(self, tmp_path: Path) -> None:
        finished(tmp_path / "runs", 0, 0.5)
        rows = list(csv.DictReader(io.StringIO(good("report", "runs", "--format", "csv").out)))
        assert len(rows) == 6 * 3
        (row,) = [row for row in rows if (row["metric"], row["rule"]) == ("unbiased", "paper")]
        assert float(row["mean"]) == pytest.approx(52)
        assert (row["std"], row["n"], row["seeds"]) == ("", "1", "0")
        assert (row["paper_mean"], row["selected_on_test_data"]) == ("85.22", "true")
        assert {row["rule"]: row["reported_on"] for row in rows} == {
            "last": "evaluation", "valid": "test", "paper": "evaluation",
        }  # fmt: skip
        assert float(row["difference"]) == pytest.approx(52 - 85.22)

    def test_unfinished_and_damaged_runs_are_left_out_and_named(self, tmp_path: Path) -> None:
        finished(tmp_path / "runs", 0, 0.5)
        stopped, damaged = finished(tmp_path / "runs", 1, 0.5), finished(tmp_path / "runs", 2, 0.5)
        (stopped / "results.json").unlink()
        (damaged / "results.json").write_text("{}")
        outcome = good("report", "runs", "--format", "json")
        document = json.loads(outcome.out)
        assert [each["seed"] for each in document["groups"][0]["runs"]] == [0]
        assert [each["path"] for each in document["left_out"]] == [str(stopped), str(damaged)]
        first, second = outcome.err.splitlines()
        assert first.startswith(f"warning: left out: {stopped.relative_to(tmp_path)} (resume.safetensors is missing")
        assert second.startswith(f"warning: left out: {damaged.relative_to(tmp_path)} (")
        with folder_lock(stopped):
            assert f"{stopped.relative_to(tmp_path)} (running, epoch 2 of 100)" in good("report", "runs").err

    @pytest.mark.slow
    def test_the_log_is_stamped_and_plain_and_quiet_keeps_warnings(self, tmp_path: Path) -> None:
        runs = tmp_path / "a\x1b[31m\nerror: forged"
        finished(runs, 0, 0.5)
        (finished(runs, 1, 0.5) / "results.json").unlink()
        outcome = good("report", runs, "--plots", "plots")
        assert all(STAMP.match(line) for line in outcome.log.splitlines())
        assert plain(outcome.log)
        assert [line.split(":")[0] for line in outcome.err.splitlines()] == ["warning", "pictures"]
        (line,) = good("report", runs, "--plots", "plots", "--quiet").err.splitlines()
        assert line.startswith("warning: left out: ")

    def test_nothing_finished(self, tmp_path: Path) -> None:
        (finished(tmp_path / "runs", 0, 0.5) / "results.json").unlink()
        refused(4, call("report", "runs"), "no run in runs that is finished", "denetdm status")
        refused(4, call("report", "elsewhere"), "elsewhere does not exist")
        assert call("report").code == 2

    def test_no_mean_over_different_data(self, tmp_path: Path) -> None:
        one = finished(tmp_path / "runs", 0, 0.5)
        two = finished(tmp_path / "runs", 1, 0.5, digest="1" * 64)
        refused(2, call("report", "runs"), one.relative_to(tmp_path), two.relative_to(tmp_path), "different data")

    @pytest.mark.slow
    def test_pictures(self, tmp_path: Path) -> None:
        finished(tmp_path / "runs", 0, 0.5)
        table = good("report", "runs").out
        outcome = good("report", "runs", "--plots", "plots")
        assert outcome.out == table
        assert outcome.err == "pictures: 6 files in plots\n"
        (tmp_path / "runs" / "coloredmnist-0.01" / "seed0" / "distill" / "metrics.jsonl").unlink()
        refused(4, call("report", "runs", "--plots", "plots"), "metrics.jsonl", "--plots")

    def test_pictures_without_matplotlib(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        finished(tmp_path / "runs", 0, 0.5)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        refused(2, call("report", "runs", "--plots", "plots"), "pip install 'denetdm[plots]'")
        assert not (tmp_path / "plots").exists()


def test_status_needs_no_torch(run: Path) -> None:
    code = """
import sys
from denetdm_cli.cli.app import app
sys.argv = ["denetdm", "status", "runs"]
app(standalone_mode=False)
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "numpy", "matplotlib"}))
"""
    done = child("-c", code)
    assert done.stdout.splitlines()[-1] == "[]", done

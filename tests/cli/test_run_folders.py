"""What `train-poe` and `distill` do with a run folder that is there, and what stage 2 needs of stage 1."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import EPOCHS, NAME, Outcome, call, contents, good, models, no_leftovers, refused

from denetdm_cli.config.load import load_config


class TestRunFolder:
    @pytest.mark.parametrize("again", [[], ["--resume", "must"]])
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
        for resume in ([], ["--resume", "must"]):
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
        refused(2, outcome, "model.deep.depth: 5 in train-poe, 4 now", "seed: 0 in train-poe, 5 now")
        assert contents(run) == before

    def test_force_starts_anew(self, run: Path, train: Callable[..., Outcome]) -> None:
        before = contents(run / "distill")
        assert train("--epochs", 1, "--force").code == 0
        assert load_config(run / "train-poe" / "config.yaml").train_poe.epochs == 1
        assert len((run / "train-poe" / "metrics.jsonl").read_text().splitlines()) == 1
        assert contents(run / "distill") == before

    def test_the_same_command_gives_the_same_bytes(self, run: Path, train: Callable[..., Outcome]) -> None:
        before = models(run / "train-poe")
        assert before.keys() == {"last.safetensors", "valid.safetensors", "paper.safetensors"}
        assert train("--force").code == 0
        assert models(run / "train-poe") == before

    def test_resume_and_force_exclude_each_other(self, run: Path, train: Callable[..., Outcome]) -> None:
        before = contents(run)
        refused(2, train("--resume", "must", "--force", "--epochs", 9), "--resume", "--force")
        assert contents(run) == before

    def test_there_is_nothing_to_resume(self, tmp_path: Path, train: Callable[..., Outcome], run: Path) -> None:
        refused(
            4, train("--resume", "must", "--out", "other"), f"nothing to resume in {tmp_path / 'other'}", "--resume"
        )
        refused(4, call("distill", run, "--resume", "must", "--select", "paper"), "nothing to resume in")
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
            refused(4, call("distill", name), f"{tmp_path / name} holds no stage train-poe", "denetdm train ")
        assert list((tmp_path / "empty").iterdir()) == []
        assert not (tmp_path / "nowhere").exists()

    def test_only_stage_2(self, run: Path) -> None:
        shutil.rmtree(run / "train-poe")
        before = contents(run)
        for path in (run, run / "distill", run / "distill" / "last.safetensors"):
            refused(4, call("distill", path), "holds no stage train-poe", "denetdm train ")
        assert contents(run) == before

    def test_not_finished(self, run: Path) -> None:
        (run / "train-poe" / "results.json").unlink()
        shutil.rmtree(run / "distill")
        refused(4, call("distill", run), f"{run / 'train-poe'} is not finished", "resumes it")
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
        refused(4, call("distill", run), "is a checkpoint of distill", "starts from train-poe")
        assert not (run / "distill").exists()

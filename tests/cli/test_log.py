"""What a job's log holds: time stamps, no control characters, and as much as --quiet or --verbose ask for."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import EPOCHS, NAME, STAMP, Outcome, call, good, plain, refused
from own_images import class_folders, tiny

from denetdm_cli.cli import progress
from denetdm_cli.training.events import StageFinished, StageStarted, StepProgress
from denetdm_cli.utils import log as logs


def stamped(log: str) -> bool:
    return all(STAMP.match(line) for line in log.splitlines())


class TestStamps:
    def test_every_line_of_a_training_has_one(self, train: Callable[..., Outcome]) -> None:
        outcome = train()
        assert len(outcome.log.splitlines()) == len(outcome.err.splitlines()) >= EPOCHS
        assert stamped(outcome.log)
        assert plain(outcome.log)
        assert not STAMP.search(outcome.out)

    def test_errors_and_warnings_can_be_found(self, train: Callable[..., Outcome]) -> None:
        log = call("train-poe", "--dataset", "coloredmnist", "--set", "seed=x", "--set", "no.such=1").log
        assert stamped(log)
        assert [line.split(" ", 1)[1].split(":")[0] for line in log.splitlines()] == [
            "error", "  seed", "  no", "what to do",
        ]  # fmt: skip
        assert " warning: the branches " in train("--epochs", 2).log

    def test_names_with_control_characters(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "a\x1b[31m\x9bb\nerror: forged", {"train": 8, "test": 4})
        out = tmp_path / "runs\x1b]0;x\x07"
        made = good("make-data", "folder", "--source", source, "--name", "mine", "--size", 16)
        checked = good("validate", source)
        trained = good("train-poe", *tiny("mine", "--out", out))
        lost = call("evaluate", source)
        wild = class_folders(tmp_path / "wild", {"train": 8, "test": 4}, classes=("cat\x1b[31m", "dog\nerror: forged"))
        unnamed = call("make-data", "folder", "--source", wild, "--name", "other")
        for outcome in (made, checked, trained, lost, unnamed):
            assert plain(outcome.out)
            assert plain(outcome.log)
            assert stamped(outcome.log)
            assert "\nerror: forged" not in outcome.err
        assert r"a\x1b[31m\x9bb" in checked.out
        assert r"runs\x1b]0;x\x07/mine" in trained.err
        refused(4, lost, r"a\x1b[31m\x9bb\nerror: forged")
        refused(3, unnamed, r"cat\x1b[31m, dog\nerror: forged")


class TestHowMuch:
    @pytest.mark.parametrize("word", ["--quiet", "-q"])
    def test_quiet_leaves_warnings_and_results(self, train: Callable[..., Outcome], word: str) -> None:
        outcome = train("--epochs", 2, word)
        assert [line.split(":")[0] for line in outcome.err.splitlines()] == ["warning"]
        assert "conflicting" in outcome.out
        assert "Next:" not in outcome.out
        assert train("--epochs", 2, word).err == outcome.err, "that it was done before is no warning"

    def test_before_the_command_and_after_it(self, data_root: Path) -> None:
        words = ("make-data", "coloredmnist", "--ratio", 0.1, "--data-root", data_root, "--preview", "sheet.png")
        assert good(*words).err == f"contact sheet of {NAME}: sheet.png\n"
        for quiet in (("-q", *words), (*words, "-q"), ("--quiet", *words, "--quiet")):
            assert good(*quiet).err == ""
        assert good("configs", "-q", "ls").out == good("configs", "ls", "-q").out == good("configs", "ls").out

    def test_quiet_shows_no_bar(self) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        finished = StageFinished(Path("folder"), {}, already=False)
        logs.choose(logs.Level.QUIET)
        try:
            with contextlib.redirect_stderr(Terminal()) as screen:
                began = StageStarted("train-poe", Path("folder"), 1, 1, 9)
                assert progress.follow(iter([began, StepProgress(1, 5, 2.5), finished]), "again") == [finished]
                report = progress.DataReport()
                report.advance("reading", 1, 2)
                report.close()
        finally:
            logs.reset()
        assert screen.getvalue() == ""

    def test_an_error_is_told_whatever_was_asked_for(self) -> None:
        refused(2, call("-q", "train-poe", "--dataset", "nothing"), "'nothing'")
        refused(2, call("-q", "configs", "ls", "-v"), "--quiet and --verbose exclude each other")

    def test_the_next_command_tells_what_is_usual(self, data_root: Path) -> None:
        call("-q", "configs", "ls")
        words = ("make-data", "coloredmnist", "--ratio", 0.1, "--data-root", data_root, "--preview", "sheet.png")
        assert good(*words).err != ""

    def test_images_left_out_are_a_warning(self, tmp_path: Path) -> None:
        class_folders(tmp_path / "images", {"train": 60, "test": 4})
        (tmp_path / "images" / "train" / "dog" / "3.png").write_bytes(b"no image")
        made = good("-q", "make-data", "folder", "--source", "images", "--name", "mine", "--size", 16)
        first, second = made.err.splitlines()
        assert first == "warning: 1 of 128 images cannot be read and are left out:"
        assert second.startswith("  train/dog/3.png: ")

    @pytest.mark.slow
    def test_verbose_tells_where_and_how(self, train: Callable[..., Outcome], data_root: Path) -> None:
        few, all_ = train("--epochs", 12), train("--epochs", 12, "--force", "--verbose")
        assert few.out == all_.out
        digest = good("make-data", "coloredmnist", "--ratio", 0.1, "--data-root", data_root).out.split("Digest ")[1]
        for word in ("device cpu, CPU threads: 1 of ", "torch ", f"set {digest.split()[0]}", "seed 0; ", "config.yaml"):
            assert word in all_.err
            assert word not in few.err
        assert [f"epoch {epoch}/12 " in all_.err for epoch in range(1, 13)] == [True] * 12
        for sample in ("train", "evaluation"):
            assert all_.err.count(f"separation on {sample} images: accuracy shallow 0.") == 12
        distilled = good("distill", f"runs/{NAME}/seed0", "--epochs", 1, "-v")
        assert "separation on" not in distilled.err
        assert "device cpu" in distilled.err
        assert "device cpu" in good("evaluate", f"runs/{NAME}/seed0", "-v").err

    def test_verbose_tells_where_a_file_could_not_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        words = ("configs", "cp", "coloredmnist", "file/mine.yaml")
        assert "Traceback" not in call(*words).err
        outcome = call(*words, "-v")
        assert outcome.code == call(*words).code == 7
        assert "Traceback (most recent call last):" in outcome.err
        assert stamped(outcome.log)

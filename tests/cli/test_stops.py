"""Trainings that are stopped: Ctrl-C, full disks, numbers that are not finite."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import (
    EPOCHS,
    NAME,
    Outcome,
    call,
    contents,
    figures,
    good,
    models,
    no_leftovers,
    plain,
    refused,
    signalled,
)
from tests_support import glyph_mnist

from denetdm_cli.cli import progress
from denetdm_cli.methods.denetdm.poe import TrainPoe
from denetdm_cli.training import checkpoint
from denetdm_cli.utils.files import folder_lock


class TestStops:
    """A training that is stopped loses nothing and goes on to the same bytes."""

    @pytest.fixture
    def stopped(self, tmp_path: Path, finished_run: Path, train: Callable[..., Outcome]) -> Iterator[Path]:
        """The folder of a stage 1 that a test stops; in the end it must go on to what an unstopped one reaches."""
        folder = tmp_path / "runs" / NAME / "seed0" / "train-poe"
        yield folder
        assert no_leftovers(tmp_path)
        outcome = train("--resume", "must")
        assert outcome.code == 0, outcome
        assert models(folder) == models(finished_run / "train-poe")
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == EPOCHS

    def test_ctrl_c_while_data_are_made(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def pressed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("denetdm_cli.data.synthetic.colored_mnist._paint", pressed)
        monkeypatch.setattr("denetdm_cli.data.raw.mnist.load_mnist", lambda *_: glyph_mnist(100, 100))
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
        for words in ([], ["--resume", "must"]):
            refused(4, train(*words), "resume.safetensors is missing", "--force")
            assert contents(folder) == before
        (folder / "metrics.jsonl").write_bytes(b"\xff\n\n")
        (folder / "resume.safetensors").write_bytes((folder / "last.safetensors").read_bytes())
        refused(4, train("--resume", "must"), "")

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
        update = progress._Lines.update

        def pressed(self: Any, event: Any) -> None:
            update(self, event)
            if getattr(event, "record", {}).get("epoch") == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(progress._Lines, "update", pressed)
        outcome = train()
        monkeypatch.undo()
        monkeypatch.chdir(stopped.parents[3])
        assert outcome.code == 130
        assert "the training state is saved" in outcome.err
        assert re.search(r"Resume with: denetdm train-poe --dataset coloredmnist .*\n", outcome.err)
        assert outcome.out == ""
        before = contents(stopped)
        refused(4, train("--resume", "never"), "was stopped before its end", "--resume never", "--force")
        refused(4, train("--epochs", 9), "other settings", "train_poe.epochs")
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
        refused(7, outcome, str(stopped), "No space left on device", "Make room", "the same command resumes")
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
            refused(7, train("--out", disk), folder, "No space left on device", "the same command resumes")
            assert no_leftovers(disk)
            subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
            assert train("--out", disk, "--resume", "must").code == 0
            assert models(folder) == models(finished_run / "train-poe")
        finally:
            subprocess.run(["umount", "-l", disk], check=True)

    def test_a_loss_that_is_not_finite(
        self, stopped: Path, train: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        losses, steps = TrainPoe.losses, 0

        def broken(self: Any, batch: Any) -> dict[str, torch.Tensor]:
            nonlocal steps
            steps += 1
            terms = losses(self, batch)
            return {name: term * float("nan") for name, term in terms.items()} if steps == 3 + 3 + 2 else terms

        with monkeypatch.context() as patch:
            patch.setattr(TrainPoe, "losses", broken)  # three steps an epoch
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
        refused(
            6,
            outcome,
            "the loss 'poe' became ",
            " in epoch 1, step ",
            "Lower the learning rate",
            "train_poe.learning_rate",
            "--force",
        )
        folder = tmp_path / "runs" / NAME / "seed0" / "train-poe"
        assert contents(folder).keys() == {"config.yaml", "metrics.jsonl"}
        refused(4, train(), "train_poe.learning_rate: 1e+30 there, 0.001 now")
        assert train("--force").code == 0

    @pytest.mark.slow
    def test_a_signal_and_resume(self, data_root: Path, tmp_path: Path) -> None:
        command = ["train-poe", "--dataset", "coloredmnist", "--ratio", "0.1", "--device", "cpu", "--epochs", "25"]
        command += ["--data-root", str(data_root)]
        folder = tmp_path / "runs" / NAME / "seed0" / "train-poe"
        code, out, err = signalled(signal.SIGINT, [sys.executable, "-m", "denetdm_cli", *command], folder)
        assert code == 130, err
        assert out == ""
        assert plain(err)
        assert "Traceback" not in err
        assert f"Resume with: denetdm {' '.join(command)}\n" in err
        assert no_leftovers(tmp_path)
        done = len((folder / "metrics.jsonl").read_text().splitlines())
        assert 1 <= done < 25
        completed = checkpoint.load(folder / "resume.safetensors")[1]["epoch"]
        resumed = good(*command, "--resume", "must")
        assert f"epochs {completed + 1} to 25" in resumed.err
        assert good(*command, "--out", "straight").code == 0
        straight = tmp_path / "straight" / NAME / "seed0" / "train-poe"
        assert models(folder) == models(straight)
        assert figures(folder) == figures(straight)

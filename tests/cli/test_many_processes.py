"""Several processes that train one run together, and several runs side by side."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_support import (
    NAME,
    Outcome,
    call,
    child,
    figures,
    good,
    models,
    no_leftovers,
    plain,
    refused,
    signalled,
)
from own_images import class_folders, tiny
from two_ranks import run_two_ranks

from denetdm_cli import __version__
from denetdm_cli.training import checkpoint
from denetdm_cli.training.launch import launch
from denetdm_cli.utils import signals

SINGLE_PROCESS = os.environ | {"OMP_NUM_THREADS": "1"}


def options(data_root: Path, epochs: int = 2) -> list[object]:
    names = ("--dataset", "coloredmnist", "--ratio", 0.1, "--device", "cpu", "--data-root", data_root)
    return ["train-poe", *names, "--epochs", epochs, "--set", "distill.epochs=2", "--set", "distill.batch_size=64"]


def running(words: list[object], *folders: Path) -> "subprocess.Popen[str]":
    """A command that goes on by itself once every one of some stages has written a state."""
    command = [sys.executable, "-m", "denetdm_cli", *map(str, words)]
    process = subprocess.Popen(command, env=SINGLE_PROCESS, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 100
    while not all((folder / "resume.safetensors").exists() for folder in folders):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    return process


def children(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that a process has started, on Linux."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def close(ours: object, theirs: object) -> bool:
    """Whether records agree to 1e-5 wherever they hold a number."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(close(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(close, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        return ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    return ours == theirs


class TestRanks:
    """`--nproc` and what torchrun starts."""

    @pytest.mark.slow
    def test_two_ranks_come_to_what_one_does(self, data_root: Path, tmp_path: Path) -> None:
        # 200 images: three whole batches of 64 in stage 1, and one of 8 besides in stage 2.
        words = [*options(data_root), "--then-distill"]
        good(*words, "--out", "one")
        ended = child("-m", "denetdm_cli", *words, "--out", "two", "--nproc", 2, env=SINGLE_PROCESS, limit=300)
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.count("train-poe: 192 images an epoch") <= 1
        for stage in ("train-poe", "distill"):
            one, two = (tmp_path / out / NAME / "seed0" / stage for out in ("one", "two"))
            assert len(figures(two)) == 2
            assert close(figures(two), figures(one))
            ours, theirs = (checkpoint.load(path / "last.safetensors")[0] for path in (two, one))
            assert all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5) for name in theirs)
        assert no_leftovers(tmp_path)

    @pytest.mark.slow
    def test_stopped_together_and_gone_on_with_alone(self, data_root: Path, tmp_path: Path) -> None:
        words = [*map(str, options(data_root, 60)), "--out", "two"]
        folder = tmp_path / "two" / NAME / "seed0" / "train-poe"
        command = [sys.executable, "-m", "denetdm_cli", *words, "--nproc", "2"]
        code, _, err = signalled(signal.SIGTERM, command, folder, env=SINGLE_PROCESS)
        assert code == 75, err
        assert "Traceback" not in err
        assert f"Resume with: denetdm {' '.join(words)} --nproc 2\n" in err
        assert 1 <= len(figures(folder)) < 60
        good(*words)
        good(*options(data_root, 60), "--out", "one")
        assert close(
            figures(folder)[0]["losses"], figures(tmp_path / "one" / NAME / "seed0" / "train-poe")[0]["losses"]
        )
        assert len(figures(folder)) == 60

    @pytest.mark.slow
    def test_the_figures_are_those_of_the_checkpoint(self, tmp_path: Path) -> None:
        source = class_folders(tmp_path / "images", {"train": 60, "valid": 20, "test": 60}, side=32)
        good("make-data", "folder", "--source", source, "--size", 32, "--data-root", tmp_path / "data")
        networks = [f"model.{name}={{name: cifar_resnet, depth: 8}}" for name in ("shallow", "deep", "target")]
        words = tiny("mine", *(w for n in networks for w in ("--set", n)), side=32, networks=())
        # Each rank has running statistics of its own half of a batch; those of rank 1 are NaN here, and it
        # measures half of the images although there are few.
        program = """
import os
from denetdm_cli.data.batches import Batches
from denetdm_cli.evaluation.evaluator import Evaluation
Batches.eval_batch_size = 10
measure = Evaluation.measure
def measure_with_other_statistics(self, method, *arguments):
    for buffer in method.model.buffers():
        if buffer.is_floating_point():
            buffer.fill_(float("nan"))
    return measure(self, method, *arguments)
if os.environ["RANK"] == "1":
    Evaluation.measure = measure_with_other_statistics
from denetdm_cli.cli.app import main
main()
"""
        ranks = run_two_ranks(
            program, ["train-poe", *map(str, words), "--data-root", str(tmp_path / "data"), "--out", "two"]
        )
        assert [code for code, _, _ in ranks] == [0, 0], ranks
        stage = tmp_path / "two/mine/seed0/train-poe"
        reported = json.loads((stage / "results.json").read_text())["rules"]["last"]["metrics"]
        scored = json.loads(good("evaluate", stage, "--device", "cpu", "--json").out)
        (result,) = scored["results"]
        assert result["metrics"] == reported

    @pytest.mark.slow
    def test_rank_0_alone_looks_at_the_run_folder(self, data_root: Path, tmp_path: Path) -> None:
        # On a network file system another machine may not yet see what rank 0 wrote, or see it still.
        words = [*map(str, options(data_root, 60)), "--out", "two"]
        folder = tmp_path / "two" / NAME / "seed0" / "train-poe"
        command = [sys.executable, "-m", "denetdm_cli", *words]
        assert signalled(signal.SIGTERM, command, folder, env=SINGLE_PROCESS)[0] == 75
        program = """
import os
from denetdm_cli.training.run_folder import RunFolder
if os.environ["RANK"] != "0":
    def blind(self, path):
        self.path = path
        self.config_file = self.metrics_file = self.results_file = self.resume_file = path / "not seen here"
    RunFolder.__init__ = blind
from denetdm_cli.cli.app import main
main()
"""
        for rounds, said in ((60, "epochs "), (60, "already")):
            ranks = run_two_ranks(program, words)
            assert [code for code, _, _ in ranks] == [0, 0], ranks
            assert said in ranks[0][2]
            assert len(figures(folder)) == rounds

    @pytest.mark.slow
    def test_an_error_is_told_once(self, data_root: Path) -> None:
        words = [*options(data_root), "--nproc", 2, "--resume", "must"]
        ended = child("-m", "denetdm_cli", *words, env=SINGLE_PROCESS, limit=300)
        refused(4, Outcome(ended.returncode, ended.stdout, ended.stderr), "nothing to resume")
        assert ended.stderr.count("error:") == 1

    def test_what_cannot_be(self, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "0")
        refused(2, call(*options(data_root)), "RANK", "torchrun")
        refused(2, call(*options(data_root), "--nproc", 2), "--nproc")


class TestManyRuns:
    """`--seeds`, several `--ratio`, and several runs to distil."""

    @pytest.mark.slow
    def test_each_run_is_what_it_is_alone(self, data_root: Path, tmp_path: Path) -> None:
        words = options(data_root)
        together = good(*words, "--seeds", "0,3", "--out", "many", "--then-distill", "--then-evaluate")
        assert plain(together.err)
        assert "distill, 2 checkpoints: mean (standard deviation)" in together.out
        for seed in (0, 3):
            good(*words, "--seed", seed, "--out", "alone", "--then-distill")
            for stage in ("train-poe", "distill"):
                many, alone = (tmp_path / out / NAME / f"seed{seed}" / stage for out in ("many", "alone"))
                assert figures(many) == figures(alone)
                assert models(many).keys() == models(alone).keys()
                for file, (tensors, _) in models(many).items():
                    assert tensors == models(alone)[file][0], "bit for bit"

    @pytest.mark.slow
    def test_one_that_fails_stops_no_other(
        self, data_root: Path, tmp_path: Path, train: Callable[..., Outcome]
    ) -> None:
        train("--seed", 1, "--out", "many", "--epochs", 1)
        outcome = call(*options(data_root), "--seeds", "0-2", "--out", "many")
        assert outcome.code == 4
        assert "seed1" in outcome.err.partition("error: ")[2]
        assert "train_poe.epochs" in outcome.err
        for seed in (0, 2):
            assert (tmp_path / "many" / NAME / f"seed{seed}" / "train-poe" / "results.json").is_file()

    @pytest.mark.parametrize("seeds", ["", "a", "3-1", "0-", "0,0", "-1", "1.5"])
    def test_seeds_that_are_none(self, data_root: Path, seeds: str) -> None:
        refused(2, call(*options(data_root), "--seeds", seeds), "--seeds")

    def test_seed_or_seeds(self, data_root: Path) -> None:
        refused(2, call(*options(data_root), "--seeds", "0-1", "--seed", 1), "--seed and --seeds")

    @pytest.mark.slow
    def test_a_signal_stops_all_of_them_resumably(self, data_root: Path, tmp_path: Path) -> None:
        words = [*map(str, options(data_root, 40)), "--seeds", "0-1", "--out", "many"]
        folders = [tmp_path / "many" / NAME / f"seed{seed}" / "train-poe" for seed in (0, 1)]
        command = [sys.executable, "-m", "denetdm_cli", *words]
        code, _, err = signalled(signal.SIGUSR1, command, *folders, env=SINGLE_PROCESS)
        assert code == 75, err
        assert "Traceback" not in err
        assert f"Resume with: denetdm {' '.join(words)}\n" in err
        assert not all((folder / "results.json").exists() for folder in folders)
        assert good(*words).err.count("done (") == 2
        assert all(len(figures(folder)) == 40 for folder in folders)


class TestWhatIsLost:
    """Ranks and launchers that are killed."""

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose child a process is")
    def test_a_rank_that_is_killed(self, data_root: Path, tmp_path: Path) -> None:
        process = running(
            [*options(data_root, 400), "--out", "two", "--nproc", 2], tmp_path / "two" / NAME / "seed0/train-poe"
        )
        os.kill(children(process)[1], signal.SIGKILL)
        _, err = process.communicate(timeout=100)
        assert process.returncode == 8, err
        assert "a process of the run was ended by signal 9" in err
        assert "Traceback" not in err

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is dead")
    def test_a_launcher_that_is_killed_leaves_none_behind(self, data_root: Path, tmp_path: Path) -> None:
        folder = tmp_path / "two" / NAME / "seed0" / "train-poe"
        process = running([*options(data_root, 4000), "--out", "two", "--nproc", 2], folder)
        ranks = children(process)
        process.kill()
        process.communicate(timeout=100)
        until = time.monotonic() + 60
        while any(Path(f"/proc/{rank}").exists() for rank in ranks):
            assert time.monotonic() < until, "they go on without it"
            time.sleep(0.05)
        assert 1 <= len(figures(folder)) < 4000

    @staticmethod
    def stopped(ranks: str, numbers: list[int], monkeypatch: pytest.MonkeyPatch) -> signals.Stopped:
        """What becomes of a launcher that gets signals 0.1 s apart; its ranks are shell scripts."""
        Path("ranks").write_text(f"#!/bin/sh\n{ranks}\n")
        Path("ranks").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(Path("ranks").absolute()))

        def send() -> None:
            while not (Path("0").exists() and Path("1").exists()):
                time.sleep(0.01)
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.1)

        with signals.handlers():
            threading.Thread(target=send).start()
            with pytest.raises(signals.Stopped) as stop:
                launch(2, [])
        return stop.value

    def test_stopped_while_they_wait_for_each_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Nothing is kept then, and ranks hear no handler: the signal that is passed on ends them.
        stop = self.stopped("touch $RANK; exec sleep 100", [signal.SIGTERM], monkeypatch)
        assert stop.number == signal.SIGTERM

    def test_a_second_signal_leaves_them_their_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ranks = "trap 'sleep 0.5; touch kept$RANK; exit 75' USR1; touch $RANK; while :; do sleep 0.02; done"
        stop = self.stopped(ranks, [signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP], monkeypatch)
        assert stop.number == signal.SIGUSR1
        assert Path("kept0").exists()
        assert Path("kept1").exists()

    @pytest.mark.slow
    def test_usr2_stops_all_ranks(self, data_root: Path, tmp_path: Path) -> None:
        folder = tmp_path / "two" / NAME / "seed0" / "train-poe"
        words = [*map(str, options(data_root, 400)), "--out", "two", "--nproc", "2"]
        code, _, err = signalled(
            signal.SIGUSR2, [sys.executable, "-m", "denetdm_cli", *words], folder, env=SINGLE_PROCESS
        )
        assert code == 75, err
        assert "Resume with: " in err


def test_a_rank_ends_without_what_others_leave_for_the_end(tmp_path: Path) -> None:
    program = "import atexit; atexit.register(print, 'late'); from denetdm_cli.cli.app import main; main()"
    for environment, end in ((SINGLE_PROCESS, "late\n"), (SINGLE_PROCESS | {"WORLD_SIZE": "2"}, "")):
        for words, code in ((["--version"], 0), (["status", "nowhere"], 4)):
            ended = child("-c", program, *words, env=environment)
            assert ended.returncode == code, ended
            assert ended.stdout.endswith(f"{__version__}\n{end}" if code == 0 else end)
            assert ended.stdout.count("late") == len(end) // 5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose child a process is")
def test_a_run_whose_process_is_killed(data_root: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "two" / NAME / seed / "train-poe" for seed in ("seed0", "seed1")]
    process = running([*options(data_root, 60), "--seeds", "0-1", "--workers", 2, "--out", "two"], *folders)
    workers = [pid for pid in children(process) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 8, err
    assert "ended with signal 9" in err
    assert sorted((folder / "results.json").exists() for folder in folders) == [False, True]


class TestNamedTwice:
    def test_a_ratio(self, data_root: Path) -> None:
        refused(2, call(*options(data_root), "--ratio", 0.1), "--ratio names a conflict ratio twice")

    def test_a_run(self, run: Path) -> None:
        refused(2, call("distill", run, run), "a run is named twice")

    def test_seeds_without_end(self, data_root: Path) -> None:
        refused(2, call(*options(data_root), "--seeds", "0-99999999999"), "more than 1,000 seeds")


@pytest.mark.slow
def test_never_to_resume_is_said_of_both_stages(data_root: Path, tmp_path: Path) -> None:
    words = [str(word).replace("epochs=2", "epochs=400") for word in options(data_root, 1)]
    words += ["--then-distill", "--out", "two"]
    folder = tmp_path / "two" / NAME / "seed0" / "distill"
    code, _, err = signalled(signal.SIGTERM, [sys.executable, "-m", "denetdm_cli", *words], folder, env=SINGLE_PROCESS)
    assert code == 75, err
    refused(4, call(*words, "--resume", "never"), "was stopped before its end")

"""Worker processes: how many at a time and where, and how they are stopped."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_support import STAMP
from stubborn import StubbornJob

from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.config.schema import Config
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.training import workers
from denetdm_cli.training.pipeline import Job
from denetdm_cli.training.workers import Plan, plan, train_all
from denetdm_cli.utils import signals


def jobs(count: int, folder: Path, preset: str = "coloredmnist", **options: Any) -> list[Job]:
    config = load_config(preset_path(preset), (), {"dataset.root": str(folder), "threads": 0, **options})
    return [Job(config, folder / f"seed{seed}", folder, ("train-poe",), None, "auto", ()) for seed in range(count)]


class TestPlan:
    @pytest.fixture
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        def have(gpus: int, cores: int, gibibytes: int = 80) -> None:
            monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
            memory = SimpleNamespace(total_memory=gibibytes << 30)
            monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
            monkeypatch.setattr(workers, "available_cores", lambda: cores)

        return have

    @pytest.mark.parametrize(
        ("gpus", "cores", "expected"),
        [
            (1, 16, Plan(4, 4, ("cuda:0",))),
            (1, 3, Plan(3, 1, ("cuda:0",))),
            (1, 1, Plan(1, 1, ("cuda:0",))),
            (2, 6, Plan(6, 1, ("cuda:0", "cuda:1"))),
            (2, 64, Plan(8, 8, ("cuda:0", "cuda:1"))),
            (8, 4, Plan(8, 1, tuple(f"cuda:{k}" for k in range(8)))),
        ],
    )
    def test_perceptron_runs_share_a_gpu(
        self, machine: Any, tmp_path: Path, gpus: int, cores: int, expected: Plan
    ) -> None:
        machine(gpus, cores)
        assert plan(jobs(20, tmp_path), None) == expected

    @pytest.mark.parametrize("preset", ["corruptedcifar10", "bffhq"])
    def test_a_convolutional_run_has_a_gpu_to_itself(self, machine: Any, tmp_path: Path, preset: str) -> None:
        machine(2, 16)
        assert plan(jobs(20, tmp_path, preset), None) == Plan(2, 8, ("cuda:0", "cuda:1"))

    def test_gpu_memory_limits_them(self, machine: Any, tmp_path: Path) -> None:
        (tmp_path / "train").mkdir()
        with (tmp_path / "train" / "images.npy").open("wb") as file:
            file.truncate(3 << 30)  # of zeros, which take no room on the disk
        machine(1, 16, gibibytes=11)
        assert plan(jobs(20, tmp_path), None).workers == 2
        machine(1, 16, gibibytes=1)
        assert plan(jobs(20, tmp_path), None).workers == 1

    def test_one_gpu_by_name_is_that_one(self, machine: Any, tmp_path: Path) -> None:
        machine(2, 16)
        assert plan(jobs(20, tmp_path, device="cuda:1"), None) == Plan(4, 4, ("cuda:1",))
        assert plan(jobs(20, tmp_path, "corruptedcifar10", device="cuda:1"), None) == Plan(1, 16, ("cuda:1",))

    def test_what_is_asked_for_and_never_more_than_there_are(self, machine: Any, tmp_path: Path) -> None:
        machine(1, 16)
        assert plan(jobs(20, tmp_path), 7).workers == 7
        assert plan(jobs(3, tmp_path), 7).workers == 3
        assert plan(jobs(20, tmp_path, "corruptedcifar10"), 2).workers == 2

    def test_without_a_gpu_every_thread_has_a_core(self, machine: Any, tmp_path: Path) -> None:
        machine(0, 8)
        assert plan(jobs(20, tmp_path), None) == Plan(8, 1, ("auto",))
        assert plan(jobs(2, tmp_path), None) == Plan(2, 4, ("auto",))
        assert plan(jobs(20, tmp_path, threads=4), None) == Plan(2, 4, ("auto",))


class TestAHungWorker:
    @pytest.fixture(autouse=True)
    def _patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers, "SECONDS_TO_STOP", 2.0)

    @pytest.mark.slow
    def test_is_killed_and_named(
        self, tiny_config: Config, tiny_dataset: StoredDataset, capsys: pytest.CaptureFixture[str]
    ) -> None:
        events: Any = train_all([StubbornJob(tiny_config, tiny_dataset.path)], Plan(1, 1, ("cpu",)))  # type: ignore[list-item]
        _, event = next(events)
        began = time.monotonic()
        events.close()
        assert 2 <= time.monotonic() - began < 30
        with pytest.raises(ProcessLookupError):
            os.kill(event.record["pid"], 0)
        (line,) = STAMP.sub("", capsys.readouterr().err).splitlines()
        assert line.startswith("warning: the process of ColoredMNIST/seed7 did not stop within 2 s and was killed")

    @pytest.mark.slow
    def test_a_second_signal_leaves_it_its_time(self, tiny_config: Config, tiny_dataset: StoredDataset) -> None:
        def send(number: int) -> None:
            os.kill(os.getpid(), number)

        with signals.handlers():
            events: Any = train_all([StubbornJob(tiny_config, tiny_dataset.path)], Plan(1, 1, ("cpu",)))  # type: ignore[list-item]
            _, event = next(events)
            began = time.monotonic()
            for seconds in (0.3, 0.6):
                threading.Timer(seconds, send, [signal.SIGTERM]).start()
            with pytest.raises(signals.Stopped):
                next(events)
        assert time.monotonic() - began >= 2
        with pytest.raises(ProcessLookupError):
            os.kill(event.record["pid"], 0)

"""TensorBoard and W&B: what they get is metrics.jsonl, once, whatever happened to the run."""

import errno
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from cli_support import EPOCHS, NAME, Outcome, call, child, good, plain, refused

from denetdm_cli.cli import options as cli_options
from denetdm_cli.config.schema import Config
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.training import stages, trackers
from denetdm_cli.training.events import EpochEvaluated, StageFinished
from denetdm_cli.training.trackers import chosen
from denetdm_cli.training.tracking import scalars, tracked
from denetdm_cli.utils import log as logs
from denetdm_cli.utils.errors import ConfigError


@pytest.fixture(autouse=True)
def _as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    logs.reset()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def stop_after(config: Config, dataset: StoredDataset, epoch: int, name: str, **how: Any) -> Path:
    """Train with a tracker, and stop once an epoch is complete."""
    events = tracked(stages.train("train-poe", config, dataset, options=stages.RunOptions(**how)), chosen([name]))
    next(event for event in events if isinstance(event, EpochEvaluated) and event.record["epoch"] == epoch)
    events.close()
    return stages.run_path(config, dataset) / "train-poe"


def finish(config: Config, dataset: StoredDataset, name: str, **how: Any) -> Path:
    """Train with a tracker to the end."""
    *_, finished = tracked(stages.train("train-poe", config, dataset, options=stages.RunOptions(**how)), chosen([name]))
    assert isinstance(finished, StageFinished)
    return finished.folder


def recorded(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [dict(scalars(json.loads(line))) for line in lines]


def forget(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if a package had not been imported yet."""
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)


class TestChoice:
    def test_names(self) -> None:
        assert list(trackers._KNOWN) == cli_options.complete_trackers()
        with pytest.raises(ConfigError, match="'mlflow' is no tracker") as error:
            chosen(["mlflow"])
        assert "tensorboard, wandb" in error.value.fix

    @pytest.mark.parametrize("name", ["tensorboard", "wandb"])
    def test_a_missing_package_is_refused_before_anything_is_made(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
    ) -> None:
        forget(monkeypatch, name)
        monkeypatch.setitem(sys.modules, name, None)
        outcome = call("train-poe", "--dataset", "coloredmnist", "--track", name)
        refused(2, outcome, f"--track {name}", f"pip install 'denetdm[{name}]'")
        refused(2, call("distill", "no-such-run", "--track", name), f"pip install 'denetdm[{name}]'")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_is_no_package(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        forget(monkeypatch, "wandb")
        found = ModuleType("wandb")  # what Python makes of a folder of that name, which W&B leaves where it was used
        found.__path__ = [str(tmp_path)]
        monkeypatch.setitem(sys.modules, "wandb", found)
        with pytest.raises(ConfigError, match="cannot be imported"):
            chosen(["wandb"])


class TestTensorBoard:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'denetdm[tensorboard]'")

    @staticmethod
    def read(folder: Path) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (file,) = (folder / "tensorboard").iterdir()
        accumulator = EventAccumulator(str(file), size_guidance={"scalars": 0})
        accumulator.Reload()
        return accumulator

    def matches(self, folder: Path) -> None:
        accumulator, expected = self.read(folder), recorded(folder)
        assert set(accumulator.Tags()["scalars"]) == {name for record in expected for name in record} - {"epoch"}
        for name in accumulator.Tags()["scalars"]:
            found = [(event.step, event.value) for event in accumulator.Scalars(name)]
            assert [step for step, _ in found] == [record["epoch"] for record in expected]
            assert [value for _, value in found] == pytest.approx([record[name] for record in expected], rel=1e-6)

    def test_it_gets_what_is_recorded(self, tiny_config: Config, tiny_dataset: StoredDataset) -> None:
        folder = finish(tiny_config, tiny_dataset, "tensorboard")
        self.matches(folder)
        assert "evaluation/shallow/conflicting" in self.read(folder).Tags()["scalars"]
        (config,) = self.read(folder).Tensors("config/text_summary")
        assert "    seed: 0\n" in config.tensor_proto.string_val[0].decode()

    def test_no_epoch_is_there_twice_or_missing(self, tiny_config: Config, tiny_dataset: StoredDataset) -> None:
        self.matches(stop_after(tiny_config, tiny_dataset, 2, "tensorboard"))
        self.matches(finish(tiny_config, tiny_dataset, "tensorboard"))
        self.matches(stop_after(tiny_config, tiny_dataset, 1, "tensorboard", force=True))

    def test_a_full_disk_is_a_warning(
        self, tiny_config: Config, tiny_dataset: StoredDataset, monkeypatch: pytest.MonkeyPatch, capfd: Any
    ) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        def full(_: object, content: bytes) -> None:
            if b"losses" in content:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(RecordWriter, "write", full)
        finish(tiny_config, tiny_dataset, "tensorboard")
        told = capfd.readouterr().err
        assert told.count("warning: tensorboard failed and is switched off (OSError: [Errno 28] No space left") == 1
        assert "Traceback" not in told


class FakeRun:
    def __init__(self, server: "FakeWandb", options: dict[str, Any]) -> None:
        history = server.histories.setdefault(options["id"], {})
        self.step = max(history, default=-1) + 1 if options["mode"] == "online" else 0
        self.dir = "here/files"
        self.url = "https://somewhere/run" if options["mode"] == "online" else None
        self.exit_code: int | None = None
        self._history = history if options["mode"] == "online" else {}

    def log(self, values: dict[str, float], step: int, commit: bool) -> None:
        assert commit
        assert step >= self.step, "W&B drops what it has, and says so"
        assert step not in self._history
        self._history[step] = values

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeWandb(ModuleType):
    """What is used of W&B, with a server that keeps histories."""

    def __init__(self, mode: str = "online", logged_in: bool = True, project: str | None = None) -> None:
        super().__init__("wandb")
        self.histories: dict[str, dict[int, dict[str, float]]] = {}
        self.inits: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []
        self.logins: list[dict[str, Any]] = []
        self._logged_in = logged_in
        self._settings = SimpleNamespace(mode=mode, project=project)

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802 - W&B's name
        return settings

    def setup(self, settings: dict[str, Any]) -> SimpleNamespace:
        assert settings == {"silent": True, "console": "off"}
        return SimpleNamespace(settings=self._settings)

    def login(self, **options: Any) -> bool:
        self.logins.append(options)
        return self._logged_in

    def init(self, **options: Any) -> FakeRun:
        self.inits.append(options)
        self.runs.append(FakeRun(self, options))
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeWandb]:
    def install(**options: Any) -> FakeWandb:
        fake = FakeWandb(**options)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        monkeypatch.setitem(sys.modules, "wandb.sdk", ModuleType("wandb.sdk"))
        return fake

    return install


class TestWandbWithoutItsPackage:
    @pytest.mark.parametrize(
        ("said", "logged_in", "mode"),
        [
            ("online", True, "online"),
            ("online", False, "offline"),
            ("offline", True, "offline"),
            ("dryrun", False, "dryrun"),
            ("disabled", False, "disabled"),
        ],
    )
    def test_nobody_is_asked_to_log_in(
        self,
        tiny_config: Config,
        tiny_dataset: StoredDataset,
        wandb: Callable[..., FakeWandb],
        said: str,
        logged_in: bool,
        mode: str,
    ) -> None:
        fake = wandb(mode=said, logged_in=logged_in)
        finish(tiny_config, tiny_dataset, "wandb")
        assert fake.inits[0]["mode"] == mode
        assert fake.logins == ([{"prompt": False, "verify": False}] if said == "online" else [])

    def test_what_is_told_of_the_run(
        self, tiny_config: Config, tiny_dataset: StoredDataset, wandb: Callable[..., FakeWandb]
    ) -> None:
        fake = wandb()
        folder = finish(tiny_config, tiny_dataset, "wandb")
        (options,) = fake.inits
        assert options["name"] == f"{tiny_dataset.path.name}/seed0/train-poe"
        assert options["project"] == "denetdm"
        assert options["config"] == tiny_config.model_dump(mode="json")
        assert options["config"]["seed"] == 0
        assert options["dir"] == str(folder)
        assert options["settings"]["silent"]
        assert options["settings"]["console"] == "off"
        assert [*fake.histories[options["id"]].values()] == recorded(folder)
        assert fake.runs[0].exit_code == 0

    def test_its_own_settings_count(
        self,
        tiny_config: Config,
        tiny_dataset: StoredDataset,
        wandb: Callable[..., FakeWandb],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("WANDB_DIR", "elsewhere")
        fake = wandb(project="mine")
        finish(tiny_config, tiny_dataset, "wandb")
        assert fake.inits[0]["project"] == "mine"
        assert fake.inits[0]["dir"] is None

    def test_a_run_that_goes_on_is_the_same_run(
        self, tiny_config: Config, tiny_dataset: StoredDataset, wandb: Callable[..., FakeWandb]
    ) -> None:
        fake = wandb()
        stop_after(tiny_config, tiny_dataset, 1, "wandb")
        for history in fake.histories.values():
            history.clear()  # as if nothing had come through
        stop_after(tiny_config, tiny_dataset, 2, "wandb")
        folder = finish(tiny_config, tiny_dataset, "wandb")
        (identifier,) = {options["id"] for options in fake.inits}
        assert [*fake.histories[identifier].values()] == recorded(folder)
        assert [run.exit_code for run in fake.runs] == [1, 1, 0]
        assert {options["resume"] for options in fake.inits} == {"allow"}
        finish(tiny_config, tiny_dataset, "wandb", force=True)
        assert fake.inits[-1]["id"] != identifier, "a run that is begun anew is another one"

    def test_offline_every_part_is_whole(
        self, tiny_config: Config, tiny_dataset: StoredDataset, wandb: Callable[..., FakeWandb]
    ) -> None:
        fake = wandb(logged_in=False)
        stop_after(tiny_config, tiny_dataset, 2, "wandb")
        folder = finish(tiny_config, tiny_dataset, "wandb")
        assert fake.inits[0]["id"] == fake.inits[1]["id"]
        assert [*fake.runs[1]._history.values()] == recorded(folder)


class TestWandb:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        reason = "wandb is not installed: pip install 'denetdm[wandb]'"
        pytest.importorskip("wandb.sdk", reason=reason)

    @staticmethod
    def read(file: Path) -> Iterator[Any]:
        """The records in a file of W&B's: protocol buffers in pieces, in blocks of 32 KiB, after seven bytes."""
        from wandb.proto.wandb_internal_pb2 import Record

        content, at, piece = file.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            _, length, kind = struct.unpack("<IHB", content[at : at + 7])
            piece += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # a whole record, or the last piece of one
                yield Record.FromString(piece)
                piece = b""

    @pytest.mark.slow
    def test_it_gets_what_is_recorded_and_asks_for_nothing(self, data_root: Path, tmp_path: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "NETRC"}
        environment |= {"HOME": str(tmp_path / "home")}
        command = ["-m", "denetdm_cli", "train-poe", "--dataset", "coloredmnist", "--ratio", 0.1, "--device", "cpu"]
        command += ["--data-root", data_root, "--epochs", EPOCHS, "--out", tmp_path / "runs", "--track", "wandb"]
        done = child(*command, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done
        assert "not uploaded (wandb sync does that)" in done.stderr
        assert "wandb" not in done.stdout
        assert plain(done.stdout)
        assert plain(done.stderr)
        folder = tmp_path / "runs" / NAME / "seed0" / "train-poe"
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        records = list(self.read(file))
        (run,) = [record.run for record in records if record.HasField("run")]
        assert run.display_name == f"{NAME}/seed0/train-poe"
        assert {update.key: update.value_json for update in run.config.update}["seed"] == "0"
        history = [record.history for record in records if record.HasField("history")]
        assert [each.step.num for each in history] == [record["epoch"] for record in recorded(folder)]
        for each, expected in zip(history, recorded(folder), strict=True):
            found = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in each.item}
            assert {name: found[name] for name in expected} == expected
        (end,) = [record.exit for record in records if record.HasField("exit")]
        assert end.exit_code == 0


def test_both_commands_take_it(train: Callable[..., Outcome], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'denetdm[tensorboard]'")
    run = tmp_path / "runs" / NAME / "seed0"
    assert "tensorboard: " in train("--out", tmp_path / "runs", "--track", "tensorboard").err
    good("distill", run, "--epochs", 2, "--track", "tensorboard", "-q")
    for stage in ("train-poe", "distill"):
        TestTensorBoard().matches(run / stage)

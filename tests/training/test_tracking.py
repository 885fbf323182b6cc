"""Trackers hear of every epoch once and in order, and whatever becomes of them, the training does not notice."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_support import STAMP, models

from denetdm_cli.config.load import to_yaml
from denetdm_cli.config.schema import Config
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.training import stages
from denetdm_cli.training.events import EpochEvaluated, Event, StageFinished, StageStarted, StepProgress
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.training.tracking import scalars, tracked
from denetdm_cli.utils import log as logs


@pytest.fixture(autouse=True)
def _as_usual() -> None:
    logs.reset()


class Fake:
    """A tracker that notes what it hears and fails where it is told to."""

    def __init__(self, fails_at: str = "", error: type[BaseException] = RuntimeError) -> None:
        self.place = "a place"
        self.heard: list[Any] = []
        self._fails_at = fails_at
        self._error = error

    def __call__(self, folder: RunFolder) -> "Fake":
        assert folder.config().seed == 0
        self._hear("open")
        return self

    def log(self, record: Mapping[str, Any]) -> None:
        self._hear(record["epoch"])

    def close(self, *, complete: bool) -> None:
        self._hear("complete" if complete else "stopped")

    def _hear(self, what: object) -> None:
        self.heard.append(what)
        if str(what) == self._fails_at:
            raise self._error(f"cannot {what}")


def train(config: Config, dataset: StoredDataset, fakes: dict[str, Fake], **how: Any) -> list[Event]:
    return list(tracked(stages.train("train-poe", config, dataset, options=stages.RunOptions(**how)), fakes))


def test_a_tracker_hears_of_every_epoch(
    tiny_config: Config, tiny_dataset: StoredDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake()
    events = train(tiny_config, tiny_dataset, {"fake": fake})
    assert fake.heard == ["open", 1, 2, 3, "complete"]
    assert [type(event).__name__ for event in events if not isinstance(event, StepProgress)] == [
        "StageStarted", "EpochEvaluated", "EpochEvaluated", "EpochEvaluated", "StageFinished",
    ]  # fmt: skip
    assert STAMP.sub("", capsys.readouterr().err) == "fake: a place\n"
    train(tiny_config, tiny_dataset, {"fake": fake})
    assert len(fake.heard) == 5, "of a run that was finished before there is nothing to tell"


@pytest.mark.parametrize("fails_at", ["open", "1", "2", "3", "complete"])
def test_one_that_fails_is_switched_off_and_changes_nothing(
    tiny_config: Config,
    tiny_dataset: StoredDataset,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    fails_at: str,
) -> None:
    alone = tiny_config.model_copy(update={"out": str(tmp_path / "alone")})
    expected = list(stages.train("train-poe", alone, tiny_dataset))[-1]
    bad, good = Fake(fails_at), Fake()
    finished = train(tiny_config, tiny_dataset, {"bad": bad, "good": good})[-1]
    assert good.heard == ["open", 1, 2, 3, "complete"]
    heard = ["open", "1", "2", "3", "complete"]
    closed = [] if fails_at == "open" else ["stopped"]
    assert [str(what) for what in bad.heard] == heard[: heard.index(fails_at) + 1] + closed
    told = STAMP.sub("", capsys.readouterr().err).splitlines()
    warnings = [line for line in told if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: bad failed and is switched off (RuntimeError: cannot {fails_at});")
    assert isinstance(finished, StageFinished)
    assert isinstance(expected, StageFinished)
    assert models(finished.folder) == models(expected.folder)
    assert len((finished.folder / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("fails_at", ["2", "stopped"])
def test_the_warning_is_one_even_if_it_cannot_be_closed(
    tiny_config: Config, tiny_dataset: StoredDataset, capsys: pytest.CaptureFixture[str], fails_at: str
) -> None:
    class Worse(Fake):
        def close(self, *, complete: bool) -> None:
            super().close(complete=complete)
            raise OSError("cannot close either")

    train(tiny_config, tiny_dataset, {"bad": Worse(fails_at)})
    assert capsys.readouterr().err.count("warning: ") == 1


def test_a_run_that_goes_on_tells_all_its_epochs(tiny_config: Config, tiny_dataset: StoredDataset) -> None:
    def stopped(after: int, **how: Any) -> list[Any]:
        fake = Fake()
        events = tracked(
            stages.train("train-poe", tiny_config, tiny_dataset, options=stages.RunOptions(**how)), {"fake": fake}
        )
        for event in events:
            if isinstance(event, EpochEvaluated) and event.record["epoch"] == after:
                break
        events.close()
        return fake.heard

    assert stopped(1) == ["open", 1, "stopped"]
    assert stopped(2, resume="must") == ["open", 1, 2, "stopped"]
    fake = Fake()
    train(tiny_config, tiny_dataset, {"fake": fake}, resume="must")
    assert fake.heard == ["open", 1, 2, 3, "complete"]
    assert stopped(1, force=True) == ["open", 1, "stopped"]


def test_one_that_fails_at_what_was_before(
    tiny_config: Config, tiny_dataset: StoredDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tracked(stages.train("train-poe", tiny_config, tiny_dataset), {})
    next(event for event in events if isinstance(event, EpochEvaluated))
    events.close()
    bad = Fake("1")
    train(tiny_config, tiny_dataset, {"bad": bad}, resume="must")
    assert bad.heard == ["open", 1, "stopped"]
    assert capsys.readouterr().err.count("warning: ") == 1


@pytest.mark.parametrize("where", ["open", "2"])
def test_ctrl_c_in_a_tracker_stops_the_training(tiny_config: Config, tiny_dataset: StoredDataset, where: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config, tiny_dataset, {"bad": Fake(where, KeyboardInterrupt)})
    again = Fake()  # the folder is free
    train(tiny_config, tiny_dataset, {"fake": again})
    assert again.heard == ["open", 1, 2, 3, "complete"]


def test_errors_of_the_stage_come_through(tiny_config: Config) -> None:
    folder = RunFolder(Path(tiny_config.out))
    folder.path.mkdir(parents=True)
    folder.config_file.write_text(to_yaml(tiny_config))

    def failing() -> Iterator[Event]:
        yield StageStarted("train-poe", folder.path, 1, 3, 9)
        raise ArithmeticError

    fake = Fake()
    with pytest.raises(ArithmeticError):
        list(tracked(failing(), {"fake": fake}))
    assert fake.heard == ["open", "stopped"]


def test_the_stage_ends_before_its_trackers(tiny_config: Config) -> None:
    folder = RunFolder(Path(tiny_config.out))
    folder.path.mkdir(parents=True)
    folder.config_file.write_text(to_yaml(tiny_config))
    fake = Fake()

    def stage() -> Iterator[Event]:
        try:
            yield StageStarted("train-poe", folder.path, 1, 3, 9)
        finally:
            fake.heard.append("the folder is free")

    events = tracked(stage(), {"fake": fake})
    next(events)
    events.close()
    assert fake.heard == ["open", "the folder is free", "stopped"], "a tracker may have to wait for its network"


def test_numbers_by_their_path() -> None:
    shallow = {"conflicting": 0.25, "aligned": None, "worst_group": 0, "worst_group_of": [1, 2], "worst_class_of": 3}
    record = {
        "epoch": 2,
        "losses": {"poe": 1.5, "total": 1.5},
        "evaluation": {"shallow": shallow},
        "separation": {"train": {"chance": 0.1}, "warnings": ["dead"]},
    }
    assert dict(scalars(record)) == {
        "epoch": 2.0,
        "losses/poe": 1.5,
        "losses/total": 1.5,
        "evaluation/shallow/conflicting": 0.25,
        "evaluation/shallow/worst_group": 0.0,
        "separation/train/chance": 0.1,
    }

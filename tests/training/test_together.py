"""Many runs as one program beside the same runs one by one: what they leave behind, how they stop, resume and fail."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import glyph_mnist

from denetdm_cli.config.load import load, preset_path
from denetdm_cli.config.schema import Config
from denetdm_cli.data.batches import Batches
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.data.synthetic.colored_mnist import coloured_mnist_folder, make_coloured_mnist
from denetdm_cli.evaluation.evaluator import Evaluation
from denetdm_cli.training import checkpoint, stages, together
from denetdm_cli.training.events import Began, EpochDone, Event, Finished, Progress
from denetdm_cli.training.run_folder import finished_stage_1
from denetdm_cli.training.stages import How
from denetdm_cli.training.together import Failed
from denetdm_cli.utils import signals as stopping
from denetdm_cli.utils.errors import CheckpointError, NumericError
from denetdm_cli.utils.files import folder_lock

RATIOS = (0.1, 0.3)
RUNS = [(seed, ratio) for seed in (0, 1) for ratio in RATIOS]
Run = tuple[Config, StoredDataset]


@pytest.fixture(scope="module", autouse=True)
def in_float64() -> Iterator[None]:
    """Rounding in float32 can turn a ReLU round, which Adam makes a full step of; in float64 that has not been seen."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[float, StoredDataset]:
    """600 training and 1,000 evaluation images of 18x18 pixels, by conflict ratio."""
    root, mnist = tmp_path_factory.mktemp("data"), glyph_mnist(600, 1000)
    return {
        ratio: make_coloured_mnist(
            mnist, coloured_mnist_folder(root, ratio, 4), ratio=ratio, severity=4, seed=0, replace=False
        )
        for ratio in RATIOS
    }


def prepared(datasets: dict[float, StoredDataset], out: Path, **changes: Any) -> list[Run]:
    """Two seeds by two ratios, three epochs of each stage, into `out`."""

    def config(seed: int, ratio: float) -> Config:
        options = {
            "dataset.root": str(datasets[ratio].path.parent), "dataset.ratio": ratio, "seed": seed, "out": str(out),
            "device": "cpu", "train_poe.epochs": 3, "distill.epochs": 3,
        }  # fmt: skip
        return load(preset_path("coloredmnist"), (), {**options, **changes})

    return [(config(seed, ratio), datasets[ratio]) for seed, ratio in RUNS]


def stage_2(runs: list[Run]) -> list[tuple[Any, ...]]:
    paths = [stages.run_path(*run) for run in runs]
    return [(*run, finished_stage_1(path), path) for run, path in zip(runs, paths, strict=True)]


def together_1(runs: list[Run], **how: Any) -> list[tuple[int, Event | Failed]]:
    return list(together.train_poe_together(runs, How(**how)))


def folders(runs: list[Run], stage: str = "train-poe") -> list[Path]:
    return [stages.run_path(*run) / stage for run in runs]


@pytest.fixture(scope="module")
def alone(datasets: dict[float, StoredDataset], tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Both stages of every run, one by one."""
    runs = prepared(datasets, tmp_path_factory.mktemp("alone"))
    for run in runs:
        assert isinstance([*stages.train_poe(*run)][-1], Finished)
    for arguments in stage_2(runs):
        assert isinstance([*stages.distill(*arguments)][-1], Finished)
    return runs


WALL_TIME_AND_FOLDERS = {"seconds", "training_seconds", "out", "sha256"}


def like(found: Any, expected: Any) -> None:
    """Equal but for rounding in float64."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected.keys() - WALL_TIME_AND_FOLDERS:
            like(found[key], expected[key])
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9)
    else:
        assert found == expected


def same_run(found: Path, expected: Path) -> None:
    """Files, lines of metrics.jsonl, results, and the checkpoint of each rule."""
    assert sorted(file.name for file in found.iterdir()) == sorted(file.name for file in expected.iterdir())
    for name in ("metrics.jsonl", "results.json"):
        ours, theirs = ((folder / name).read_text() for folder in (found, expected))
        lines = zip(ours.splitlines(), theirs.splitlines(), strict=True) if "jsonl" in name else [(ours, theirs)]
        for one, other in lines:
            like(json.loads(one), json.loads(other))
    for rule in ("last", "valid", "paper"):
        (tensors, said), (wanted, told) = (
            checkpoint.load(folder / f"{rule}.safetensors") for folder in (found, expected)
        )
        like(said, told)
        torch.testing.assert_close(tensors, wanted, rtol=1e-9, atol=1e-9)


def test_runs_are_what_they_are_alone(datasets: dict[float, StoredDataset], alone: list[Run], tmp_path: Path) -> None:
    runs, stream = prepared(datasets, tmp_path), torch.get_rng_state()
    events = together_1(runs)
    assert torch.equal(torch.get_rng_state(), stream)
    for number, run in enumerate(runs):
        own = [event for place, event in events if place == number]
        done = [event.record["epoch"] for event in own if isinstance(event, EpochDone)]
        assert isinstance(own[0], Began)
        assert own[0].folder == folders([run])[0]
        assert done == [1, 2, 3]
        assert isinstance(own[-1], Finished)
        assert not own[-1].already
    for found, expected in zip(folders(runs), folders(alone), strict=True):
        same_run(found, expected)

    for number, (run, teacher) in enumerate(zip(runs, folders(alone), strict=True)):  # the same teachers
        shutil.rmtree(folders(runs)[number])
        shutil.copytree(teacher, stages.run_path(*run) / "train-poe")
    assert sum(isinstance(event, Finished) for _, event in together.distill_together(stage_2(runs), How())) == 4
    for found, expected in zip(folders(runs, "distill"), folders(alone, "distill"), strict=True):
        same_run(found, expected)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event after every step."""
    monkeypatch.setattr("denetdm_cli.training.trainer._SECONDS_BETWEEN_EVENTS", 0.0)


def stopped_at(events: Iterator[Any], here: Callable[[Any], bool]) -> list[Any]:
    """Events up to one at which a signal comes."""
    seen = []

    def follow() -> None:
        for event in events:
            seen.append(event)
            if here(event):
                signal.raise_signal(signal.SIGTERM)

    with stopping.listening(), pytest.raises(stopping.Stopped):
        follow()
    return seen


def at_step(steps: int, epoch: int) -> Callable[[Any], bool]:
    """Whether an event, alone or with the number of its run, is after so many steps of 64 images."""

    def here(event: Any) -> bool:
        event = event[1] if isinstance(event, tuple) else event
        return isinstance(event, Progress) and (event.epoch, event.images) == (epoch, 64 * steps)

    return here


def test_runs_stopped_within_an_epoch_go_on_alone_or_together(
    datasets: dict[float, StoredDataset], alone: list[Run], tmp_path: Path, impatient: None
) -> None:
    runs = prepared(datasets, tmp_path)
    seen = stopped_at(together.train_poe_together(runs, How()), at_step(4, epoch=2))
    assert [number for number, event in seen if at_step(4, epoch=2)(event)] == [0, 1, 2, 3]
    stopped = prepared(datasets, tmp_path / "alone")
    for run, folder, other in zip(stopped, folders(runs), folders(stopped), strict=True):
        stopped_at(stages.train_poe(*run), at_step(4, epoch=2))
        (tensors, facts), (wanted, known) = (checkpoint.load(one / "resume.safetensors") for one in (folder, other))
        assert (facts["epoch"], len(facts["sizes"]), len(tensors["losses"])) == (1, 4, 4)
        like(facts, known)
        torch.testing.assert_close(tensors, wanted, rtol=1e-9, atol=1e-9)
    assert isinstance([*stages.train_poe(*runs[0], How("must"))][-1], Finished)
    events = together_1(runs, resume="auto")
    assert [event.already for number, event in events if isinstance(event, Finished) and number == 0] == [True]
    assert {event.first_epoch for _, event in events if isinstance(event, Began)} == {2}
    for found, expected in zip(folders(runs), folders(alone), strict=True):
        same_run(found, expected)


def test_a_signal_before_the_training_ends_the_preparation(
    datasets: dict[float, StoredDataset], tmp_path: Path
) -> None:
    runs = prepared(datasets, tmp_path)
    seen = stopped_at(together.train_poe_together(runs, How()), lambda event: event[0] == 1)
    assert [number for number, _ in seen] == [0, 1]
    assert not any((folder / "resume.safetensors").exists() for folder in folders(runs))


def test_runs_stopped_alone_go_on_together_and_those_ahead_wait(
    datasets: dict[float, StoredDataset], alone: list[Run], tmp_path: Path, impatient: None
) -> None:
    runs = prepared(datasets, tmp_path)
    for run, (steps, epoch) in zip(runs[:3], [(3, 1), (3, 3), (5, 3)], strict=True):
        stopped_at(stages.train_poe(*run), at_step(steps, epoch))
    events = together_1(runs)
    done = [(number, event.record["epoch"]) for number, event in events if isinstance(event, EpochDone)]
    assert [set(done[:1]), set(done[1:2]), set(done[2:4]), set(done[4:6]), *done[6:]] == [
        {(3, 1)}, {(0, 1)}, {(0, 2), (3, 2)}, {(0, 3), (3, 3)}, (1, 3), (2, 3),
    ]  # fmt: skip
    for found, expected in zip(folders(runs), folders(alone), strict=True):
        same_run(found, expected)


def test_a_signal_during_the_evaluation_loses_no_step(
    datasets: dict[float, StoredDataset], alone: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = prepared(datasets, tmp_path)
    measure, calls = Evaluation.measure, []

    def stopping_at_the_sixth(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGTERM)
        return measure(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "measure", stopping_at_the_sixth)
        stopped_at(together.train_poe_together(runs, How()), lambda event: False)
    for folder in folders(runs):
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
        assert len(checkpoint.load(folder / "resume.safetensors")[1]["sizes"]) == 9
    together_1(runs)
    for found, expected in zip(folders(runs), folders(alone), strict=True):
        same_run(found, expected)


def test_a_run_that_fails_leaves_the_others_alone(
    datasets: dict[float, StoredDataset], alone: list[Run], tmp_path: Path
) -> None:
    """One is held by another process, one has a weight that is not finite; the others come to their end."""
    runs = prepared(datasets, tmp_path)
    for place, event in together.train_poe_together(runs, How()):
        if place == 3 and isinstance(event, EpochDone):
            break
    state = folders(runs)[1] / "resume.safetensors"
    tensors, facts = checkpoint.load(state)
    tensors["model.head.bias"][0] = float("nan")
    facts.pop("format_version")
    checkpoint.save(state, tensors, facts)
    spoilt = state.read_bytes()
    with folder_lock(folders(runs)[2]) as free:
        assert free
        events = together_1(runs)
    failed = {number: event.error for number, event in events if isinstance(event, Failed)}
    assert failed.keys() == {1, 2}
    assert isinstance(failed[1], NumericError)
    assert "'poe' became nan in epoch 2, step 1" in failed[1].what
    assert isinstance(failed[2], CheckpointError)
    assert "another process" in failed[2].what
    assert state.read_bytes() == spoilt
    assert not any(isinstance(event, EpochDone) for number, event in events if number in failed)
    for number in (0, 3):
        same_run(folders(runs)[number], folders(alone)[number])


def test_outputs_that_are_not_finite_fail_the_run_alone(
    datasets: dict[float, StoredDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = prepared(datasets, tmp_path)
    measure = Evaluation.measure

    def refusing(self: Evaluation, method: Any, epoch: int, *rest: Any) -> Any:
        if epoch == 2 and method.model is models[0]:
            raise NumericError("the outputs are no longer finite after the last step of epoch 2")
        models.append(method.model)
        return measure(self, method, epoch, *rest)

    models: list[Any] = []
    monkeypatch.setattr(Evaluation, "measure", refusing)
    events = together_1(runs)
    assert [number for number, event in events if isinstance(event, Failed)] == [0]
    assert sorted(number for number, event in events if isinstance(event, Finished)) == [1, 2, 3]


def test_runs_on_fewer_images_are_trained_after_the_others(
    datasets: dict[float, StoredDataset], alone: list[Run], tmp_path: Path
) -> None:
    small = make_coloured_mnist(
        glyph_mnist(400, 1000), coloured_mnist_folder(tmp_path, 0.2, 4), ratio=0.2, severity=4, seed=0, replace=False
    )
    first, *_ = prepared(datasets, tmp_path)
    options = {"dataset.root": str(tmp_path), "dataset.ratio": 0.2, "out": str(tmp_path), "device": "cpu"}
    other = load(preset_path("coloredmnist"), (), {**options, "train_poe.epochs": 3, "distill.epochs": 3})
    events = together_1([(other, small), first])
    done = [(number, event.record["images"]) for number, event in events if isinstance(event, EpochDone)]
    assert done == [(0, 384)] * 3 + [(1, 576)] * 3
    same_run(folders([first])[0], folders(alone)[0])


def test_runs_share_their_images(
    datasets: dict[float, StoredDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, init = [], Batches.__init__

    def noting(self: Batches, *arguments: Any, **options: Any) -> None:
        made.append(self)
        init(self, *arguments, **options)

    monkeypatch.setattr(Batches, "__init__", noting)
    together_1(prepared(datasets, tmp_path, **{"train_poe.epochs": 1}))
    assert len(made) == 2 * len(RATIOS)


def test_minutes_write_the_states_within_an_epoch(
    datasets: dict[float, StoredDataset], tmp_path: Path, impatient: None
) -> None:
    runs = prepared(datasets, tmp_path, checkpoint_minutes=1e-9)
    events = together.train_poe_together(runs, How())
    next(event for event in events if at_step(3, epoch=1)(event))
    assert [len(checkpoint.load(folder / "resume.safetensors")[1]["sizes"]) for folder in folders(runs)] == [2] * 4
    events.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train_poe.epochs": 4}, "train_poe.epochs differs: 3 and 4"),
        ({"device": "auto"}, "device differs"),
    ],
)
def test_different_settings_are_not_trained_together(
    datasets: dict[float, StoredDataset], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    configs = [config for config, _ in prepared(datasets, tmp_path)]
    assert together.why_not_together(configs) is None
    others = [config for config, _ in prepared(datasets, tmp_path, **changes)]
    assert reason in str(together.why_not_together([configs[0], others[1]]))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["data.horizontal_flip=true"], "augmented"),
        (["model.shallow={name: cnn, depth: 3, width: 100}"], "no mlp"),
        (["data.cache=stream"], "data.cache is stream"),
        (["compute.precision=bf16"], "bf16"),
        (["compute.compile=true"], "torch.compile"),
    ],
)
def test_what_is_not_trained_together_alike(settings: list[str], reason: str) -> None:
    config = load(preset_path("coloredmnist"), settings, {})
    assert reason in str(together.why_not_together([config, config.model_copy(update={"seed": 1})]))

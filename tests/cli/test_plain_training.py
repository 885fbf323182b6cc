"""Whole stages with batch normalisation, augmentation and normalised images, beside bare PyTorch loops."""

import csv
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import good, models
from own_images import table
from plain_training import Epoch, Images, by_group, stage_1, stage_2
from torch import Tensor
from torchvision.models import shufflenet_v2_x0_5

from denetdm_cli.data.store import open_dataset
from denetdm_cli.evaluation.evaluator import divide
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel
from denetdm_cli.training import checkpoint, stages
from denetdm_cli.training.events import EpochEvaluated, Event
from denetdm_cli.training.run_folder import RunFolder, finished_stage

pytestmark = pytest.mark.slow

GROUPS = {"train": [[2, 3, 9], [8, 4, 2]], "test": [[4, 4, 4], [4, 4, 4]]}
STAGES = ("train-poe", "distill")
EPOCHS = 2


def networks(shallow: str, deep: str, target: str) -> tuple[str, ...]:
    given = {"shallow": shallow, "deep": deep, "target": target}
    return tuple(word for name, network in given.items() for word in ("--set", f"model.{name}={{name: {network}}}"))


MLPS = networks("mlp, depth: 2, width: 64", "mlp, depth: 4, width: 64", "mlp, depth: 3, width: 64")
KINDS = {
    "augmented": networks("cnn, depth: 3, width: 64", "cifar_resnet, depth: 8", "cifar_resnet, depth: 8"),
    "plain": (*MLPS, "--set", "data.random_crop_padding=0", "--set", "data.horizontal_flip=false"),
}
"""Networks with batch normalisation on augmented images; others on images that never change."""


@dataclass(frozen=True)
class Run:
    """A run of the program, and what the bare loops say that it must have come to."""

    folder: Path
    splits: dict[str, Images]
    aligned: list[int]
    expected: dict[str, list[Epoch]]
    start: dict[str, dict[str, Tensor]]

    def records(self, stage: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / stage / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Below it, `data/mine`: 28 training and 24 test images, each class tied to a bias value of another number."""
    folder = tmp_path_factory.mktemp("plain")
    source = table(folder / "images", GROUPS, ("path", "label", "bias", "split"), side=32)
    good("make-data", "folder", "--source", source, "--size", 32, "--data-root", folder / "data")
    return folder


def train(home: Path, *more: object, out: Path) -> None:
    words = ("--set", "dataset.folder=mine", "--set", "dataset.size=32", "--batch-size", 8, "--device", "cpu")
    good("train-poe", "--dataset", "folder", *words, "--data-root", home / "data", "--out", out, *more)


@pytest.fixture(scope="module", params=KINDS)
def run(home: Path, request: pytest.FixtureRequest) -> Run:
    """Both stages in batches of 8: three steps an epoch, then four, of which the last has four images."""
    out = home / str(request.param)
    train(home, *KINDS[request.param], "--seed", 3, "--epochs", EPOCHS, "--set", "train_poe.weight_decay=0.01", out=out)
    folder = out / "mine" / "seed3"
    own = {"learning_rate": 0.0015, "weight_decay": 0.02, "w_poe": 0.7, "w_dist": 1.3, "tau": 3.0}
    words = [word for key, value in own.items() for word in ("--set", f"distill.{key}={value}")]
    good("distill", folder, "--epochs", EPOCHS, "--batch-size", 8, *words)

    config = RunFolder(folder / "distill").config()
    splits = {name: Images.of(home / "data" / "mine" / name) for name in GROUPS}
    experts, first = stage_1(config, splits)
    expected = {"train-poe": first, "distill": stage_2(config, splits, experts)}
    fresh = {"train-poe": ProductOfExperts, "distill": TargetModel}
    start = {stage: kind(config.model, (3, 32, 32), 2, config.seed).state_dict() for stage, kind in fresh.items()}
    teacher, _ = checkpoint.load(folder / "train-poe" / "last.safetensors")
    start["distill"] |= {name: tensor for name, tensor in teacher.items() if name in start["distill"]}
    aligned = json.loads((home / "data" / "mine" / "manifest.json").read_text())["aligned"]
    assert aligned == [2, 0], "or ignoring it would not show"
    return Run(folder, splits, aligned, expected, start)


def entropy(logits: Tensor) -> float:
    """Mean entropy of a prediction, in units of the entropy of a coin."""
    probabilities = logits.softmax(dim=1)
    return float(-(probabilities * probabilities.log2()).sum(dim=1).mean())


@pytest.mark.parametrize("stage", STAGES)
def test_weights_and_running_statistics_end_where_the_bare_loop_ends(run: Run, stage: str) -> None:
    found, _ = checkpoint.load(run.folder / stage / "last.safetensors")
    expected, start = run.expected[stage][-1].tensors, run.start[stage]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if stage == "distill" and name.startswith("deep."):
            assert found[name].equal(start[name]), name
            continue
        moved = (tensor.double() - start[name]).norm()
        # Rounding makes a difference of 1 % of the way at most.
        assert (found[name].double() - tensor).norm() < 0.05 * moved, name


@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_those_of_the_bare_loop(run: Run, stage: str) -> None:
    for record, epoch in zip(run.records(stage), run.expected[stage], strict=True):
        assert record["losses"] == pytest.approx({**epoch.losses, "total": sum(epoch.losses.values())}, rel=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_figures_of_every_epoch_are_those_of_the_bare_loop(run: Run, stage: str) -> None:
    test = run.splits["test"]
    held, rest = divide(test.target.numpy(), np.array(test.bias))
    parts = {"evaluation": range(len(test.bias)), "valid": held.tolist(), "test": rest.tolist()}
    for record, epoch in zip(run.records(stage), run.expected[stage], strict=True):
        for part, rows in parts.items():
            for name in ("shallow", "deep", "product") if stage == "train-poe" else ("target",):
                found = by_group(epoch.logits["test"][name].argmax(dim=1), test, run.aligned, rows)
                assert {key: record[part][name][key] for key in found} == pytest.approx(found), (part, name)


def test_signs_of_separation_are_those_of_the_bare_loop(run: Run) -> None:
    """In evaluation mode, on training images as they are and on those of the evaluation split."""
    for record, epoch in zip(run.records("train-poe"), run.expected["train-poe"], strict=True):
        for sign, split in (("train", "train"), ("evaluation", "test")):
            found, logits, target = record["separation"][sign], epoch.logits[split], run.splits[split].target
            answers = {name: part.argmax(dim=1) for name, part in logits.items()}
            right = {name: float((answer == target).double().mean()) for name, answer in answers.items()}
            assert found["accuracy"] == pytest.approx(right)
            assert found["disagreement"] == pytest.approx(
                float((answers["shallow"] != answers["deep"]).double().mean())
            )
            expected = {name: entropy(logits[name]) for name in ("shallow", "deep")}
            assert found["entropy"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("split", ["train", "evaluation"])
@pytest.mark.parametrize("stage", STAGES)
def test_evaluate_gives_the_probabilities_of_the_bare_loop(run: Run, tmp_path: Path, stage: str, split: str) -> None:
    good("evaluate", run.folder / stage, "--split", split, "--predictions", "p.csv", "--device", "cpu")
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    for name, logits in run.expected[stage][-1].logits["test" if split == "evaluation" else "train"].items():
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        assert [int(row[f"predicted_{name}"]) for row in rows] == predicted.tolist()
        assert [float(row[f"confidence_{name}"]) for row in rows] == pytest.approx(confidence.tolist(), abs=0.003)


def stopped_after_an_epoch(events: Iterator[Event]) -> None:
    """Drop a stage as a kill would."""
    assert isinstance(events, Generator)
    next(event for event in events if isinstance(event, EpochEvaluated))
    events.close()


@pytest.mark.parametrize("stage", STAGES)
def test_stopped_and_resumed_it_is_the_same_run(run: Run, home: Path, tmp_path: Path, stage: str) -> None:
    config = RunFolder(run.folder / stage).config().model_copy(update={"out": str(tmp_path / "runs")})
    dataset = open_dataset(home / "data" / "mine")
    folder = tmp_path / "runs" / "mine" / "seed3"

    def events(resume: stages.Resume) -> Iterator[Event]:
        if stage == "train-poe":
            return stages.train("train-poe", config, dataset, options=stages.RunOptions(resume))
        return stages.train(
            "distill",
            config,
            dataset,
            teacher_folder=finished_stage(run.folder, "train-poe"),
            out=folder,
            options=stages.RunOptions(resume),
        )

    stopped_after_an_epoch(events("never"))
    done = [event.record["epoch"] for event in events("must") if isinstance(event, EpochEvaluated)]
    assert done == [2]
    assert models(folder / stage) == models(run.folder / stage), "bit for bit"


STARTING = "shufflenet_v2_x0_5, weights: weights.pth, width: 64"
STILL = ("--set", "train_poe.learning_rate=1e-50", "--set", "distill.learning_rate=1e-50")
"""Steps of no length: what is learnt stays what it was at the start."""


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Tensor]:
    """What the file `weights.pth` holds."""
    torch.manual_seed(11)
    state: dict[str, Tensor] = shufflenet_v2_x0_5(weights=None).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    return state


def test_each_stage_starts_from_the_weights_it_is_given(home: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    train(home, *networks("mlp, depth: 2, width: 64", STARTING, STARTING), *STILL, "--epochs", 1, out=tmp_path)
    run = tmp_path / "mine" / "seed0"
    good("distill", run, "--epochs", 1, "--batch-size", 8)
    first, second = (checkpoint.load(run / stage / "last.safetensors")[0] for stage in STAGES)
    learnt = [name for name in weights if name.endswith(("weight", "bias")) and not name.startswith("fc.")]
    assert len(learnt) > 100
    for name in learnt:
        assert first[f"deep.{name}"].equal(weights[name]), name
        assert second[f"target.{name}"].equal(weights[name]), name
    for name in (name for name in first if name.startswith(("deep.", "head."))):
        assert first[name].equal(second[name]), name


@pytest.mark.usefixtures("weights")
def test_a_resumed_run_needs_no_start_weights_and_names_those_it_had(home: Path, tmp_path: Path) -> None:
    words = (*networks("mlp, depth: 2, width: 64", STARTING, "mlp, depth: 2, width: 64"), "--epochs", 2)
    train(home, *words, out=tmp_path / "whole")
    whole = RunFolder(tmp_path / "whole" / "mine" / "seed0" / "train-poe")
    config = whole.config().model_copy(update={"out": str(tmp_path / "resumed")})
    stopped_after_an_epoch(stages.train("train-poe", config, open_dataset(home / "data" / "mine")))
    (tmp_path / "weights.pth").unlink()
    train(home, *words, "--resume", "must", out=tmp_path / "resumed")
    resumed = RunFolder(tmp_path / "resumed" / "mine" / "seed0" / "train-poe")
    assert resumed.results()["start_weights"]["deep"]["file"] == "weights.pth"
    assert models(resumed.path) == models(whole.path), "bit for bit"

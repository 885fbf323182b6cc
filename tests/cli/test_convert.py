"""Files of the official code to checkpoints and back as a user does it, and what `evaluate` says of them."""

import csv
import json
import os
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cli_support import call, contents, good, refused
from official_reference import CLASSES, SIX, SIZES, Reference
from torch import Tensor

from denetdm_cli.training import checkpoint

SETTINGS = {"product": (1, 1), "debiased": (1, 0), "biased": (0, 1)}
"""Of the official evaluation: the weights of debias_branch and bias_branch."""
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Case(NamedTuple):
    dataset: str
    stage: str
    reference: Reference
    folder: Path

    @property
    def theirs(self) -> Path:
        return self.folder / "debiased_model.th"

    @property
    def ours(self) -> Path:
        return self.folder / "debiased_model.safetensors"

    @property
    def predictors(self) -> dict[str, str]:
        """Our name of each setting."""
        return {
            "product": "product",
            "debiased": "shallow" if self.stage == "train-poe" else "target",
            "biased": "deep",
        }


@pytest.fixture(scope="module", params=SIX, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One of the six files that the official code writes, converted."""
    dataset, stage = request.param
    made = Case(dataset, stage, Reference(dataset, stage), tmp_path_factory.mktemp("official"))
    torch.save(made.reference.state_dict(), made.theirs)
    outcome = good("convert", made.theirs)
    assert outcome.out == f"{made.ours}\n"
    number = {"train-poe": 1, "distill": 2}[stage]
    assert outcome.err == f"{made.theirs}: the stage {number} model of {dataset}\n"
    return made


def test_there_and_back_it_is_the_same(case: Case) -> None:
    outcome = good("convert", case.ours, "--to", "official", "-o", "back.th")
    assert outcome.out == "back.th\n"
    found, expected = torch.load("back.th", weights_only=True), case.reference.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    Reference(case.dataset, case.stage, seed=1).load_state_dict(found, strict=True)
    size = case.theirs.stat().st_size
    assert Path("back.th").stat().st_size < 1.01 * size + 20_000, "the ResNet-18 is stored once"


def lff_folder(case: Case, logits: dict[str, Tensor], pixels: np.ndarray) -> np.ndarray:
    """A data set as LfF's code makes it: every group is there, and a good part of the images is right."""
    random, classes = np.random.RandomState(1), CLASSES[case.dataset]
    attributes = np.stack([np.arange(len(pixels)) % classes, np.arange(len(pixels)) // classes % classes], axis=1)
    half = np.arange(len(pixels)) >= classes**2
    attributes[half, 0] = logits["debiased"].argmax(1).numpy()[half]
    attributes[half, 1] = random.randint(0, classes, half.sum())
    for split in ("train", "valid"):
        Path("lff", split).mkdir(parents=True)
        np.save(f"lff/{split}/images.npy", pixels)
        np.save(f"lff/{split}/attrs.npy", attributes.astype(np.uint8))
        Path(f"lff/{split}/attr_names.pkl").write_bytes(pickle.dumps(["target", "bias"]))
    return attributes


def group_averages(predicted: np.ndarray, attributes: np.ndarray, classes: int) -> dict[str, float]:
    """Accuracies as the official code has them: by group, then averaged."""
    table = np.zeros((classes, classes))
    for target, bias in np.ndindex(classes, classes):
        table[target, bias] = (predicted == target)[(attributes == [target, bias]).all(axis=1)].mean()
    diagonal = np.eye(classes, dtype=bool)
    return {"unbiased": table.mean(), "aligned": table[diagonal].mean(), "conflicting": table[~diagonal].mean()}


@pytest.mark.slow
def test_the_numbers_are_those_of_the_official_evaluation(case: Case) -> None:
    size, classes = SIZES[case.dataset], CLASSES[case.dataset]
    count = 2 * classes**2
    tint = np.random.RandomState(0).randint(0, 256, (count, 1, 1, 3))
    noise = np.random.RandomState(1).randint(-60, 60, (count, size, size, 3))
    pixels = (tint + noise).clip(0, 255).astype(np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    if case.dataset != "coloredmnist":
        x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    loaded = checkpoint.load_method(case.ours, torch.device("cpu"))
    with torch.inference_mode():
        debias, bias = case.reference.features(x)
        expected = {setting: case.reference.classifier(a * debias + b * bias) for setting, (a, b) in SETTINGS.items()}
        found = loaded.method.predict_all(x)
    for setting, name in case.predictors.items():
        torch.testing.assert_close(found[name], expected[setting], rtol=1e-5, atol=1e-5)

    attributes = lff_folder(case, expected, pixels)
    out = good("evaluate", case.ours, "--data", "lff", "--device", "cpu", "--json", "--predictions", "p.csv").out
    (result,) = json.loads(out)["results"]
    assert result["evaluated_on"]["images"] == count
    with Path("p.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    for setting, name in case.predictors.items():
        predicted = expected[setting].argmax(1).numpy()
        averages = group_averages(predicted, attributes, classes)
        assert {key: result["metrics"][name][key] for key in averages} == pytest.approx(averages, abs=1e-9)
        assert [int(row[f"predicted_{name}"]) for row in rows] == predicted.tolist()
        confidences = [float(row[f"confidence_{name}"]) for row in rows]
        assert confidences == pytest.approx(expected[setting].softmax(1).amax(1).tolist(), abs=1e-5)
    assert 0.1 < result["metrics"][case.predictors["debiased"]]["unbiased"] < 1


@pytest.fixture
def th() -> Path:
    torch.save(Reference("coloredmnist", "train-poe").state_dict(), "a.th")
    return Path("a.th")


def test_an_existing_file_that_differs_is_left(th: Path) -> None:
    assert good("convert", th).out == "a.safetensors\n"
    before = contents(Path())
    good("convert", th)
    good("convert", "a.safetensors")
    assert contents(Path()) == before, "what is the same is done"
    torch.save(Reference("coloredmnist", "distill").state_dict(), "b.th")
    refused(4, call("convert", "b.th", "-o", "a.safetensors"), "a.safetensors", "--force")
    refused(4, call("convert", "a.safetensors", "-o", "b.th"), "b.th", "--force")
    assert contents(Path()).items() >= before.items()
    good("convert", "b.th", "-o", "a.safetensors", "--force")
    assert contents(Path())["a.safetensors"] != before["a.safetensors"]


def test_a_file_is_never_converted_onto_itself(th: Path) -> None:
    good("convert", th)
    before = contents(Path())
    refused(4, call("convert", th, "-o", th, "--force"), "is the file to convert")
    refused(4, call("convert", th, "--to", "official"), "a.th", "denetdm convert")
    refused(4, call("convert", "a.safetensors", "--to", "ours"), "a.safetensors", "needs no conversion")
    Path("folder").mkdir()
    refused(4, call("convert", th, "-o", "folder"), "is a folder")
    assert contents(Path()) == before


@pytest.mark.parametrize("options", [(), ("--to", "official"), ("--to", "ours")])
def test_of_a_run_folder_a_checkpoint_is_named(finished_run: Path, options: tuple[str, ...]) -> None:
    kept = finished_run / "distill" / "last.safetensors"
    assert kept.is_file()
    outcome = call("convert", finished_run, "--out", "a.th", *options)
    refused(4, outcome, f"{finished_run} is a run folder", f"such as {kept}.")
    assert not Path("a.th").exists()


def test_the_copies_of_the_resnet_must_be_one() -> None:
    state = Reference("corruptedcifar10", "distill").state_dict()
    copy = "debias_branch.b1.layer1.0.conv1.weight"
    torch.save({**state, copy: state[copy] + 1}, "a.th")
    refused(4, call("convert", "a.th"), "debias_backbone.layer1.0.conv1.weight", copy, "differ")
    assert list(Path().iterdir()) == [Path("a.th")]


class Code:
    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path(os.environ["RAN"]),)


def _write(kind: str, path: Path) -> None:
    state = Reference("coloredmnist", "train-poe").state_dict()
    if kind == "code":
        torch.save({**state, "more": Code()}, path)
    elif kind == "another":
        torch.save({**state, "more": torch.ones(1), "classifier.bias": torch.ones(3)}, path)
    elif kind == "cut":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "page":
        path.write_text("<html>quota exceeded</html>")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("code", ["could run code", "nothing in it was run"]),
        ("another", ["stage 1", "extra: more", "classifier.bias is float32[3], not float32[10]"]),
        ("cut", ["cut short or damaged"]),
        ("page", ["is a web page"]),
        ("missing", ["no file a.th"]),
    ],
)
def test_what_cannot_be_converted_leaves_nothing(kind: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAN", "ran")
    _write(kind, Path("a.th"))
    before = list(Path().iterdir())
    refused(4, call("convert", "a.th", "-o", "made/for/it.safetensors"), "a.th", *words)
    assert list(Path().iterdir()) == before

"""The Python interface: what the commands do, as functions."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests_support import glyph_mnist

import denetdm_cli as denetdm
from denetdm_cli.data.synthetic.colored_mnist import make_colored_mnist
from denetdm_cli.training.events import EpochEvaluated


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    """A tiny Colored MNIST that is there, and short trainings."""
    path = tmp_path / "data" / "ColoredMNIST-Skewed0.1-Severity4"
    make_colored_mnist(glyph_mnist(200, 300), path, ratio=0.1, severity=4, seed=0, replace=False)
    return {
        "dataset.root": str(tmp_path / "data"), "dataset.ratio": 0.1, "out": str(tmp_path / "runs"),
        "device": "cpu", "erm.epochs": 2, "erm.batch_size": 64, "train_poe.epochs": 1, "distill.epochs": 1,
    }  # fmt: skip


def test_the_public_names_are_few_and_lazy() -> None:
    names = [name for name in dir(denetdm) if not name.startswith("_")]
    assert len(names) <= 10
    assert all(callable(getattr(denetdm, name)) for name in names)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = denetdm.nonsense  # type: ignore[attr-defined]


def test_lists() -> None:
    assert set(denetdm.list_methods()) >= {"erm", "train-poe", "distill"}
    assert "coloredmnist" in denetdm.list_presets()


def test_train_evaluate_predict_and_export(
    settings: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = {key: value for key, value in settings.items() if key.startswith("dataset.")}
    dataset = denetdm.make_dataset("coloredmnist", data)
    assert denetdm.load_dataset(dataset.path).digest == dataset.digest
    events: list[object] = []
    folder = denetdm.train("erm", "coloredmnist", settings, on_event=events.append)
    assert folder == tmp_path / "runs" / dataset.path.name / "seed0" / "erm"
    assert sum(isinstance(event, EpochEvaluated) for event in events) == 2

    document = denetdm.evaluate(folder, device="cpu")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert document["results"][0]["metrics"] == results["rules"]["last"]["metrics"]

    Image.fromarray(np.array(dataset.evaluation.images[0])).save(tmp_path / "one.png")
    (found,) = denetdm.predict(folder, tmp_path / "one.png", device="cpu")
    assert found["class"] in dataset.class_names
    assert sum(found["probabilities"]) == pytest.approx(1)
    assert {path.name for path in denetdm.export(folder, tmp_path / "out")} >= {"model.safetensors", "config.json"}
    assert capfd.readouterr() == ("", ""), "nothing is printed"


def test_what_a_method_starts_from_is_trained_first(settings: dict[str, object]) -> None:
    folder = denetdm.train("distill", "coloredmnist", settings)
    assert (folder.name, (folder.parent / "train-poe" / "results.json").is_file()) == ("distill", True)
    model = denetdm.load(folder, device="cpu")
    assert model.metadata["stage"] == "distill"
    assert len(model.class_names) == 10

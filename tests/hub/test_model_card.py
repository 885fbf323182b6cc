"""The model card, and its code, which loads the model without this program."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import CLASSES, MLP, NETWORKS, make_checkpoint, read_card
from PIL import Image
from shipping import METRICS, Listener, config_for, dataset_facts, save_checkpoint

from denetdm_cli.evaluation.selection import provenance
from denetdm_cli.hub.export import export
from denetdm_cli.hub.predict import predict_files
from denetdm_cli.hub.target import load_target_checkpoint


def test_the_card(exported: Path) -> None:
    front, text = read_card(exported / "mlp")
    assert front["pipeline_tag"] == "image-classification"
    assert front["license"] == "unknown"
    assert "denetdm" in front["tags"]
    assert "onnx" not in front["tags"]
    (result,) = front["model-index"][0]["results"]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"type": "pets", "name": "pets", "split": "test"}
    assert result["metrics"][0] == {
        "type": "accuracy", "name": "Unbiased accuracy (mean over all groups)", "value": METRICS["target"]["unbiased"],
    }  # fmt: skip
    assert len(result["metrics"]) == 6
    assert "| class | indoors | out\\|doors |" in text
    assert "| dog | 50.00 | 100.00 |" in text
    assert "| &lt;b&gt;\\|\\`bird\\` | - | 12.30 |" in text
    assert "1 of 6 groups have no image there (-)" in text
    assert "Selection rule last: the last epoch, nothing selected." in text
    assert "SELECTED ON TEST DATA" not in text
    assert "digest " + "d" * 64 in text
    assert "- Seed: 3." in text
    assert "- Epoch: 7." in text
    assert "- Method `train-poe` (shallow: mlp of 2 layers, width 16, deep: mlp of 2 layers, width 16). Stage 1" in text
    assert "- Settings of distill: epochs 100, " in text
    assert "Training used no bias labels." in text
    assert "| Accuracy of the worst group | 50.00 (dog, indoors) |" in text
    assert "| Accuracy of the worst class | 70.00 (dog) |" in text
    assert "right in 95.00 %, the others in 55.00 %" in text


def test_the_card_says_what_picked_the_epoch(tmp_path: Path) -> None:
    stage_1 = provenance("paper", "shallow.conflicting", None)
    selection = provenance("paper", "target.unbiased", stage_1)
    checkpoint = make_checkpoint(tmp_path, "mlp", selection=selection, teacher={"epoch": 4})
    export(checkpoint, tmp_path / "out", onnx=False, reporter=Listener())
    front, text = read_card(tmp_path / "out")
    assert (
        "Selection rule paper: best target.unbiased on the part 'evaluation', its teacher by the rule paper, "
        "SELECTED ON TEST DATA, with bias labels of evaluation images." in text
    )
    assert "too good for a test" in text
    assert "- Epoch: 7, from a teacher of epoch 4." in text
    names = [metric["name"] for metric in front["model-index"][0]["results"][0]["metrics"]]
    assert all(name.endswith("(selected on test data)") for name in names)


def test_another_method_is_exported_and_described_too(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "mlp", stage="erm")
    export(path, tmp_path / "out", onnx=False, reporter=Listener())
    _, text = read_card(tmp_path / "out")
    assert "# mlp for pets, trained with erm" in text
    assert "- Method `erm` (target: mlp of 3 layers, width 16). ERM: plain cross-entropy, the baseline." in text
    assert "DeNetDM" not in text
    assert "- Settings of erm: epochs " in text


def test_a_converted_model_has_a_card_without_figures(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    facts = dataset_facts((12, 12), CLASSES, path=None, digest=None, evaluation_digest=None, recipe=None)
    source = {"file": "model.th", "sha256": "f" * 64}
    unknown: dict[str, Any] = {"metrics": None, "seed": None, "epoch": None, "versions": {}, "source": source}
    save_checkpoint(path, config_for(MLP), facts, **unknown)
    export(path, tmp_path / "out", onnx=False, reporter=Listener())
    front, text = read_card(tmp_path / "out")
    assert "model-index" not in front
    assert "No figures are kept with this model" in text
    assert "- Seed: not known." in text
    assert "converted from a file of the official code (file: model.th" in text
    assert "Epochs:" not in text
    assert "None" not in text.replace("image)[None]", "")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["resize"]["done_to_training_images"] is None


def test_without_bias_labels_there_are_no_groups(tmp_path: Path) -> None:
    metrics = dict.fromkeys(METRICS["target"]) | {"accuracy": 0.5, "worst_class": 0.25, "worst_class_of": 0}
    export(
        make_checkpoint(tmp_path, "mlp", metrics={"target": metrics}), tmp_path / "out", onnx=False, reporter=Listener()
    )
    front, text = read_card(tmp_path / "out")
    assert [metric["value"] for metric in front["model-index"][0]["results"][0]["metrics"]] == [0.5, 0.25]
    assert "no figures by group" in text
    assert "Whether it leans on a shortcut was not measured here." in text


_SUBPROCESS = r"""
import contextlib, io, os, re, sys
sys.modules["denetdm_cli"] = None  # so that importing it fails
for folder in sys.argv[1:]:
    os.chdir(folder)
    sys.path[0] = folder
    sys.modules.pop("network", None)
    names, out = {}, io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(re.findall(r"```python\n(.*?)```", open("README.md", encoding="utf-8").read(), flags=re.DOTALL)[0], names)
    open("printed.txt", "w", encoding="utf-8").write(out.getvalue())
    names["torch"].save(names["model"](names["torch"].load("x.pt")), "logits.pt")
"""


def _copy(exported: Path, folder: Path, name: str, image: Image.Image) -> Path:
    """An export with an image for the code of its card."""
    copy = shutil.copytree(exported / name, folder / name)
    image.save(copy / "image.jpg", format="PNG")  # lossless, whatever its name
    return copy


def _image(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(1).randint(0, 256, shape).astype(np.uint8))


def _same_probabilities(printed: str, exported: Path, name: str, image: Path) -> None:
    target = load_target_checkpoint(exported / f"{name}.safetensors", torch.device("cpu"))
    (prediction,) = predict_files(target, [image], Listener())
    found = eval(printed)
    assert list(found) == CLASSES
    assert list(found.values()) == pytest.approx(prediction.probabilities, abs=1e-5), name


def _run_card(folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """The output of the code of a card, and its model."""
    patch.chdir(folder)
    patch.syspath_prepend(folder)
    sys.modules.pop("network", None)
    code = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    assert "denetdm" not in code
    names: dict[str, Any] = {}
    capsys.readouterr()
    exec(code, names)
    return capsys.readouterr().out, names["model"]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_code_of_the_card_gives_the_numbers_of_the_checkpoint(
    exported: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _copy(exported, tmp_path, name, _image(50, 70, 3))
    printed, model = _run_card(folder, capsys, monkeypatch)
    _same_probabilities(printed, exported, name, folder / "image.jpg")
    x = torch.randn(3, 3, *NETWORKS[name][1])
    with torch.inference_mode():
        expected = load_target_checkpoint(exported / f"{name}.safetensors", torch.device("cpu")).model(x)
        assert torch.allclose(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "image"),
    [("RGBA", _image(50, 70, 4)), ("I;16", Image.fromarray(np.arange(3500, dtype=np.uint16).reshape(50, 70) * 18))],
)
def test_the_code_of_the_card_reads_every_image_as_predict_does(
    exported: Path,
    tmp_path: Path,
    mode: str,
    image: Image.Image,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert image.mode == mode
    folder = _copy(exported, tmp_path, "cnn", image)
    printed, _ = _run_card(folder, capsys, monkeypatch)
    _same_probabilities(printed, exported, "cnn", folder / "image.jpg")


@pytest.mark.slow
def test_the_code_of_the_card_runs_where_this_program_is_not_installed(exported: Path, tmp_path: Path) -> None:
    inputs = {name: torch.randn(3, 3, *size) for name, (_, size) in NETWORKS.items()}
    folders = {name: _copy(exported, tmp_path, name, _image(50, 70, 3)) for name in NETWORKS}
    for name, folder in folders.items():
        torch.save(inputs[name], folder / "x.pt")
    command = [sys.executable, "-c", _SUBPROCESS, *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, folder in folders.items():
        target = load_target_checkpoint(exported / f"{name}.safetensors", torch.device("cpu"))
        with torch.inference_mode():
            expected = target.model(inputs[name])
        assert torch.allclose(torch.load(folder / "logits.pt"), expected, rtol=1e-5, atol=1e-5), name
        _same_probabilities((folder / "printed.txt").read_text(encoding="utf-8"), exported, name, folder / "image.jpg")

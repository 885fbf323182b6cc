"""Exports to ONNX."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import CLASSES, make_checkpoint, read_card
from shipping import MEAN, STD, Listener

from denetdm_cli.hub import export as exporting
from denetdm_cli.hub.export import export
from denetdm_cli.hub.target import load_target_checkpoint
from denetdm_cli.utils.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def with_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx")
    with pytest.MonkeyPatch.context() as patch:
        noise: list[str] = []
        patch.setattr(sys.stdout, "write", noise.append)
        patch.setattr(sys.stderr, "write", noise.append)
        written = export(make_checkpoint(folder, "cnn"), folder / "out", onnx=True, reporter=Listener())
    assert not noise
    assert [path.name for path in written] == ["README.md", "config.json", "model.onnx", "model.safetensors"]
    return folder


@pytest.mark.slow
def test_onnx_takes_plain_images_of_any_number(with_onnx: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(with_onnx / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(float)", [3, 36, 36])
    assert gives.name == "logits"
    target = load_target_checkpoint(with_onnx / "cnn.safetensors", torch.device("cpu"))
    for count in (1, 2, 5):
        images = np.random.RandomState(count).rand(count, 3, 36, 36).astype(np.float32)
        (logits,) = session.run(None, {"images": images})
        x = (torch.from_numpy(images) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        with torch.inference_mode():
            assert logits == pytest.approx(target.model(x).numpy(), abs=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == CLASSES


def test_onnx_is_described_and_holds_no_path_of_this_machine(with_onnx: Path) -> None:
    front, text = read_card(with_onnx / "out")
    assert "onnx" in front["tags"]
    assert "float32 (batch, 3, 36, 36)" in text
    said = json.loads((with_onnx / "out" / "config.json").read_text(encoding="utf-8"))
    assert said["onnx"] == {"input": "images", "output": "logits", "normalisation": "inside"}
    assert "onnxruntime" in said["versions"]
    content = (with_onnx / "out" / "model.onnx").read_bytes()
    assert not re.search(rb"\.py\b|site-packages|denetdm_cli", content)


@pytest.mark.slow
def test_an_onnx_file_that_gives_other_logits_is_not_kept(
    with_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_ONNX_TOLERANCE", -1.0)
    with pytest.raises(CheckpointError, match=r"model\.onnx with onnxruntime, for 1 images, gives other logits"):
        export(with_onnx / "cnn.safetensors", tmp_path / "out", onnx=True, reporter=Listener())
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_turned_into_onnx(
    with_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ConfigError, match=r"cnn could not be turned into ONNX by torch .*: no such operator\n"):
        export(with_onnx / "cnn.safetensors", tmp_path / "out", onnx=True, reporter=Listener())
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_the_extra_is_refused(with_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError) as caught:
        export(with_onnx / "cnn.safetensors", tmp_path / "out", onnx=True, reporter=Listener())
    assert "pip install 'denetdm[onnx]'" in caught.value.fix
    assert list(tmp_path.iterdir()) == []

"""What is exported works without this program, says what it is, and never takes the place of something else."""

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
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from shipping import MEAN, METRICS, STD, Listener, config_for, dataset_facts, save_checkpoint
from torchvision import models

from denetdm_cli.evaluation.selection import provenance
from denetdm_cli.hub import export as exporting
from denetdm_cli.hub.export import export
from denetdm_cli.hub.portable import portable
from denetdm_cli.hub.predict import predict_files
from denetdm_cli.hub.target import load_target_checkpoint
from denetdm_cli.methods.denetdm.models import TargetModel
from denetdm_cli.utils.errors import CheckpointError, ConfigError, UserError

CLASSES = ["cat", "dog", "<b>|`bird`"]
MLP = {"name": "mlp", "depth": 3, "width": 16}
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "mlp": (MLP, (12, 10)),
    "cnn": ({"name": "cnn", "depth": 3, "width": 16}, (36, 36)),
    "cifar_resnet": ({"name": "cifar_resnet", "depth": 8}, (32, 32)),
    "projected": ({"name": "resnet18", "weights": None, "width": 64}, (32, 32)),
    "as_it_is": ({"name": "resnet18", "weights": None, "width": 512}, (32, 32)),
    "squeezenet": ({"name": "squeezenet1_1", "weights": None, "width": 24}, (40, 40)),
    "mnasnet": ({"name": "mnasnet0_5", "weights": None, "width": 24}, (32, 32)),
}
FILES = ["README.md", "config.json", "model.safetensors"]


def _make(folder: Path, name: str, **changes: Any) -> Path:
    target, size = NETWORKS[name]
    path = folder / f"{name}.safetensors"
    recipe = {"resized_to": size[0], "fit": "crop"} if name == "as_it_is" else {"resized_to": size[0], "fit": "stretch"}
    save_checkpoint(path, config_for(target), dataset_facts(size, CLASSES, recipe=recipe), **changes)
    return path


def _card(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export of every kind of network, beside its checkpoint."""
    folder = tmp_path_factory.mktemp("exports")
    for name in NETWORKS:
        written = export(_make(folder, name), folder / name, onnx=False, reporter=Listener())
        assert sorted(path.name for path in written) == sorted([*FILES, *["network.py"] * (name == "cifar_resnet")])
        assert all(path.is_file() for path in written)
    return folder


_RUNNER = r"""
import contextlib, io, json, os, re, sys
sys.modules["denetdm_cli"] = None  # so that importing it fails
found = {}
for folder in sys.argv[1:]:
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.modules.pop("network", None)
    code = re.findall(r"```python\n(.*?)```", open("README.md", encoding="utf-8").read(), flags=re.DOTALL)[0]
    names, out = {}, io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, names)
    found[os.path.basename(folder)] = {
        "printed": out.getvalue(),
        "logits": names["model"](names["torch"].load("x.pt")).tolist(),
    }
    sys.path.pop(0)
print(json.dumps(found))
"""


def test_the_code_of_the_card_gives_the_checkpoints_numbers_without_this_program(
    exported: Path, tmp_path: Path
) -> None:
    device, inputs = torch.device("cpu"), {}
    for name, (_, size) in NETWORKS.items():
        folder = tmp_path / name
        shutil.copytree(exported / name, folder)
        picture = np.random.RandomState(1).randint(0, 256, (50, 70, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / "image.png")
        (folder / "image.png").rename(folder / "image.jpg")  # without loss, though
        inputs[name] = torch.randn(3, 3, *size)
        torch.save(inputs[name], folder / "x.pt")
    folders = [str(tmp_path / name) for name in NETWORKS]
    done = subprocess.run([sys.executable, "-c", _RUNNER, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name in NETWORKS:
        shipped = load_target_checkpoint(exported / f"{name}.safetensors", device)
        with torch.inference_mode():
            expected = shipped.model(inputs[name])
        assert torch.allclose(torch.tensor(found[name]["logits"]), expected, rtol=1e-5, atol=1e-5), name
        (prediction,) = predict_files(shipped, [tmp_path / name / "image.jpg"], Listener())
        printed = eval(found[name]["printed"])
        assert list(printed) == CLASSES
        assert list(printed.values()) == pytest.approx(prediction.probabilities, abs=1e-5), name


def test_the_code_of_the_card_reads_every_image_as_predict_does(exported: Path, tmp_path: Path) -> None:
    random = np.random.RandomState(2)
    given = {
        "transparent": Image.fromarray(random.randint(0, 256, (50, 70, 4)).astype(np.uint8)),
        "grey16": Image.fromarray(random.randint(0, 1 << 16, (50, 70)).astype(np.uint16)),
    }
    assert [image.mode for image in given.values()] == ["RGBA", "I;16"]
    for name, image in given.items():
        shutil.copytree(exported / "cnn", tmp_path / name)
        image.save(tmp_path / name / "image.jpg", format="PNG")
        torch.save(torch.zeros(1, 3, *NETWORKS["cnn"][1]), tmp_path / name / "x.pt")
    folders = [str(tmp_path / name) for name in given]
    done = subprocess.run([sys.executable, "-c", _RUNNER, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shipped = load_target_checkpoint(exported / "cnn.safetensors", torch.device("cpu"))
    for name, found in json.loads(done.stdout).items():
        (prediction,) = predict_files(shipped, [tmp_path / name / "image.jpg"], Listener())
        assert list(eval(found["printed"]).values()) == pytest.approx(prediction.probabilities, abs=1e-6), name


@pytest.mark.parametrize(("name", "network"), [("projected", "resnet18"), ("as_it_is", "resnet18")])
def test_a_torchvision_network_has_torchvisions_state_dict(exported: Path, name: str, network: str) -> None:
    tensors = load_file(exported / name / "model.safetensors")
    theirs = models.get_model(network, num_classes=3)
    assert {key: t.shape for key, t in tensors.items()} == {key: t.shape for key, t in theirs.state_dict().items()}
    theirs.load_state_dict(tensors, strict=True)
    assert json.loads((exported / name / "config.json").read_text())["stock_architecture"]
    with safe_open(exported / name / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "architecture": network}


def test_projection_and_head_are_folded_in_double_precision(exported: Path) -> None:
    model = load_target_checkpoint(exported / "projected.safetensors", torch.device("cpu")).model
    inner, outer = model.target.get_submodule("fc"), model.head
    assert isinstance(inner, torch.nn.Linear)
    tensors = load_file(exported / "projected" / "model.safetensors")
    weight = outer.weight.double() @ inner.weight.double()
    bias = outer.weight.double() @ inner.bias.double() + outer.bias.double()
    assert torch.equal(tensors["fc.weight"], weight.float())
    assert torch.equal(tensors["fc.bias"], bias.float())
    assert tensors["fc.weight"].shape == (3, 512)


def test_a_network_that_changes_its_input_does_so_elsewhere_too() -> None:
    config = config_for({"name": "googlenet", "weights": "imagenet", "width": 24}).model
    model = TargetModel(config, (3, 16, 16), 3, seed=0).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # so that much of the input reaches the output
    made = portable(model, config.target, (3, 16, 16))
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(made.module(x), model(x), rtol=1e-4, atol=1e-5)
    built: dict[str, Any] = {"models": models}
    exec(made.code, built)
    built["model"].load_state_dict(made.module.state_dict())
    assert torch.allclose(built["model"].eval()(x), model(x), rtol=1e-4, atol=1e-5)


def test_names_of_the_plain_networks(exported: Path) -> None:
    names = {name: list(load_file(exported / name / "model.safetensors")) for name in NETWORKS}
    assert sorted(names["mlp"]) == ["1.bias", "1.weight", "3.bias", "3.weight", "5.bias", "5.weight"]
    assert {"conv1.weight", "bn3.running_var", "head.weight"} <= set(names["cnn"])
    assert {key.split(".")[0] for key in names["squeezenet"]} == {"target", "head"}
    assert {key.split(".")[0] for key in names["cifar_resnet"]} == {"target", "head"}
    assert not any("deep" in key for keys in names.values() for key in keys)


def test_config_json_says_what_images_it_takes(exported: Path) -> None:
    said = json.loads((exported / "mlp" / "config.json").read_text(encoding="utf-8"))
    assert said["class_names"] == CLASSES
    assert said["architecture"] == "mlp"
    assert said["input"] == {
        "channels": 3, "height": 12, "width": 10, "colours": "RGB", "scale": "pixel / 255", "mean": MEAN, "std": STD,
    }  # fmt: skip
    assert said["resize"]["fit"] == "stretch"
    assert said["resize"]["done_to_training_images"] is True
    assert json.loads((exported / "as_it_is" / "config.json").read_text())["resize"]["fit"] == "crop"
    assert said["source"] == {"file": "mlp.safetensors", "sha256": exporting.sha256(exported / "mlp.safetensors")}
    assert said["files"]["model.safetensors"]["sha256"] == exporting.sha256(exported / "mlp" / "model.safetensors")
    assert {"denetdm", "torch", "torchvision", "safetensors"} <= said["versions"].keys()
    assert not said["onnx"]


def test_the_card(exported: Path) -> None:
    front, text = _card(exported / "mlp")
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
    assert "100 of stage 2, of which this is epoch 7." in text
    assert "| Accuracy of the worst group | 50.00 (dog, indoors) |" in text
    assert "| Accuracy of the worst class | 70.00 (dog) |" in text
    assert "right in 95.00 %, the others in 55.00 %" in text


def test_the_card_says_what_picked_the_epoch(tmp_path: Path) -> None:
    stage_1 = provenance("paper", "shallow.conflicting", None)
    selection = provenance("paper", "target.unbiased", stage_1)
    checkpoint = _make(tmp_path, "mlp", selection=selection, teacher={"epoch": 4})
    export(checkpoint, tmp_path / "out", onnx=False, reporter=Listener())
    front, text = _card(tmp_path / "out")
    assert (
        "Selection rule paper: best target.unbiased on the part 'evaluation', its teacher by the rule paper, "
        "SELECTED ON TEST DATA, with bias labels of evaluation images." in text
    )
    assert "too good for a test" in text
    assert "10 of stage 1, of which epoch 4 is the teacher; " in text
    names = [metric["name"] for metric in front["model-index"][0]["results"][0]["metrics"]]
    assert all(name.endswith("(selected on test data)") for name in names)


def test_a_converted_model_has_a_card_without_figures(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    facts = dataset_facts((12, 12), CLASSES, path=None, digest=None, evaluation_digest=None, recipe=None)
    source = {"file": "model.th", "sha256": "f" * 64}
    unknown: dict[str, Any] = {"metrics": None, "seed": None, "epoch": None, "versions": {}, "source": source}
    save_checkpoint(path, config_for(MLP), facts, **unknown)
    export(path, tmp_path / "out", onnx=False, reporter=Listener())
    front, text = _card(tmp_path / "out")
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
    export(_make(tmp_path, "mlp", metrics={"target": metrics}), tmp_path / "out", onnx=False, reporter=Listener())
    front, text = _card(tmp_path / "out")
    assert [metric["value"] for metric in front["model-index"][0]["results"][0]["metrics"]] == [0.5, 0.25]
    assert "no figures by group" in text
    assert "Whether it leans on a shortcut was not measured here." in text


def test_nothing_tells_where_it_was_made(exported: Path) -> None:
    for file in exported.rglob("*"):
        if file.is_file() and file.parent != exported:
            content = file.read_bytes()
            assert b"/home/someone" not in content, file
            assert str(exported).encode() not in content, file


def test_the_same_checkpoint_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    export(exported / "mlp.safetensors", tmp_path / "again", onnx=False, reporter=Listener())
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (exported / "mlp" / name).read_bytes()


@pytest.fixture(scope="module")
def with_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx")
    with pytest.MonkeyPatch.context() as patch:
        noise: list[str] = []
        patch.setattr(sys.stdout, "write", noise.append)
        patch.setattr(sys.stderr, "write", noise.append)
        written = export(_make(folder, "cnn"), folder / "out", onnx=True, reporter=Listener())
    assert not noise
    assert [path.name for path in written] == ["README.md", "config.json", "model.onnx", "model.safetensors"]
    return folder


@pytest.mark.parametrize("count", [1, 2, 5])
def test_onnx_takes_plain_images_of_any_number(with_onnx: Path, count: int) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(with_onnx / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(float)", [3, 36, 36])
    assert gives.name == "logits"
    images = np.random.RandomState(count).rand(count, 3, 36, 36).astype(np.float32)
    (logits,) = session.run(None, {"images": images})
    x = (torch.from_numpy(images) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.inference_mode():
        expected = load_target_checkpoint(with_onnx / "cnn.safetensors", torch.device("cpu")).model(x)
    assert logits == pytest.approx(expected.numpy(), abs=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == CLASSES


def test_onnx_is_described_and_holds_no_path_of_this_machine(with_onnx: Path) -> None:
    front, text = _card(with_onnx / "out")
    assert "onnx" in front["tags"]
    assert "float32 (batch, 3, 36, 36)" in text
    said = json.loads((with_onnx / "out" / "config.json").read_text(encoding="utf-8"))
    assert said["onnx"] == {"input": "images", "output": "logits", "normalisation": "inside"}
    assert "onnxruntime" in said["versions"]
    content = (with_onnx / "out" / "model.onnx").read_bytes()
    assert not re.search(rb"\.py\b|site-packages|denetdm_cli", content)


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


def test_onnx_without_the_extra_is_refused(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError) as caught:
        export(exported / "mlp.safetensors", tmp_path / "out", onnx=True, reporter=Listener())
    assert "pip install 'denetdm[onnx]'" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def _refused(kind: type[UserError], words: str, checkpoint: Path, out: Path, *, force: bool = False) -> None:
    with pytest.raises(kind, match=words):
        export(checkpoint, out, onnx=False, force=force, reporter=Listener())


def test_a_checkpoint_of_stage_1_is_refused(tmp_path: Path) -> None:
    path = _make(tmp_path, "mlp", stage="train-poe")
    with pytest.raises(CheckpointError, match="stage-1 checkpoint") as caught:
        export(path, tmp_path / "out", onnx=False, reporter=Listener())
    assert "denetdm distill" in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    _refused(CheckpointError, "no checkpoint file", tmp_path / "none.safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_broken_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    model = save_checkpoint(path, config_for(MLP), dataset_facts((12, 12), CLASSES))
    monkeypatch.setattr(type(model), "state_dict", lambda self: {k: t * torch.nan for k, t in state.items()})
    state = torch.nn.Module.state_dict(model)
    save_checkpoint(path, config_for(MLP), dataset_facts((12, 12), CLASSES))
    monkeypatch.undo()
    _refused(CheckpointError, "not finite", path, tmp_path / "out")


def test_a_checkpoint_whose_results_were_altered_is_refused(tmp_path: Path) -> None:
    path = _make(tmp_path, "mlp", metrics={"target": {**METRICS["target"], "groups": "good"}})
    _refused(CheckpointError, "does not describe its training and results", path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_is_replaced_with_force_alone(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    export(exported / "mlp.safetensors", out, onnx=False, reporter=Listener())
    before = (out / "model.safetensors").read_bytes()
    _refused(CheckpointError, "holds another export", exported / "cnn.safetensors", out)
    assert (out / "model.safetensors").read_bytes() == before
    export(exported / "cifar_resnet.safetensors", out, onnx=False, force=True, reporter=Listener())
    export(exported / "cnn.safetensors", out, onnx=False, force=True, reporter=Listener())
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert json.loads((out / "config.json").read_text())["architecture"] == "cnn"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_same_export_is_left_as_it_is(exported: Path, tmp_path: Path) -> None:
    checkpoint, out, listener = exported / "cifar_resnet.safetensors", tmp_path / "out", Listener()
    written = export(checkpoint, out, onnx=False, reporter=listener)
    (out / "README.md").write_text("a card gone on with")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert export(checkpoint, out, onnx=False, reporter=listener) == written
    assert listener.lines[-1] == f"{out} holds this export already; nothing was written"
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before
    for name in ("network.py", "model.safetensors"):
        content = (out / name).read_bytes()
        (out / name).write_bytes(content + b" ")
        _refused(CheckpointError, "holds another export", checkpoint, out)
        (out / name).write_bytes(content)
    (out / "README.md").unlink()
    _refused(CheckpointError, "holds another export", checkpoint, out)


@pytest.mark.parametrize("force", [False, True])
def test_other_folders_are_never_replaced(exported: Path, tmp_path: Path, force: bool) -> None:
    checkpoint, mine = exported / "mlp.safetensors", tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text('{"mine": true}')
    _refused(CheckpointError, "is no export of denetdm", checkpoint, mine, force=force)
    (mine / "notes.txt").write_text("mine")
    _refused(CheckpointError, r"other files than an export, such as notes\.txt", checkpoint, mine, force=force)
    assert (mine / "notes.txt").read_text() == "mine"

    published = tmp_path / "published"
    export(checkpoint, published, onnx=False, reporter=Listener())
    (published / ".git").mkdir()
    _refused(CheckpointError, r"such as \.git", checkpoint, published, force=force)
    _refused(CheckpointError, "is a file", checkpoint, mine / "notes.txt", force=force)
    assert (published / ".git").is_dir()


def test_the_current_folder_is_refused(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _refused(CheckpointError, "is the current folder", exported / "mlp.safetensors", Path())


def test_a_failed_write_leaves_everything_as_it_was(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(exported / "mlp.safetensors", out, onnx=False, reporter=Listener())
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "model_card", full)
    with pytest.raises(OSError, match="No space"):
        export(exported / "cnn.safetensors", out, onnx=False, force=True, reporter=Listener())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

"""What is exported works without this program, and never takes the place of something else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import CLASSES, FILES, MLP, NETWORKS, make_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file
from shipping import MEAN, METRICS, STD, Listener, config_for, dataset_facts, save_checkpoint
from torchvision import models

from denetdm_cli.hub import export as exporting
from denetdm_cli.hub.export import export
from denetdm_cli.hub.portable import portable
from denetdm_cli.hub.target import load_target_checkpoint
from denetdm_cli.methods.denetdm.models import TargetModel
from denetdm_cli.utils.errors import CheckpointError, UserError


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
    target = load_target_checkpoint(exported / "projected.safetensors", torch.device("cpu"))
    inner, outer = target.model.network.get_submodule("fc"), target.model.head
    assert isinstance(inner, torch.nn.Linear)
    tensors = load_file(exported / "projected" / "model.safetensors")
    weight = outer.weight.double() @ inner.weight.double()
    bias = outer.weight.double() @ inner.bias.double() + outer.bias.double()
    assert torch.equal(tensors["fc.weight"], weight.float())
    assert torch.equal(tensors["fc.bias"], bias.float())
    assert tensors["fc.weight"].shape == (3, 512)


@pytest.mark.slow
def test_a_network_that_changes_its_input_does_so_elsewhere_too() -> None:
    config = config_for({"name": "googlenet", "weights": "imagenet", "width": 24}).model
    model = TargetModel(config, (3, 16, 16), 3, seed=0).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # so that much of the input reaches the output
    made = portable(model.target, model.head, config.target, (3, 16, 16))
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


def _refused(kind: type[UserError], words: str, checkpoint: Path, out: Path, *, force: bool = False) -> None:
    with pytest.raises(kind, match=words):
        export(checkpoint, out, onnx=False, force=force, reporter=Listener())


def test_a_checkpoint_of_stage_1_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "mlp", stage="train-poe")
    with pytest.raises(CheckpointError, match="is a checkpoint of train-poe") as caught:
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
    path = make_checkpoint(tmp_path, "mlp", metrics={"target": {**METRICS["target"], "groups": "good"}})
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

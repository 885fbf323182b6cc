import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from denetdm_cli.training import checkpoint
from denetdm_cli.utils.errors import CheckpointError

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}


def _saved(path: Path) -> Path:
    checkpoint.save(path, TENSORS, {"stage": "train-poe"})
    return path


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors, metadata = checkpoint.load(_saved(tmp_path / "a.safetensors"))
    assert metadata == {"format_version": 2, "stage": "train-poe"}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_equal_contents_are_equal_bytes(tmp_path: Path) -> None:
    one, two = _saved(tmp_path / "a.safetensors"), _saved(tmp_path / "b.safetensors")
    assert one.read_bytes() == two.read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, {"weight": torch.ones(1000)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = _saved(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        checkpoint.load(path)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    for name, metadata in (
        ("none", None),
        ("other", {"format": "pt"}),
        ("broken", {"denetdm": "{"}),
        ("list", {"denetdm": "[]"}),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_file(TENSORS, path, metadata=metadata)
        with pytest.raises(CheckpointError, match="not written by denetdm"):
            checkpoint.load(path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, metadata={"denetdm": json.dumps({"format_version": 99})})
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(os.environ["BOMB"]),)


@pytest.mark.parametrize("writer", ["pickle", "torch", "torch, old format"])
def test_a_pickle_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "model.th"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save(Bomb(), path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(CheckpointError, match="pickle") as caught:
        checkpoint.load(path)
    assert "safetensors" in caught.value.fix
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, "missing: bias"),
        ({"surplus": torch.ones(1)}, "extra: surplus"),
        ({"weight": torch.ones(2, 4)}, r"weight is float32\[2, 4\], not float32\[2, 3\]"),
        ({"weight": torch.ones(2, 3, dtype=torch.float64)}, r"weight is float64\[2, 3\], not float32\[2, 3\]"),
    ],
)
def test_filling_a_module_is_strict(change: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {name: tensor for name, tensor in {**TENSORS, **change}.items() if tensor is not None}
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(CheckpointError, match=message):
        checkpoint.fill(module, tensors, Path("some.safetensors"))
    assert torch.equal(module.weight, before)
    checkpoint.fill(module, TENSORS, Path("some.safetensors"))
    assert torch.equal(module.weight, TENSORS["weight"])

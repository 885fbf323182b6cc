"""Checkpoints that are damaged, foreign or not there."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import Outcome, call, contents, good, refused
from safetensors.torch import save_file
from tests_support import glyph_mnist

from denetdm_cli.data.synthetic.colored_mnist import colored_mnist_folder, make_colored_mnist
from denetdm_cli.training import checkpoint


def rewritten(path: Path, tensors: dict[str, torch.Tensor | None], metadata: dict[str, Any] | None = None) -> Path:
    """The checkpoint with some tensors or metadata put in, or, where None, taken out."""
    old_tensors, old_metadata = checkpoint.load(path)
    new = {name: tensor for name, tensor in {**old_tensors, **tensors}.items() if tensor is not None}
    said = {key: value for key, value in {**old_metadata, **(metadata or {})}.items() if value is not None}
    save_file(new, path, metadata={"denetdm": json.dumps(said)})
    return path


class TestCheckpoints:
    @pytest.fixture
    def path(self, finished_run: Path, tmp_path: Path) -> Path:
        return Path(shutil.copy(finished_run / "train-poe" / "last.safetensors", tmp_path / "model.safetensors"))

    def is_refused(self, path: Path, *words: object) -> None:
        before = path.read_bytes()
        refused(4, call("evaluate", path, "--json", "--predictions", "p.csv"), path, *words)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("keep", [0, 3, 8, 200, 0.5, -1])
    def test_cut_short(self, path: Path, keep: float) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
        self.is_refused(path, "cut short or damaged", "Copy it again")

    def test_not_ours(self, path: Path) -> None:
        save_file({"weight": torch.ones(2)}, path)
        self.is_refused(path, "was not written by denetdm", "denetdm train-poe")
        path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
        self.is_refused(path, "damaged")

    @pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
    def test_a_pickle(self, path: Path, tmp_path: Path, kind: str) -> None:
        path.unlink()
        path = tmp_path / "model.th"
        state = {"state_dict": {"fc.weight": torch.ones(2)}}
        if kind == "pickle":
            path.write_bytes(pickle.dumps(state))
        else:
            torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
        self.is_refused(path, "PyTorch pickle", "was not opened", "denetdm convert")

    def test_missing_and_extra_tensors(self, path: Path) -> None:
        rewritten(path, {"deep.layers.0.bias": None, "head.scale": torch.ones(1)})
        self.is_refused(path, "missing: deep.layers.0.bias", "extra: head.scale")

    def test_of_another_architecture(self, path: Path) -> None:
        rewritten(path, {"head.weight": torch.ones(10, 50)})
        self.is_refused(path, "head.weight is float32[10, 50], not float32[10, 100]")

    def test_that_says_another_architecture(self, path: Path) -> None:
        _, metadata = checkpoint.load(path)
        metadata["config"]["model"]["shallow"]["depth"] = 4
        rewritten(path, {}, metadata)
        self.is_refused(path, "missing: shallow.layers.2.bias, shallow.layers.2.weight")

    def test_an_unknown_method(self, path: Path) -> None:
        rewritten(path, {}, {"stage": "train-erm"})
        self.is_refused(path, "train-erm", "Known methods")

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"config": None}, "config: "),
            ({"config": {"seed": 0}}, "dataset"),
            ({"stage": None}, "stage: "),
            ({"selection": None}, "selection: "),
            ({"selection": {"rule": "last"}}, "selection.teacher_rule: "),
            ({"versions": 3}, "versions: "),
            ({"epoch": "last"}, "epoch: "),
            ({"dataset": {}}, "dataset.path: "),
            ({"dataset": {"image_shape": [18, -18, 3]}}, "dataset.image_shape.1: "),
        ],
    )
    def test_metadata_that_does_not_say_enough(self, path: Path, change: dict[str, Any], word: str) -> None:
        _, metadata = checkpoint.load(path)
        if "image_shape" in (change.get("dataset") or {}):
            change = {"dataset": {**metadata["dataset"], **change["dataset"]}}
        rewritten(path, {}, change)
        self.is_refused(path, "does not describe its model", word, "denetdm")

    def test_the_state_of_a_stopped_run(self, path: Path) -> None:
        checkpoint.save(path, checkpoint.load(path)[0], {"epoch": 3})
        self.is_refused(path, "does not describe its model", "last.safetensors")

    def test_of_another_data_set(self, finished_run: Path, tmp_path: Path) -> None:
        other = colored_mnist_folder(tmp_path / "data", 0.1, 4)
        make_colored_mnist(glyph_mnist(210, 1000), other, ratio=0.1, severity=4, seed=0, replace=False)
        before = contents(other)
        words = ("was trained on other data than", other.name, "--data-root")
        refused(4, call("evaluate", finished_run / "train-poe", "--data-root", "data"), *words, "--data DIR")
        refused(4, call("distill", finished_run, "--data-root", "data", "--out", "runs", "--epochs", 1), *words)
        assert contents(other) == before
        assert not Path("runs").exists()
        outcome = good("evaluate", finished_run / "train-poe", "--data", other, "--json")
        assert json.loads(outcome.out)["results"][0]["selected_on_these_images"] is False

    def test_that_is_not_there(self, finished_run: Path, tmp_path: Path) -> None:
        refused(4, call("evaluate", "gone.safetensors"), "no checkpoint file gone.safetensors")
        refused(4, call("evaluate", "gone"), "no checkpoint or run folder gone", ".safetensors")
        refused(4, call("evaluate", tmp_path), f"{tmp_path} holds no run")
        refused(
            4, call("evaluate", finished_run.parent), finished_run.parent, "several runs", f"Name them: {finished_run}"
        )

    def test_a_run_without_an_epoch(self, run: Path) -> None:
        (run / "train-poe" / "last.safetensors").unlink()
        refused(4, call("evaluate", run / "train-poe"), "holds no last.safetensors", "no epoch was completed")

    @pytest.mark.parametrize("damage", ["cut", "other"])
    def test_resume_from_a_damaged_state(self, run: Path, train: Callable[..., Outcome], damage: str) -> None:
        folder = run / "train-poe"
        (folder / "results.json").unlink()
        state = folder / "resume.safetensors"
        shutil.copy(folder / "last.safetensors", state)  # tensors of a model, not of a training
        if damage == "cut":
            state.write_bytes(state.read_bytes()[:1000])
        before = contents(run)
        refused(4, train("--resume", "must"), state)
        after = contents(run)
        assert [name for name in before | after if before.get(name) != after.get(name)] == ["train-poe/config.yaml"]

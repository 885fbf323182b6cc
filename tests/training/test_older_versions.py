"""Files of version 0.1 stay readable: a finished stage 1, and a stage 2 stopped after two of three epochs."""

import shutil
from pathlib import Path

import pytest
import torch

from denetdm_cli.data.raw.mnist import Mnist
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.data.synthetic.colored_mnist import make_colored_mnist
from denetdm_cli.evaluation.evaluator import Evaluation
from denetdm_cli.methods import METHODS
from denetdm_cli.results.records import find_stages, summarise_stage
from denetdm_cli.training import checkpoint, stages
from denetdm_cli.training.events import StageFinished
from denetdm_cli.training.run_folder import RunFolder, finished_stage

KEPT = Path(__file__).parents[1] / "data" / "version-0.1"
CPU = torch.device("cpu")


@pytest.fixture
def dataset(small_mnist: Mnist, tmp_path: Path) -> StoredDataset:
    path = tmp_path / "ColoredMNIST-Skewed0.1-Severity4"
    return make_colored_mnist(small_mnist, path, ratio=0.1, severity=4, seed=0, replace=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(KEPT, tmp_path / "runs" / "ColoredMNIST-Skewed0.1-Severity4" / "seed0"))


@pytest.mark.parametrize("name", ["train-poe/last", "train-poe/paper", "distill/valid"])
def test_a_checkpoint_gives_the_figures_it_was_written_with(name: str, dataset: StoredDataset) -> None:
    loaded = checkpoint.load_method(KEPT / f"{name}.safetensors", CPU)
    measured = Evaluation.of(dataset, CPU, loaded.config.data).measure(loaded.method, 1)
    part = loaded.metadata["selection"]["reported_on"]
    assert measured[part] == loaded.metadata["metrics"]
    assert loaded.config.settings("erm") == METHODS["erm"].Settings(), "a section that did not exist has its defaults"


def test_a_stopped_run_is_resumed_to_the_same_end(run: Path, dataset: StoredDataset) -> None:
    teacher = finished_stage(run, "train-poe")
    config = teacher.config()
    *_, end = stages.train("distill", config, dataset, teacher_folder=teacher, out=run)
    assert isinstance(end, StageFinished)
    found, _ = checkpoint.load(run / "distill" / "last.safetensors")
    expected, _ = checkpoint.load(KEPT / "distill-after-resume.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7)


def test_a_finished_run_is_finished_already(run: Path, dataset: StoredDataset) -> None:
    config = RunFolder(run / "train-poe").config()
    (end,) = stages.train("train-poe", config, dataset, out=run)
    assert isinstance(end, StageFinished)
    assert end.already


def test_both_are_in_a_report(run: Path) -> None:
    found, _ = find_stages(run)
    states = {folder.name: summarise_stage(folder).state for folder in found}
    assert states == {"train-poe": "done", "distill": "stopped"}

"""Every command of the README and docs/ runs, on small made data and for one epoch, but for those exempted by name."""

import functools
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import good
from documentation import PAGES, as_denetdm, blocks, commands, name
from official_reference import Reference
from own_images import MLPS, class_folders, paint
from tests_support import glyph_mnist

from denetdm_cli.data import registry
from denetdm_cli.data.raw.cifar10 import Cifar10
from denetdm_cli.data.raw.mnist import Mnist
from denetdm_cli.utils import log

CONVOLUTIONS = "trains convolutional networks, which takes hours without a GPU"
PROCESSES = "starts several processes; tests/cli/test_many_processes.py runs such commands"
IMPORTS = "needs a published data set; tests/data/importers/test_published_sets.py imports made ones"
NETWORK = "needs the network; tests/cli/test_download_pretrained.py runs it against a server on loopback"
LARGE = "needs models of ResNet-18; tests/cli/test_download_pretrained.py runs it on made ones"
SERVER = "is a server that runs until it is stopped"
ENVIRONMENT = "changes the environment; continuous integration installs the package so"
BENCHMARK = "is a benchmark of minutes"

EXEMPT = {
    'denetdm train-poe --dataset bffhq --set "model.deep={name: resnet50, weights: imagenet, width: 512}"':
        CONVOLUTIONS,
    "denetdm train-poe --dataset corruptedcifar10 --ratio 0.01 --then-distill": CONVOLUTIONS,
    "denetdm train-poe --dataset corruptedcifar10 --ratio 0.01 --nproc 4": CONVOLUTIONS,
    "torchrun --nproc-per-node 4 -m denetdm_cli train-poe --dataset corruptedcifar10 --ratio 0.01": CONVOLUTIONS,
    'torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID"'
    " -m denetdm_cli train-poe --dataset corruptedcifar10 --ratio 0.01": CONVOLUTIONS,
    "denetdm status runs/CorruptedCIFAR10-Type0-Skewed0.01-Severity4/seed0 --json": CONVOLUTIONS,
    "denetdm train-poe --dataset coloredmnist --ratio ${ratios[SLURM_ARRAY_TASK_ID % 4]} "
    "--seed $((SLURM_ARRAY_TASK_ID / 4)) --then-distill": "tests/cli/test_batch_scripts.py runs the whole script",
    "denetdm train-poe --dataset coloredmnist --ratio 0.01 --ratio 0.05 --seeds 0-4 --then-distill --then-evaluate":
        PROCESSES,
    "denetdm train-poe --dataset coloredmnist --ratio 0.005 --ratio 0.01 --ratio 0.02 --ratio 0.05 --seeds 0-4":
        PROCESSES,
    "denetdm distill runs/*/seed* --select paper": PROCESSES,
    "denetdm distill runs/*0.01*/seed* --select last": PROCESSES,
    "denetdm distill runs/ColoredMNIST-Skewed0.01-Severity4/seed0 runs/ColoredMNIST-Skewed0.01-Severity4/seed1 "
    "--select valid": PROCESSES,
    "denetdm train-poe --dataset coloredmnist --track tensorboard,wandb": "tests/cli/test_trackers.py runs it",
    "denetdm make-data bffhq --source path/to/bffhq.zip": IMPORTS,
    "denetdm download-pretrained coloredmnist": NETWORK,
    "denetdm download-pretrained bffhq --url https://example.org/debiased_model.th --sha256 DIGEST": NETWORK,
    "denetdm download-pretrained --all --from path/to/folder-or.zip": LARGE,
    "denetdm download-pretrained bffhq --from path/to/debiased_model.th": LARGE,
    "denetdm predict pretrained/bffhq.safetensors more-photos --csv predicted.csv": LARGE,
    "denetdm --install-completion": "changes the shell; tests/cli/test_completion.py runs completion",
    "tensorboard --logdir runs": SERVER,
    "pip install -e .": ENVIRONMENT,
    "pip install -e '.[dev]'": ENVIRONMENT,
    "pip install -e '.[plots]'": ENVIRONMENT,
    "pip install -e '.[tensorboard,wandb]'": ENVIRONMENT,
    "pytest": "is what runs this test",
    "python tests/benchmarks/coloredmnist.py --source path/to/mnist": BENCHMARK,
    "python tests/benchmarks/corruptedcifar10.py --source path/to/cifar10.zip --images 50000 --threads 2": BENCHMARK,
    "python tests/benchmarks/clusters.py --source path/to/mnist": BENCHMARK,
}  # fmt: skip
"""Commands that no test here runs, and why; tests/test_docs.py parses those of denetdm all the same."""

SLOW = ("--plots", "--onnx")
"""Options of commands that take seconds."""
RUN = [
    pytest.param(line, marks=pytest.mark.slow if any(option in line for option in SLOW) else ())
    for line in sorted(set(commands()) - set(EXEMPT))
]
PYTHON = [page for page in PAGES if blocks(page, "python")]
SETS = {"coloredmnist": "ColoredMNIST-Skewed0.01-Severity4", "other": "ColoredMNIST-Skewed0.05-Severity4"}
TRAINING = ("train", "train-poe", "distill")
ONE_EPOCH = ("--epochs", 1, "--device", "cpu")


def padded_mnist(*_: object) -> Callable[[], Mnist]:
    """What reads a small MNIST of 28x28 pixels."""
    small = glyph_mnist(200, 1000)

    def wide(images: np.ndarray) -> np.ndarray:
        return np.pad(images, ((0, 0), (5, 5), (5, 5)))

    mnist = Mnist(wide(small.train_images), small.train_labels, wide(small.test_images), small.test_labels)
    return lambda: mnist


def small_cifar(*_: object) -> Callable[[], Cifar10]:
    """What reads a CIFAR-10 of noise with enough images for every group of the evaluation split."""
    random = np.random.RandomState(0)
    labels = (np.arange(200) % 10).astype(np.uint8)
    images = random.randint(0, 256, (200, 32, 32, 3)).astype(np.uint8)
    return lambda: Cifar10(images, labels, images, labels, origin="class folders")


def noise_textures(*_: object) -> tuple[np.ndarray, ...]:
    random = np.random.RandomState(1)
    return tuple(random.randint(0, 256, (200, 200, 3)).astype(np.uint8) for _ in range(5))


def use_small_originals(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(registry, "lazy_mnist", padded_mnist)
    patch.setattr(registry, "lazy_cifar10", small_cifar)
    patch.setattr(registry, "load_textures", noise_textures)


@pytest.fixture(autouse=True)
def _small_originals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_small_originals(monkeypatch)
    yield
    log.reset()  # which a --quiet has changed


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands of the pages name: data sets, finished runs, images and model files."""
    here = tmp_path_factory.mktemp("documented")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        use_small_originals(patch)
        good("make-data", "coloredmnist", *(word for ratio in (0.005, 0.01, 0.02, 0.05) for word in ("--ratio", ratio)))
        good("make-data", "corruptedcifar10", "--type", 0, "--ratio", 0.01)
        shutil.copytree(here / "data" / SETS["other"], here / "other" / SETS["other"])
        for place in ("my-images", "path/to/my-images"):
            class_folders(here / place, {"": 20})
        good("make-data", "folder", "--source", "my-images", "--name", "pets", "--size", 16)
        good("configs", "cp", "coloredmnist", "mine.yaml")
        good("configs", "cp", "folder", "pets.yaml")
        for seed in (0, 1):
            good("train-poe", "--dataset", "coloredmnist", "--seed", seed, *ONE_EPOCH)
            good("distill", f"runs/{SETS['coloredmnist']}/seed{seed}", *ONE_EPOCH)
        good("train", "erm", "--dataset", "coloredmnist", "--batch-size", 64, "--out", "runs-erm", *ONE_EPOCH)
        good(
            "train-poe",
            "--dataset",
            "coloredmnist",
            "--out",
            "runs-depth4",
            "--set",
            "model.shallow.depth=4",
            *ONE_EPOCH,
        )
        pets = ("--set", "dataset.folder=pets", "--set", "dataset.size=16", "--batch-size", 8)
        good("train-poe", "--config", "pets.yaml", *pets, *MLPS, *ONE_EPOCH)
        good("distill", "runs/pets/seed0", "--batch-size", 8, *ONE_EPOCH)
        torch.save(Reference("coloredmnist", "distill").state_dict(), "debiased_model.th")
        good("download-pretrained", "coloredmnist", "--from", "debiased_model.th")
        paint(here / "photo.jpg", 0, 0, 1)
        paint(here / "more-photos" / "1.png", 1, 1, 2)
    return here


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder as hard links, which is the working directory; the program replaces files whole."""
    here = tmp_path / "here"
    shutil.copytree(prepared, here, copy_function=os.link)
    monkeypatch.chdir(here)
    return here


def arguments(line: str) -> list[object]:
    """The words of a command after `denetdm`, patterns resolved, and what makes a training short."""
    found: list[object] = []
    for word in shlex.split(line)[1:]:
        found += sorted(map(str, Path().glob(word))) if "*" in word else [word]
    if found[0] not in TRAINING:
        return found
    if "--config pets.yaml" in line:
        found += [*MLPS, "--set", "dataset.size=16"]
    if found[1] == "distill":
        found += ["--set", "train_poe.epochs=1"]
    if found[1] == "erm":
        found += ["--batch-size", 64]
    if "pets" in line:
        found += ["--batch-size", 8]
    return [*found, "--device", "cpu", *(() if "--epochs" in found else ("--epochs", 1))]


def clear(words: list[Any]) -> None:
    """Take away what a command is about to make."""
    if words[0] in ("train", "train-poe"):
        shutil.rmtree("runs")
        shutil.rmtree("runs-depth4")
        shutil.rmtree("runs-erm")
    if words[0] == "distill":
        for stage in Path().glob("runs/*/*/distill*"):
            shutil.rmtree(stage)
    if words[0] == "make-data":
        shutil.rmtree("data")
    if words[:2] == ["configs", "cp"]:
        Path(words[3]).unlink()


@functools.cache
def written_by(command: str) -> tuple[str, ...]:
    """Options whose value is a file or folder that a command writes."""
    options = {
        "make-data": ("--preview",), "validate": ("--preview",), "evaluate": ("--predictions",), "report": ("--plots",),
        "export": ("-o",), "convert": ("-o",), "predict": ("--csv",),
    }  # fmt: skip
    return options.get(command, ())


@pytest.mark.slow
@pytest.mark.parametrize("line", RUN)
def test_a_documented_command_runs(line: str, place: Path) -> None:
    assert as_denetdm(line) == line, "a command of another program has to be exempted by name, with the reason"
    words = arguments(line)
    clear(words)
    outcome = good(*words)
    assert "Traceback" not in outcome.err
    for option in written_by(str(words[0])):
        if option in words:
            assert Path(str(words[words.index(option) + 1])).exists()


@pytest.mark.parametrize("page", PYTHON, ids=name)
def test_the_python_of_a_page_runs(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks of a page run one after the other, in one namespace."""
    found: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), found)
    assert capsys.readouterr().out


def test_what_is_exempted_is_documented() -> None:
    assert sorted(set(EXEMPT) - set(commands())) == []

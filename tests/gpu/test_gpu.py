"""Everything that a GPU changes, for a machine that has one: pytest -m gpu.

DENETDM_GPU_TESTS_ON=cpu runs the same tests on the CPU, with Gloo instead of NCCL, to see that the tests are sound.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import Outcome, child, figures, good, models, signalled
from own_images import class_folders

from denetdm_cli.config.schema import DataConfig
from denetdm_cli.data.batches import Batches
from denetdm_cli.data.store import Split

ON = os.environ.get("DENETDM_GPU_TESTS_ON", "cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        ON == "cuda" and not torch.cuda.is_available(),
        reason="no CUDA device here; DENETDM_GPU_TESTS_ON=cpu runs these tests on the CPU",
    ),
]

EPOCHS = 8
BRANCHES = {
    "mlp": "name: mlp, depth: 3, width: 32",
    "cnn": "name: cnn, depth: 3, width: 64",
    "cifar_resnet": "name: cifar_resnet, depth: 8",
    "torchvision": "name: shufflenet_v2_x0_5, weights: null, width: 32",
}
KINDS = pytest.mark.parametrize("kind", BRANCHES)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 48 training images of 32x32 pixels: six steps an epoch."""
    home = tmp_path_factory.mktemp("gpu")
    source = class_folders(home / "images", {"train": 24, "valid": 8, "test": 8}, side=32)
    good("make-data", "folder", "--source", source, "--size", 32, "--data-root", home / "data")
    return home / "data"


@pytest.fixture
def words(root: Path) -> Callable[..., list[str]]:
    """Options of a run with one kind of branch."""

    def options(kind: str, *more: object, epochs: int = 2) -> list[str]:
        settings = [f"model.{branch}={{{BRANCHES[kind]}}}" for branch in ("shallow", "deep", "target")]
        settings += ["dataset.folder=mine", "dataset.size=32", "data.random_crop_padding=2", "distill.batch_size=8"]
        settings += [f"distill.epochs={epochs}"]
        given: list[object] = ["--dataset", "folder", "--data-root", root, "--device", ON, "--batch-size", 8]
        given += ["--epochs", epochs, *(word for setting in settings for word in ("--set", setting)), *more]
        return [str(word) for word in given]

    return options


def run_folder(out: Path) -> Path:
    return out / "mine" / "seed0"


def reported(stage: Path) -> Any:
    return json.loads((stage / "results.json").read_text())["rules"]["last"]["metrics"]


def require_evaluates_to_what_was_reported(stage: Path) -> None:
    (result,) = json.loads(good("evaluate", stage, "--device", ON, "--json").out)["results"]
    expected = reported(stage)
    assert {name: result["metrics"][name] for name in expected} == expected


def without_place(stage: Path) -> dict[str, Any]:
    found = models(stage)
    for _, metadata in found.values():
        metadata.get("teacher", {}).pop("sha256", None)  # its file says where its run lies
    return found


class TestOneProcess:
    @KINDS
    def test_every_method_trains_and_evaluates(
        self, words: Callable[..., list[str]], tmp_path: Path, kind: str
    ) -> None:
        good("train-poe", *words(kind), "--then-distill")
        good("train", "erm", *words(kind))
        for method in ("train-poe", "distill", "erm"):
            stage = run_folder(tmp_path / "runs") / method
            assert json.loads((stage / "results.json").read_text())["device"].startswith(ON)
            assert len(figures(stage)) == 2
            require_evaluates_to_what_was_reported(stage)

    @KINDS
    def test_a_run_that_was_stopped_resumes_to_equal_bits(
        self, words: Callable[..., list[str]], tmp_path: Path, kind: str
    ) -> None:
        options = words(kind, "--then-distill", epochs=EPOCHS)
        good("train-poe", *options, "--out", "straight")
        command = [sys.executable, "-m", "denetdm_cli", "train-poe", *options, "--out", "stopped"]
        straight, stopped = (run_folder(tmp_path / out) for out in ("straight", "stopped"))
        for method in ("train-poe", "distill"):  # a stop in each of them
            code, _, err = signalled(signal.SIGTERM, command, stopped / method)
            assert code == 75, err
            assert not (stopped / method / "results.json").exists()
        good(*command[3:])
        for method in ("train-poe", "distill"):
            assert figures(stopped / method) == figures(straight / method)
            ours, theirs = without_place(stopped / method), without_place(straight / method)
            for file, (tensors, _) in ours.items():
                assert tensors == theirs[file][0], f"{method}/{file}, bit for bit"

    @KINDS
    def test_bf16(self, words: Callable[..., list[str]], tmp_path: Path, kind: str) -> None:
        good("train-poe", *words(kind, "--precision", "bf16"), "--then-distill")
        for method in ("train-poe", "distill"):
            stage = run_folder(tmp_path / "runs") / method
            assert all(np.isfinite(list(line["losses"].values())).all() for line in figures(stage))
            require_evaluates_to_what_was_reported(stage)


def test_two_seeds_on_one_gpu_are_what_each_is_alone(words: Callable[..., list[str]], tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0"}
    options = words("mlp")
    command = ["-m", "denetdm_cli", "train-poe", *options]
    together = child(*command, "--seeds", "0-1", "--out", "many", env=environment, limit=300)
    assert together.returncode == 0, together.stderr
    if (os.cpu_count() or 1) > 1:
        assert "2 runs, 2 at a time" in together.stderr
    for seed in (0, 1):
        alone = child(*command, "--seed", seed, "--out", "alone", env=environment, limit=300)
        assert alone.returncode == 0, alone.stderr
        many, one = (tmp_path / out / "mine" / f"seed{seed}" / "train-poe" for out in ("many", "alone"))
        assert figures(many) == figures(one)


class TestRanks:
    """Two ranks are announced, and the group has this one process: every message passes through NCCL and Gloo."""

    PROGRAM = """
import sys
from denetdm_cli.utils import distributed
distributed.from_environment = lambda: distributed.Ranks(0, 2, 0, 2)
from denetdm_cli.cli.app import main
main()
"""

    def train(self, options: list[str]) -> Outcome:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        place = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": 0}
        environment = os.environ | {name: str(value) for name, value in place.items()}
        done = child("-c", self.PROGRAM, "train-poe", *options, env=environment, limit=300)
        return Outcome(done.returncode, done.stdout, done.stderr)

    @pytest.mark.parametrize("kind", ["mlp", "cifar_resnet"])
    def test_train_stop_and_resume(self, words: Callable[..., list[str]], tmp_path: Path, kind: str) -> None:
        folder = run_folder(tmp_path / "runs") / "train-poe"
        outcome = self.train([*words(kind), "--set", "compute.sync_batchnorm=false"])
        assert outcome.code == 0, outcome.err
        assert len(figures(folder)) == 2
        again = self.train([*words(kind), "--set", "compute.sync_batchnorm=false"])
        assert again.code == 0, again.err

    def test_the_backend_is_nccl_and_the_gpu_is_bound(self) -> None:
        program = """
import torch
from torch import distributed as d
from denetdm_cli.utils import distributed
device = torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device(DEVICE)
with distributed.process_group(distributed.Ranks(0, 2, 0, 2), device):
    print(d.get_backend(), d.get_backend(distributed._control))
    ranks = distributed.Ranks(0, 2, 0, 2)
    print(ranks.all_reduce_max(3.0), ranks.run_on_main(lambda: "seen"))
    values = torch.ones(2, device=device)
    print(ranks.all_reduce_sum(values).tolist(), DEVICE != "cuda" or torch.cuda.current_device() == 0)
""".replace("DEVICE", repr(ON))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        done = child("-c", program, env=os.environ | place, limit=120)
        assert done.returncode == 0, done.stderr
        backend = "nccl" if ON == "cuda" else "gloo"
        assert done.stdout.splitlines() == [f"{backend} gloo", "3.0 seen", "[1.0, 1.0] True"]


@pytest.fixture(scope="module")
def split() -> Split:
    """61 MB of images."""
    images = np.random.RandomState(0).randint(0, 256, (20_000, 32, 32, 3)).astype(np.uint8)
    return Split(images, (np.arange(len(images)) % 10).astype(np.uint8), None)


class TestMemory:
    @pytest.mark.parametrize("cache", ["device", "host", "stream"])
    def test_only_the_device_cache_takes_gpu_memory(self, split: Split, cache: str) -> None:
        device = torch.device(ON)
        config = DataConfig(cache=cache)
        if ON == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        batches = Batches(split, device, config, augment=False)
        seen = sum(len(batch.x) for batch in batches.in_order(256))
        assert seen == len(split.images)
        if ON == "cuda":
            peak = torch.cuda.max_memory_allocated() - before
            size = split.images.nbytes
            assert size <= peak < 2 * size if cache == "device" else peak < size / 3

"""Print figures on Corrupted CIFAR-10: making it, training beside the bare networks, and importing images.

Run: python tests/benchmarks/corruptedcifar10.py --source CIFAR10 [--frost DIR] [--images 10000] [--threads 2]
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measuring import epochs, seconds
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from denetdm_cli.cli.progress import DataReport
from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.config.schema import Config, CorruptedCifar10Config
from denetdm_cli.data.raw.cifar10 import Cifar10, load_cifar10
from denetdm_cli.data.raw.frost import load_textures
from denetdm_cli.data.registry import ensure_datasets
from denetdm_cli.data.store import StoredDataset
from denetdm_cli.data.synthetic.corrupted_cifar10 import make_corrupted_cifar10
from denetdm_cli.methods.denetdm.models import ProductOfExperts, TargetModel
from denetdm_cli.training import stages
from denetdm_cli.training.run_folder import finished_stage

EPOCHS = 3
STEPS = 8


def part_of(cifar: Cifar10, images: int) -> Cifar10:
    """`images` training images and a fifth as many test images, as many of each class."""

    def rows(labels: np.ndarray, count: int) -> np.ndarray:
        return np.sort(np.concatenate([np.flatnonzero(labels == label)[: count // 10] for label in range(10)]))

    train, test = rows(cifar.train_labels, images), rows(cifar.test_labels, images // 5)
    return Cifar10(
        cifar.train_images[train], cifar.train_labels[train], cifar.test_images[test], cifar.test_labels[test],
        cifar.origin,
    )  # fmt: skip


def bare_stage_1(resolved: Config, device: torch.device) -> Callable[[], None]:
    """Forward and backward of the stage-1 networks on one resident batch."""
    model = ProductOfExperts(resolved.model, (3, 32, 32), 10, seed=0).to(device).train()
    return _steps(model, lambda x: model(x), resolved.train_poe.batch_size, device)


def bare_stage_2(resolved: Config, device: torch.device) -> Callable[[], None]:
    """Forward of the frozen branches, forward and backward of the target branch, on one resident batch."""
    teacher = ProductOfExperts(resolved.model, (3, 32, 32), 10, seed=0).to(device).eval().requires_grad_(False)
    model = TargetModel(resolved.model, (3, 32, 32), 10, seed=0).to(device).train()

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            deep, soft = model.deep(x), teacher.head(teacher.shallow(x)).softmax(dim=1)
        target = model.target(x)
        logits: Tensor = model.head(deep + target) + (model.head(target) * soft)
        return logits

    return _steps(model, forward, resolved.distill.batch_size, device)


def _steps(
    model: nn.Module, forward: Callable[[Tensor], Tensor], batch: int, device: torch.device
) -> Callable[[], None]:
    x, y = torch.rand(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)

    def run() -> None:
        for _ in range(STEPS):
            model.zero_grad()
            F.cross_entropy(forward(x), y).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def making(cifar: Cifar10, textures: tuple[np.ndarray, ...], root: Path, wanted: CorruptedCifar10Config) -> None:
    count = len(cifar.train_labels) + len(cifar.test_labels)
    path, began = root / f"type{wanted.type}", time.process_time()
    wall = seconds(lambda: make_corrupted_cifar10(cifar, textures, path, wanted, replace=False, reporter=DataReport()))
    cpu = time.process_time() - began
    print(f"make-data type {wanted.type}, {count:,} images in memory: {cpu:.1f} s of CPU, {count / wall:,.0f} images/s")


def training(resolved: Config, dataset: StoredDataset, device: torch.device) -> None:
    images = len(dataset.splits["train"].target)
    home = stages.run_path(resolved, dataset)
    for name, batch, bare, begin in (
        ("stage 1", resolved.train_poe.batch_size, bare_stage_1, lambda: stages.train("train-poe", resolved, dataset)),
        (
            "stage 2",
            resolved.distill.batch_size,
            bare_stage_2,
            lambda: stages.train(
                "distill", resolved, dataset, teacher_folder=finished_stage(home, "train-poe"), out=home
            ),
        ),
    ):
        yardstick = bare(resolved, device)
        yardstick()
        times, units = epochs(begin(), yardstick)
        ours = [images / time for time in times]
        theirs = [STEPS * batch / unit for unit in units]
        shares = [one / other for one, other in zip(ours, theirs, strict=True)]
        print(f"{name}: {max(ours):,.0f} images/s at best with augmentation, evaluation and checkpoints, bare forward")
        share = f"lowest {min(shares):.2f}, median {median(shares):.2f}"
        print(f"  and backward around it {max(theirs):,.0f}; share of the bare speed: {share}")


def importing(root: Path) -> None:
    """2,000 JPEG images of 500x375 pixels in two class folders, to 224x224."""
    random = np.random.RandomState(0)
    for number in range(2000):
        folder = root / "own" / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(random.randint(0, 256, (24, 32, 3), dtype=np.uint8))
        noise.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    wanted = load_config(preset_path("folder"), (), {"dataset.root": str(root)}).dataset
    took = seconds(lambda: ensure_datasets([wanted], source=root / "own", reporter=DataReport()))
    print(f"make-data folder, 2,000 JPEG images of 500x375 to 224x224: {2000 / took:,.0f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--frost", type=Path)
    parser.add_argument("--images", type=int, default=10_000, help="training images of the part that is trained on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, {device}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cifar = load_cifar10(root, arguments.source, print)
        textures = load_textures(root, arguments.frost, print)
        importing(root)
        options = {
            "threads": arguments.threads,
            "device": arguments.device,
            "dataset.root": str(root),
            "out": str(root / "runs"),
            "train_poe.epochs": EPOCHS,
            "distill.epochs": EPOCHS,
        }
        settings = ["model.target.weights=null"]
        resolved = load_config(preset_path("corruptedcifar10"), settings, options)
        assert isinstance(resolved.dataset, CorruptedCifar10Config)
        for kind in (0, 1):
            making(cifar, textures, root, resolved.dataset.model_copy(update={"type": kind}))
        part = make_corrupted_cifar10(
            part_of(cifar, arguments.images), textures, root / "part", resolved.dataset, replace=False,
            reporter=DataReport(),
        )  # fmt: skip
        training(resolved, part, device)
        print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()

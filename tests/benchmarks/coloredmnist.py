"""Print the figures of the README: time of an epoch of both stages beside the bare matrix products, data set, commands.

Run: python tests/benchmarks/coloredmnist.py --source FOLDER_WITH_MNIST
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from measuring import epochs, seconds, shown

from denetdm_cli.cli.progress import DataReport
from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.data.raw.mnist import load_mnist
from denetdm_cli.data.registry import ensure_datasets
from denetdm_cli.data.synthetic.colored_mnist import make_colored_mnist
from denetdm_cli.training import stages
from denetdm_cli.training.run_folder import finished_stage

STEPS = 937
EPOCHS = 8


def bare_products() -> None:
    """G: the first-layer products of an epoch, 937 times x[64,2352] @ [2352,200] and its weight gradient."""
    x, weight, grad = torch.rand(64, 2352), torch.rand(2352, 200), torch.rand(64, 200)
    for _ in range(STEPS):
        torch.mm(x, weight)
        torch.mm(x.T, grad)


def measure(name: str, events: Iterator[stages.Event]) -> None:
    """Print the wall time of each epoch with its evaluation and checkpoints beside G, measured around every epoch."""
    times, units = epochs(events, bare_products)
    ratios = [time / unit for time, unit in zip(times, units, strict=True)]
    print(f"{name} epoch with evaluation: {shown(times)} s; G around it: {shown(units)} s")
    print(f"  in units of the G around it: {shown(ratios)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        mnist = load_mnist(root, arguments.source, print)
        making = seconds(
            lambda: make_colored_mnist(mnist, root / "speed", ratio=0.01, severity=4, seed=0, replace=False)
        )
        print(f"make-data, one ratio, 70,000 images, source read: {making:.2f} s")
        preset = preset_path("coloredmnist")
        options = {
            "threads": arguments.threads,
            "dataset.root": str(root),
            "out": str(root / "runs"),
            "train_poe.epochs": EPOCHS,
            "distill.epochs": EPOCHS,
        }
        resolved = load_config(preset, (), {**options, "device": "cpu"})
        ((dataset, _),) = ensure_datasets([resolved.dataset], source=arguments.source, reporter=DataReport())

        bare_products()
        measure("stage 1", stages.train("train-poe", resolved, dataset))
        folder_1 = finished_stage(stages.run_path(resolved, dataset))
        measure(
            "stage 2", stages.train("distill", resolved, dataset, teacher_folder=folder_1, out=folder_1.path.parent)
        )
        print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")

        program = [sys.executable, "-m", "denetdm_cli"]
        for words in (["--help"], ["evaluate", str(folder_1.path)]):
            run = partial(subprocess.run, [*program, *words], check=True, capture_output=True)
            print(f"denetdm {words[0]}, whole process: {min(seconds(run) for _ in range(3)):.2f} s")


if __name__ == "__main__":
    main()

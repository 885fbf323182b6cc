"""Print the figures of the README: time of an epoch of both stages beside the bare matrix products, data set, commands.

Run: python tests/benchmarks/coloredmnist.py --source FOLDER_WITH_MNIST
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from denetdm_cli import config, stages
from denetdm_cli.data.catalog import ensure_datasets
from denetdm_cli.data.recipes import make_coloured_mnist
from denetdm_cli.data.sources import load_mnist
from denetdm_cli.runs import finished_stage_1
from denetdm_cli.stages import EpochDone

STEPS = 937
EPOCHS = 4


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bare_products() -> None:
    """G: the first-layer products of an epoch, 937 times x[64,2352] @ [2352,200] and its weight gradient."""
    x, weight, grad = torch.rand(64, 2352), torch.rand(2352, 200), torch.rand(64, 200)
    for _ in range(STEPS):
        torch.mm(x, weight)
        torch.mm(x.T, grad)


def epochs(events: object) -> list[float]:
    """Wall time of each epoch of a stage with its evaluation and its checkpoints."""
    times, before = [], time.perf_counter()
    for event in events:  # type: ignore[attr-defined]
        if isinstance(event, stages.Began):
            before = time.perf_counter()
        elif isinstance(event, EpochDone):
            now = time.perf_counter()
            times.append(now - before)
            before = now
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        mnist = load_mnist(root, arguments.source, print)
        making = seconds(
            lambda: make_coloured_mnist(mnist, root / "speed", ratio=0.01, severity=4, seed=0, replace=False)
        )
        print(f"make-data, one ratio, 70,000 images, source read: {making:.2f} s")
        preset = config.preset_path("coloredmnist")
        options = {"dataset.root": str(root), "out": str(root / "runs"), "train_poe.epochs": EPOCHS, "distill.epochs": EPOCHS}
        resolved = config.load(preset, (), {**options, "device": "cpu"})
        ((dataset, _),) = ensure_datasets([resolved.dataset], source=arguments.source, force=False, say=print)

        bare_products()
        before = min(seconds(bare_products) for _ in range(3))
        stage_1 = epochs(stages.train_poe(resolved, dataset))
        between = min(seconds(bare_products) for _ in range(3))
        folder_1 = finished_stage_1(stages.run_path(resolved, dataset))
        stage_2 = epochs(stages.distill(resolved, dataset, folder_1, folder_1.path.parent))
        after = min(seconds(bare_products) for _ in range(3))
        print(f"G (bare first-layer products of an epoch): {before:.2f} s before, {between:.2f} s between, {after:.2f} s after")
        for name, times, around in (("stage 1", stage_1, (before, between)), ("stage 2", stage_2, (between, after))):
            unit, best = sum(around) / 2, min(times)
            print(f"{name} epoch with evaluation: {best:.2f} s = {best / unit:.2f} G (all: {', '.join(f'{t:.2f}' for t in times)})")
        print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")

        program = [sys.executable, "-m", "denetdm_cli"]
        for words in (["--help"], ["evaluate", str(folder_1.path)]):
            times = [
                seconds(lambda: subprocess.run([*program, *words], check=True, capture_output=True)) for _ in range(3)
            ]
            print(f"denetdm {words[0]}, whole process: {min(times):.2f} s")


if __name__ == "__main__":
    main()

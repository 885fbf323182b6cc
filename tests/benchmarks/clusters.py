"""Print the README's figures on runs that are stopped, go side by side or are divided: Colored MNIST, both cores.

Run: python tests/benchmarks/clusters.py --source FOLDER_WITH_MNIST
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from measuring import seconds

from denetdm_cli.cli.progress import DataReport
from denetdm_cli.config.load import load_config, preset_path
from denetdm_cli.data.registry import ensure_datasets
from denetdm_cli.training import checkpoint, stages
from denetdm_cli.training.events import EpochEvaluated

NAME = "ColoredMNIST-Skewed0.01-Severity4"
COMMAND = [sys.executable, "-m", "denetdm_cli"]
EPOCHS = 4


def trained(root: Path, *options: str) -> float:
    """Wall time of a whole `train-poe` command."""
    words = ["train-poe", "--dataset", "coloredmnist", "--data-root", str(root), "--device", "cpu", *options]
    return seconds(
        lambda: subprocess.run([*COMMAND, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    )


def writing(root: Path, out: Path) -> None:
    """What an epoch's checkpoints and state take of its wall time."""
    saved: list[float] = []
    save = checkpoint.save

    def timed(*arguments: Any) -> None:
        saved.append(seconds(lambda: save(*arguments)))

    options = {"dataset.root": str(root), "device": "cpu", "out": str(out), "train_poe.epochs": EPOCHS}
    settings = load_config(preset_path("coloredmnist"), (), options)
    ((dataset, _),) = ensure_datasets([settings.dataset], source=None, force=False, reporter=DataReport())
    with mock.patch.object(checkpoint, "save", timed):
        began = time.perf_counter()
        ends = [
            time.perf_counter() for e in stages.train("train-poe", settings, dataset) if isinstance(e, EpochEvaluated)
        ]
    whole = ends[-1] - began
    print(f"a checkpoint or state: median {1000 * median(saved):.0f} ms; {len(saved) / EPOCHS:.1f} an epoch")
    print(f"  all of them: {sum(saved) / whole:.1%} of the time of {EPOCHS} epochs")


def stopping(root: Path, out: Path) -> None:
    """Seconds from SIGTERM to the end of the process, at three moments."""
    words = ["train-poe", "--dataset", "coloredmnist", "--data-root", str(root), "--device", "cpu", "--out", str(out)]
    taken = []
    for delay in (0.5, 1.5, 2.5):
        with subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            while "images an epoch" not in process.stderr.readline():
                pass
            time.sleep(delay)
            process.send_signal(signal.SIGTERM)
            taken.append(seconds(process.communicate))
            assert process.returncode == 75
    print(f"from SIGTERM to the end of the process: {', '.join(f'{each:.2f}' for each in taken)} s")


def side_by_side(root: Path, out: Path) -> None:
    """Two seeds, one after the other and together."""
    one = [
        trained(root, "--epochs", str(EPOCHS), "--seed", seed, "--out", str(out / "one"), "--workers", "1")
        for seed in ("0", "1")
    ]
    two = trained(root, "--epochs", str(EPOCHS), "--seeds", "0-1", "--out", str(out / "two"), "--workers", "2")
    print(f"two seeds of {EPOCHS} epochs: {sum(one):.1f} s one after the other, {two:.1f} s side by side")
    print(f"  {two / sum(one):.2f} of the time")


def divided(root: Path, out: Path) -> None:
    """One run in one process and in two."""
    rates = {}
    for count in (1, 2):
        trained(root, "--epochs", str(EPOCHS), "--nproc", str(count), "--out", str(out / str(count)))
        lines = (out / str(count) / NAME / "seed0" / "train-poe" / "metrics.jsonl").read_text().splitlines()
        rates[count] = median(record["images"] / record["seconds"] for record in map(json.loads, lines))
    print(f"one run: {rates[1]:,.0f} images/s in one process, {rates[2]:,.0f} in two over Gloo")
    print(f"  {rates[2] / rates[1]:.2f} of the speed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    source = parser.parse_args().source
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        words = ["make-data", "coloredmnist", "--source", str(source), "--data-root", str(root)]
        subprocess.run([*COMMAND, *words], check=True, stdout=subprocess.DEVNULL)
        for number, measure in enumerate((writing, stopping, side_by_side, divided)):
            measure(root, Path(folder) / str(number))


if __name__ == "__main__":
    main()

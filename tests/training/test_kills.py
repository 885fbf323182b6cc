"""A training process that is killed again and again comes to the same end as one that is not."""

import json
import os
import signal
from pathlib import Path

import pytest
from cli_support import NAME, child, good, models, no_leftovers
from tests_support import glyph_mnist

from denetdm_cli.data.synthetic.colored_mnist import colored_mnist_folder, make_colored_mnist

KILLS = 25


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Stage 1 in 24 epochs of 250 steps, with a state written every fifth of a second."""
    monkeypatch.chdir(tmp_path)
    path = colored_mnist_folder(tmp_path / "data", 0.1, 4)
    make_colored_mnist(glyph_mnist(2000, 1000), path, ratio=0.1, severity=4, seed=0, replace=False)
    options = ("--dataset", "coloredmnist", "--ratio", 0.1, "--device", "cpu", "--epochs", 24, "--batch-size", 8)
    return ["train-poe", *options, "--set", "checkpoint_minutes=0.003"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
def test_killed_at_random_moments(command: list[object], tmp_path: Path) -> None:
    good(*command, "--out", "straight")
    harness = Path(__file__).with_name("kill_at_random.py")
    ended = child(harness, 7, KILLS, *command, limit=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["last"] == 0
    assert len(told["ends"]) == KILLS
    for number, status in told["ends"]:
        # 0: the run had come to its end before the signal; -SIGTERM: the program had not begun to listen.
        assert status in ((75, 0, -signal.SIGTERM) if number == signal.SIGTERM else (-signal.SIGKILL, 0))
    assert sum(status != 0 for _, status in told["ends"]) >= KILLS / 2, "the training was over too soon"
    straight, killed = (tmp_path / out / NAME / "seed0" / "train-poe" for out in ("straight", "runs"))
    assert models(killed) == models(straight)
    lines = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (straight, killed)
    ]
    assert [{**line, "seconds": 0} for line in lines[1]] == [{**line, "seconds": 0} for line in lines[0]]
    assert no_leftovers(tmp_path)
    assert not (killed / "resume.safetensors").exists()

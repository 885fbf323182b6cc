"""The scripts of docs/how-to/clusters.md for SLURM, with stand-ins for what SLURM brings."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import NAME, figures, signalled
from documentation import blocks

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "clusters.md"
SCRIPTS = [block for block in blocks(PAGE, "sh") if block.startswith("#!/bin/bash")]


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment in which `scontrol` notes what it is told and `denetdm` trains what TRAINED says."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, body in {
        "scontrol": f'echo "$@" >> {shlex.quote(str(tmp_path / "told"))}',
        "denetdm": f'echo "$@" >> {shlex.quote(str(tmp_path / "asked"))}\n'
        f"exec {shlex.quote(sys.executable)} -m denetdm_cli $TRAINED",
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "42", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


@pytest.mark.slow
def test_a_job_that_is_requeued_until_it_is_done(cluster: dict[str, str], data_root: Path, tmp_path: Path) -> None:
    words = f"train-poe --dataset coloredmnist --ratio 0.1 --device cpu --epochs 60 --data-root {data_root}"
    script = tmp_path / "job.sh"
    script.write_text(SCRIPTS[0])
    folder = tmp_path / "runs" / NAME / "seed0" / "train-poe"
    environment = cluster | {"TRAINED": words}
    code, _, err = signalled(signal.SIGUSR1, ["/bin/bash", script], folder, env=environment)
    assert code == 75, err
    assert (tmp_path / "told").read_text() == "requeue 42\n"
    assert 1 <= len(figures(folder)) < 60

    again = subprocess.run(["/bin/bash", script], env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "told").read_text() == "requeue 42\n"
    assert len(figures(folder)) == 60


@pytest.mark.slow
def test_an_array_covers_all_ratios_and_seeds(cluster: dict[str, str], tmp_path: Path) -> None:
    for task in range(20):
        environment = cluster | {"SLURM_ARRAY_TASK_ID": str(task), "TRAINED": "--version"}
        subprocess.run(["/bin/bash", "-c", SCRIPTS[1]], env=environment, check=True, capture_output=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    runs = {tuple(re.findall(r"--ratio (\S+) --seed (\S+)", line)[0]) for line in asked}
    assert runs == {(ratio, str(seed)) for ratio in ("0.005", "0.01", "0.02", "0.05") for seed in range(5)}

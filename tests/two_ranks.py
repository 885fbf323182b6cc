"""Two ranks of one run on this machine, as torchrun starts them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence


def run_two_ranks(program: str, arguments: Sequence[str] = (), limit: float = 120) -> list[tuple[int, str, str]]:
    """Run a Python program in two ranks with a thread each, and return exit code, stdout and stderr of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    ranks = []
    for rank in range(2):
        numbers = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
        environment = os.environ | {name: str(value) for name, value in (numbers | place).items()}
        command = [sys.executable, "-c", program, *arguments]
        ranks.append(subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True))
    try:
        outputs = [process.communicate(timeout=limit) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(ranks, outputs, strict=True)]

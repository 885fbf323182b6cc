"""The short form of torchrun: the same command in several processes of this machine that train one run together."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

LAUNCHED = "DENETDM_LAUNCHED"
"""Set in the environment of the ranks, which need not launch any."""

_SECONDS_TO_FOLLOW = 15.0
"""How long ranks have to end by themselves once one of them has failed; without it they may wait for ever."""


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run the program with these arguments in `count` ranks, and return what it ended with.

    That is the exit code of the first rank that failed, or 0.

    Raises:
        Stopped: a signal asked for it; it was passed on, and every rank has ended.
    """
    processes: list[subprocess.Popen[bytes]] = []
    port = _free_port()
    try:
        for rank in range(count):
            numbers = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
            said = {**numbers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, LAUNCHED: 1}
            environment = os.environ | {name: str(value) for name, value in said.items()}
            processes.append(subprocess.Popen([sys.executable, "-m", "denetdm_cli", *arguments], env=environment))
        return _follow(processes)
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        _follow(processes)
        raise
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _follow(processes: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Wait until all have ended, but not for ever once one has failed; return the first code that is not 0."""
    first = 0
    until = float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        codes = [process.returncode for process in processes if process.poll()]
        if codes and not first:
            first, until = codes[0], time.monotonic() + _SECONDS_TO_FOLLOW
        time.sleep(0.05)
    return first or next((process.returncode for process in processes if process.poll()), 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

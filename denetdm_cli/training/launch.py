"""The short form of torchrun: the same command in several processes of this machine that train one run together."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from signal import SIGINT, SIGTERM

from denetdm_cli.utils import signals
from denetdm_cli.utils.errors import EXIT_INTERRUPTED, EXIT_STOPPED, RankError

LAUNCHED = "DENETDM_LAUNCHED"
"""Set in the environment of the ranks, which need not launch any."""

_NOT_FAILED = (None, 0, EXIT_STOPPED, EXIT_INTERRUPTED)
"""Exit codes of a rank (None: still running) that leave the others their time: one may still be writing the state."""
_SECONDS_AFTER_FAILURE = 15.0
"""From the failure of one rank to KILL of the others, which may wait for it for ever."""


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run the program with these arguments in `count` ranks, and return the exit code of the first that failed, or 0.

    Raises:
        Stopped: a signal asked for it; every rank got the signal and has ended.
        RankError: a rank was killed.
    """
    processes: list[subprocess.Popen[bytes]] = []
    port = _free_port()
    try:
        with signals.deferred():  # a second signal does not cut the time in which ranks write their state
            for rank in range(count):
                numbers = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
                variables = {**numbers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, LAUNCHED: 1}
                environment = os.environ | {name: str(value) for name, value in variables.items()}
                processes.append(subprocess.Popen([sys.executable, "-m", "denetdm_cli", *arguments], env=environment))
            return _wait_for(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _wait_for(processes: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Wait until all ranks have ended, for a limited time once one has failed; return the exit code of the run.

    A pending signal is sent to the ranks. Before its training begins it ends a rank at once.

    Raises:
        RankError: a rank ended by another signal.
    """
    deadline, sent = float("inf"), 0
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if signals.pending() and not sent:
            # Ctrl-C has reached them already, and a second one would not wait for the step.
            sent = SIGTERM if signals.pending() == SIGINT else signals.pending()
            for process in processes:
                process.send_signal(sent)
        if deadline == float("inf") and any(process.poll() not in _NOT_FAILED for process in processes):
            deadline = time.monotonic() + _SECONDS_AFTER_FAILURE
        time.sleep(0.05)
    codes = [process.returncode for process in processes if process.poll()]
    if killed := [-code for code in codes if code < 0 and -code not in (sent, signals.pending())]:
        raise RankError(f"a process of the run was ended by signal {killed[0]}")
    # The exit code of the rank that failed explains more than those of ranks that lost it.
    return next((code for code in codes if code != RankError.exit_code), RankError.exit_code if codes else 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

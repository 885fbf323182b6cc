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

_UNHURRIED = (None, 0, EXIT_STOPPED, EXIT_INTERRUPTED)
"""What a rank ends with, or not yet, when the others may take their time: one may still be writing the state."""
_SECONDS_TO_FOLLOW = 15.0
"""How long ranks have to end by themselves once one of them has failed; without it they may wait for ever."""


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run the program with these arguments in `count` ranks, and return what it ended with.

    That is the exit code of the first rank that failed, or 0.

    Raises:
        Stopped: a signal asked for it; it was passed on, and every rank has ended.
        RankError: a rank was killed.
    """
    processes: list[subprocess.Popen[bytes]] = []
    port = _free_port()
    try:
        with signals.deferred():  # the ranks need their time however many signals come
            for rank in range(count):
                numbers = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
                said = {**numbers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, LAUNCHED: 1}
                environment = os.environ | {name: str(value) for name, value in said.items()}
                processes.append(subprocess.Popen([sys.executable, "-m", "denetdm_cli", *arguments], env=environment))
            return _follow(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _follow(processes: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Wait until all have ended, but not for ever once one has failed; return what the run ended with.

    The signal that waits is passed on to them; it may end a rank at once, as before its training begins.

    Raises:
        RankError: a rank ended by another signal.
    """
    until, passed_on = float("inf"), 0
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        if signals.pending() and not passed_on:
            # Ctrl-C has reached them already, and a second one would not wait for the step.
            passed_on = SIGTERM if signals.pending() == SIGINT else signals.pending()
            for process in processes:
                process.send_signal(passed_on)
        if until == float("inf") and any(process.poll() not in _UNHURRIED for process in processes):
            until = time.monotonic() + _SECONDS_TO_FOLLOW
        time.sleep(0.05)
    codes = [process.returncode for process in processes if process.poll()]
    if killed := [-code for code in codes if code < 0 and -code not in (passed_on, signals.pending())]:
        raise RankError(f"a process of the run was ended by signal {killed[0]}")
    # The one that failed says more than those that lost it.
    return next((code for code in codes if code != RankError.exit_code), RankError.exit_code if codes else 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

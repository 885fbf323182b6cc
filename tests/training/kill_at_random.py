"""A program that trains in child processes and kills them at random moments; see test_kills.py.

It forks, so that a child need not import torch again: hundreds of milliseconds a kill instead of seconds.
"""

import json
import os
import random
import signal
import sys
import time

import torch

from denetdm_cli.cli import app
from denetdm_cli.training import stages, workers  # noqa: F401 - imported before the forks

SPREAD = 0.3
"""Seconds within which a kill comes once training has begun; an epoch takes as long."""


def attempt(arguments: list[str], number: int, wait_for_training: bool, delay: float) -> int:
    """Train in a child, send it a signal after a while, and return its status: an exit code, or minus a signal."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["denetdm", *arguments]
        try:
            app.main()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        finally:
            os._exit(99)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as said:
        if wait_for_training:
            heard = b""
            while b"images an epoch" not in heard and (more := said.read(4096)):
                heard += more
        time.sleep(delay)
        os.kill(child, number)
        while said.read(4096):
            pass
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Kill as often as asked for, then train to the end; say on stdout how every attempt ended."""
    seed, kills, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    random_moments = random.Random(int(seed))
    ends = []
    for kill in range(int(kills)):
        number = signal.SIGTERM if kill % 3 == 2 else signal.SIGKILL
        early = kill % 10 == 9
        delay = random_moments.uniform(0, SPREAD / 4 if early else SPREAD)
        ends.append((int(number), attempt(arguments, number, not early, delay)))
    print(json.dumps({"ends": ends, "last": attempt(arguments, 0, True, 0.0)}))


if __name__ == "__main__":
    main()

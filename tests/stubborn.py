"""A run whose process ignores TERM; a worker process imports it by name."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denetdm_cli.training.events import EpochEvaluated


@dataclass(frozen=True)
class StubbornJob:
    config: Any
    dataset_path: Path
    name: str = "ColoredMNIST/seed7"

    def events(self, dataset: Any) -> Iterator[EpochEvaluated]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        yield EpochEvaluated({"pid": os.getpid()})
        time.sleep(1000)

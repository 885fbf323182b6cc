"""Running commands as a user does, and looking at what is left."""

import contextlib
import io
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from denetdm_cli.cli import app
from denetdm_cli.training import checkpoint

NAME = "ColoredMNIST-Skewed0.1-Severity4"
"""The data set folder that the tests of the commands share."""
EPOCHS = 3
"""Of its stage 1."""


STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d ", re.MULTILINE)
"""What a line of a log begins with."""


@dataclass(frozen=True)
class Outcome:
    """What a command left; `err` is without the time stamps that `log` has."""

    code: int
    out: str
    err: str
    log: str = ""


def call(*arguments: object) -> Outcome:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["denetdm", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        app.main()
    assert isinstance(ended.value.code, int)
    return Outcome(ended.value.code, out.getvalue(), STAMP.sub("", err.getvalue()), err.getvalue())


def good(*arguments: object) -> Outcome:
    """Run a command that must succeed."""
    outcome = call(*arguments)
    assert outcome.code == 0, outcome
    return outcome


def refused(code: int, outcome: Outcome, *words: object) -> None:
    """It failed as a user's mistake does: this exit code, and these words in what is wrong or in what to do."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    wrong, found, remedy = outcome.err.partition("\nwhat to do: ")
    assert found, outcome.err
    assert re.search(r"^error: \S", wrong, re.MULTILINE)
    assert len(remedy.strip()) > 10
    for word in words:
        assert str(word) in outcome.err
    assert "Traceback" not in outcome.err


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden or not."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def models(folder: Path) -> dict[str, Any]:
    """What the checkpoints of a stage hold, but for the place of the run."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors, metadata = checkpoint.load(file)
        metadata["config"].pop("out", None)
        found[file.name] = ({name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, metadata)
    return found


def no_leftovers(folder: Path) -> bool:
    return not [path for path in folder.rglob(".*") if path.suffix in (".part", ".old")]


def plain(text: str) -> bool:
    """No control characters, so also no colours and no carriage returns."""
    return not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)


def child(*arguments: object, limit: float = 60, **options: Any) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=limit, **options
    )
    done.stderr = STAMP.sub("", done.stderr)
    return done


def figures(stage: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, but for what wall time decides."""
    records = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def signalled(number: int, command: list[Any], *folders: Path, **options: Any) -> tuple[int, str, str]:
    """Run a command, send it a signal once one of some stages has written a state, and return how it ended.

    Returns:
        Exit code, stdout and stderr.
    """
    words = [str(word) for word in command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        until = time.monotonic() + 100
        while not any((folder / "resume.safetensors").exists() for folder in folders):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=100)
    return process.returncode, out, err

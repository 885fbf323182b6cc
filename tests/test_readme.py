"""Every command in the README is one that the program understands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from denetdm_cli.cli.app import app
from denetdm_cli.utils import log
from denetdm_cli.utils.errors import (
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    CheckpointError,
    ConfigError,
    DataError,
    DownloadError,
    NumericError,
    RankError,
    StorageError,
)

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = sorted(
    set(
        re.findall(
            r"denetdm (?:make-data|validate|train-poe|distill|evaluate|configs"
            r"|download-pretrained|convert|export|predict|status|report) [^\n|&]+",
            "\n".join(BLOCKS),
        )
    )
)


@pytest.fixture(autouse=True)
def _as_usual() -> Iterator[None]:
    yield
    log.reset()  # which a --quiet in the README has changed


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_parses(line: str) -> None:
    command: Any = typer.main.get_command(app)
    line = re.sub(r"\$\(\(.*?\)\)", "0", re.sub(r"\$\{.*?\}", "0.01", line))  # what bash would put there
    words = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)


def test_the_readme_has_commands() -> None:
    assert {line.split()[1] for line in COMMANDS} == {
        "make-data", "validate", "train-poe", "distill", "evaluate", "configs",
        "download-pretrained", "convert", "export", "predict", "status", "report",
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind", [ConfigError, DataError, CheckpointError, DownloadError, NumericError, RankError, StorageError]
)
def test_exit_codes_are_in_the_readme(kind: type) -> None:
    assert re.search(rf"^\| {kind.exit_code} \| ", README, flags=re.MULTILINE)  # type: ignore[attr-defined]


def test_the_exit_codes_of_signals_are_in_the_readme() -> None:
    assert f"| {EXIT_INTERRUPTED} | stopped by Ctrl-C" in README
    assert f"| {EXIT_STOPPED} | stopped by a signal" in README

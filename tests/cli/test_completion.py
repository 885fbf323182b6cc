"""What the shell completes: commands and options, and names of data sets and models, without a wait."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import child

from denetdm_cli.config.presets import preset_names
from denetdm_cli.hub.published import PUBLISHED

BEGUN_WITH_C = [name for name in preset_names() if name.startswith("c")]
MODELS = [published.name for published in PUBLISHED]
ASK = """
import contextlib, io, json, sys
from denetdm_cli.cli.app import main
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
    main()
heavy = {"torch", "numpy", "yaml", "requests", "denetdm_cli.config.load"} & set(sys.modules)
print(json.dumps([out.getvalue(), sorted(heavy)]))
"""


def completed(instruction: str, **variables: str) -> list[str]:
    done = child("-c", ASK, env=os.environ | {"_DENETDM_COMPLETE": instruction} | variables)
    assert (done.returncode, done.stderr) == (0, "")
    out, heavy = json.loads(done.stdout)
    assert heavy == []
    return str(out).split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("denetdm make-data c", BEGUN_WITH_C),
        ("denetdm train-poe --seed 1 --dataset c", BEGUN_WITH_C),
        ("denetdm configs show c", BEGUN_WITH_C),
        ("denetdm -q configs cp c", BEGUN_WITH_C),
        ("denetdm download-pretrained ", MODELS),
        ("denetdm download-pretrained coloredmnist b", ["bffhq"]),
        ("denetdm distill --select ", ["last", "valid", "paper"]),
        ("denetdm evaluate --qu", ["--quiet"]),
        ("denetdm tr", ["train", "train-poe"]),
        ("denetdm evaluate ru", []),  # of which the shell makes files
    ],
)
def test_bash_is_told(line: str, expected: list[str]) -> None:
    assert completed("complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(line.split(" ")) - 1)) == expected


def test_zsh_and_fish_are_told() -> None:
    words = completed("complete_zsh", _TYPER_COMPLETE_ARGS="denetdm make-data cel")
    assert words == ["_arguments", "'*:", ':(("celeba"))\'']
    fish = {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "_TYPER_COMPLETE_ARGS": "denetdm download-pretrained "}
    assert completed("complete_fish", **fish) == MODELS


@pytest.mark.parametrize(
    ("shell", "file"),
    [
        ("bash", ".bash_completions/denetdm.sh"),
        ("zsh", ".zfunc/_denetdm"),
        ("fish", ".config/fish/completions/denetdm.fish"),
    ],
)
def test_it_installs_for_every_shell(tmp_path: Path, shell: str, file: str) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = child("-m", "denetdm_cli", "--show-completion", shell, env=environment)
    installed = child("-m", "denetdm_cli", "--install-completion", shell, env=environment)
    assert (shown.returncode, installed.returncode) == (0, 0)
    assert (tmp_path / file).read_text().strip() == shown.stdout.strip()
    assert "_DENETDM_COMPLETE" in shown.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n", tmp_path / file], check=True, timeout=60)


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / "denetdm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m denetdm_cli "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    script = """
source <(denetdm --show-completion bash)
COMP_WORDS=(denetdm make-data c)
COMP_CWORD=2
_denetdm_completion denetdm
printf '%s\\n' "${COMPREPLY[@]}"
"""
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == BEGUN_WITH_C, done

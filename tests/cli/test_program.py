"""The program as a whole and its configurations: help, usage, `denetdm configs`."""

import os
import signal
import time
from pathlib import Path

import pytest
from cli_support import NAME, Outcome, call, child, contents, good, plain, refused

from denetdm_cli import __version__
from denetdm_cli.cli import options
from denetdm_cli.config.presets import preset_names
from denetdm_cli.utils import signals


class TestProgram:
    def test_help_and_lists_answer_without_torch(self, tmp_path: Path) -> None:
        code = """
import contextlib, io, sys
from denetdm_cli.cli.app import main
for words in ("--help", "--version", "train-poe --help", "distill --help", "evaluate --help", "make-data --help",
              "status --help", "report --help", "train --help", "configs ls"):
    sys.argv = ["denetdm", *words.split()]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main()
    except SystemExit as end:
        assert not end.code, words
    assert out.getvalue().strip(), words
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "torchvision", "numpy", "PIL", "safetensors"}))
"""
        done = child("-c", code)
        assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)

    def test_a_mistake_ends_the_process_with_its_code(self) -> None:
        done = child("-m", "denetdm_cli", "train-poe", "--dataset", "colredmnist", "--ratio", 0.1)
        refused(2, Outcome(done.returncode, done.stdout, done.stderr), "'colredmnist'", "'coloredmnist'")
        assert plain(done.stderr)
        assert list(Path.cwd().iterdir()) == []

    def test_version(self) -> None:
        assert good("--version").out == f"denetdm {__version__}\n"

    def test_every_command_is_listed(self) -> None:
        out = good("--help").out
        assert all(
            name in out for name in ("make-data", "train-poe", "distill", "evaluate", "configs", "status", "report")
        )

    @pytest.mark.parametrize(
        "arguments",
        [
            ["train"],
            ["train-poe", "--data-set", "coloredmnist"],
            ["train-poe", "--dataset", "coloredmnist", "--ratio", "a lot"],
            ["train-poe", "--dataset", "coloredmnist", "--select", "best"],
            ["evaluate"],
            ["evaluate", "x", "--split", "all"],
            ["distill", "x", "--teacher", "me"],
        ],
    )
    def test_wrong_usage(self, arguments: list[str]) -> None:
        outcome = call(*arguments)
        assert outcome.code == 2
        assert outcome.out == ""
        assert "Usage: denetdm" in outcome.err
        assert plain(outcome.err)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_signal_while_options_are_read(name: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: object) -> None:
        raise signals.Stopped(signal.Signals[name])

    monkeypatch.setattr(options, "choose", stopped)
    outcome = call("--quiet", "status")
    assert outcome.code == code
    assert outcome.err.strip().endswith(f"stopped by {name}")


def test_a_signal_that_an_import_turns_into_another_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def importing(_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt:
            raise AttributeError("half a module") from None

    monkeypatch.setattr(options, "choose", importing)
    outcome = call("--quiet", "status")
    assert (outcome.code, outcome.err) == (75, "stopped by SIGTERM\n")

    def broken(_: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr(options, "choose", broken)
    with pytest.raises(AttributeError, match="a bug"):
        call("--quiet", "status")


class TestConfigs:
    def test_ls(self) -> None:
        assert good("configs", "ls").out.split() == preset_names()

    def test_cp_gives_a_file_that_train_takes(self, data_root: Path, tmp_path: Path) -> None:
        outcome = good("configs", "cp", "coloredmnist", "my configs/mine.yaml")
        assert "train-poe --config 'my configs/mine.yaml'" in outcome.out
        copy = tmp_path / "my configs" / "mine.yaml"
        assert copy.read_text("utf-8") == good("configs", "show", "coloredmnist").out
        copy.write_text(copy.read_text("utf-8").replace("ratio: 0.01 ", "ratio: 0.1 "), "utf-8")
        good("train-poe", "--config", copy, "--data-root", data_root, "--epochs", 1, "--device", "cpu")
        assert (tmp_path / "runs" / NAME / "seed0" / "train-poe" / "results.json").is_file()

    def test_cp_into_a_folder(self, tmp_path: Path) -> None:
        good("configs", "cp", "coloredmnist", ".")
        assert (tmp_path / "coloredmnist.yaml").is_file()

    def test_cp_replaces_only_when_forced(self, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text("precious")
        refused(2, call("configs", "cp", "coloredmnist", "mine.yaml"), "mine.yaml exists", "--force")
        assert contents(tmp_path) == {"mine.yaml": b"precious"}
        good("configs", "cp", "coloredmnist", "mine.yaml", "--force")
        assert (tmp_path / "mine.yaml").read_text("utf-8") == good("configs", "show", "coloredmnist").out

    @pytest.mark.parametrize("command", ["show", "cp"])
    def test_an_unknown_name(self, tmp_path: Path, command: str) -> None:
        target = ["mine.yaml"] if command == "cp" else []
        refused(2, call("configs", command, "colormnist", *target), "'colormnist'", "'coloredmnist'", "configs ls")
        assert list(tmp_path.iterdir()) == []

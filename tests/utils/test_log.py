"""Lines for people: stamped and plain in a log, as they are on a terminal, fewer or more as was asked for."""

import contextlib
import io
import re
from datetime import datetime, timedelta, timezone

import pytest
from cli_support import plain
from rich.progress import Progress

from denetdm_cli.utils import log as logs
from denetdm_cli.utils.errors import ConfigError, DataError
from denetdm_cli.utils.log import Level, choose, debug, info, show_error, show_warnings, shown, stream


@pytest.fixture(autouse=True)
def _nothing_chosen() -> None:
    logs.reset()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr without their time stamps, which are checked."""
    lines = capsys.readouterr().err.splitlines()
    for line in lines:
        stamp = datetime.fromisoformat(line.split(" ")[0])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", line.split(" ")[0])
        assert abs(datetime.now(timezone.utc) - stamp) < timedelta(minutes=5)
    return [line.partition(" ")[2] for line in lines]


def test_every_line_of_a_log_is_stamped(capsys: pytest.CaptureFixture[str]) -> None:
    info("one")
    show_warnings(["two", "three"])
    show_error(DataError("2 problems:\n  first\n  second", "Mend them."))
    assert told(capsys) == [
        "one", "warning: two", "warning: three", "error: 2 problems:", "  first", "  second", "what to do: Mend them.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat\x1b[31m", r"cat\x1b[31m"),
        ("a\rb\tc\x00d\x7fe\x9bf", r"a\rb\tc\x00d\x7fe\x9bf"),
        ("a\nerror: forged", r"a\nerror: forged"),
        ("\udcff.png", r"\udcff.png"),
        ("\u2028x", r"\u2028x"),
        ("Hündchen 小狗 🐶", "Hündchen 小狗 🐶"),
    ],
)
def test_no_control_character_in_a_log(capsys: pytest.CaptureFixture[str], name: str, expected: str) -> None:
    info(f"class {name} of 3")
    show_error(ConfigError(name, name))
    assert told(capsys) == [f"class {expected} of 3", f"error: {expected}", f"what to do: {expected}"]
    assert shown(name) == expected


def test_a_table_in_a_pipe_has_no_control_character_either() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        stream(stderr=False).print("cat\x1b[31m \udcff \x9b", markup=False)
    assert out.getvalue() == "cat\\x1b[31m \\udcff \\x9b\n"
    assert plain(out.getvalue())


def test_a_terminal_gets_lines_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    with contextlib.redirect_stderr(Terminal()) as screen:
        info("[one] " + "long " * 50)
        show_error(DataError("what", "fix [it]"))
    assert re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines() == [
        "[one] " + "long " * 50, "error: what", "what to do: fix [it]",
    ]  # fmt: skip
    assert "\x1b[" in screen.getvalue()


def test_a_line_goes_above_a_live_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    with contextlib.redirect_stderr(Terminal()) as screen, Progress(console=stream(stderr=True)) as bar:
        bar.add_task("working")
        bar.refresh()
        show_warnings(["look out"])
    shown_lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()))
    assert "warning: look out" in [line.rstrip() for line in shown_lines]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (Level.QUIET, ["always", "warning: w", "error: e", "what to do: f"]),
        (Level.NORMAL, ["line", "always", "warning: w", "error: e", "what to do: f"]),
        (Level.VERBOSE, ["line", "always", "detail", "warning: w", "error: e", "what to do: f"]),
    ],
)
def test_how_much_is_told(capsys: pytest.CaptureFixture[str], level: Level, expected: list[str]) -> None:
    choose(level)
    info("line")
    info("always", always=True)
    debug("detail")
    show_warnings(["w"])
    show_error(ConfigError("e", "f"))
    assert told(capsys) == expected


def test_one_level_can_be_chosen() -> None:
    choose(Level.QUIET)
    choose(Level.QUIET)
    with pytest.raises(ConfigError, match="exclude each other"):
        choose(Level.VERBOSE)
    logs.reset()
    choose(Level.VERBOSE)

"""Messages on stderr, by level: plain lines on a terminal, lines with a time stamp elsewhere."""

import re
import sys
from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import IO, TYPE_CHECKING, TextIO, cast

from denetdm_cli.utils.errors import ConfigError, UserError

if TYPE_CHECKING:  # it takes a tenth of a second, and plain lines do without
    from rich.console import Console

_PLAIN_WIDTH = 80
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Level(Enum):
    """QUIET shows warnings, errors and results; NORMAL also progress; VERBOSE also what helps to debug a job."""

    QUIET = "--quiet"
    NORMAL = ""
    VERBOSE = "--verbose"


_level = Level.NORMAL
_silent = False


def reset() -> None:
    """Return to the normal level, as at the start of a command."""
    global _level, _silent
    _level, _silent = Level.NORMAL, False


def silence() -> None:
    """Show errors only from now on: another process of the same run shows the rest."""
    global _silent
    _silent = True


def choose(level: Level) -> None:
    """Show less or more from now on.

    Raises:
        ConfigError: the other was chosen before.
    """
    global _level
    if _level not in (Level.NORMAL, level):
        raise ConfigError("--quiet and --verbose exclude each other", "Give one of them.")
    _level = level


def quiet() -> bool:
    """Whether only warnings, errors and results are wanted."""
    return _silent or _level is Level.QUIET


def verbose() -> bool:
    """Whether details are wanted."""
    return not _silent and _level is Level.VERBOSE


def info(line: str, *, always: bool = False) -> None:
    """One line of progress or explanation; with `always` also under --quiet."""
    if (always and not _silent) or not quiet():
        _write(line)


def debug(line: str) -> None:
    """One line that helps to debug a job."""
    if verbose():
        _write(line)


def show_error(error: UserError) -> None:
    """What is wrong, and what to do."""
    _write(error.what, "error:", "bold red")
    _write(error.fix, "what to do:", "bold")


def show_warnings(warnings: Sequence[str]) -> None:
    """What did not stop the program but should be known."""
    for warning in () if _silent else warnings:
        _write(warning, "warning:", "bold yellow")


def stream(*, stderr: bool) -> "Console":
    """Rich where there is a terminal; elsewhere plain text of a fixed width, without colour or wrapping surprises."""
    from rich.console import Console

    file = sys.stderr if stderr else sys.stdout
    if file.isatty():
        return Console(stderr=stderr, highlight=False, emoji=False)
    plain = cast("IO[str]", _Plain(file))
    return Console(file=plain, highlight=False, emoji=False, width=_PLAIN_WIDTH, no_color=True, force_terminal=False)


def shown(text: str) -> str:
    """Text that any terminal can show: what it cannot is escaped."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _write(text: str, label: str = "", style: str = "") -> None:
    if sys.stderr.isatty():
        from rich.markup import escape

        marked = f"[{style}]{label}[/] {escape(text)}"
        console = stream(stderr=True)
        with console.capture() as line:
            console.print(marked if label else text, markup=bool(label), soft_wrap=True)
        sys.stderr.write(line.get())  # a live progress bar takes this file's place; a console writes past it
        return
    # A line break of ours has two spaces after it; any other was in a name, and must not begin a line of the log.
    first, *more = (f"{label} {text}" if label else text).split("\n  ")
    stamp = datetime.now().astimezone().isoformat(timespec="seconds")
    sys.stderr.write("".join(f"{stamp} {shown(line)}\n" for line in (first, *(f"  {part}" for part in more))))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode()


class _Plain:
    """A file that gets no control character but the line break, whatever names are written to it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(_CONTROL.sub(lambda match: _escaped(match[0]), text))

    def flush(self) -> None:
        self._file.flush()

"""How long work on data tells what it is doing."""

from typing import Protocol


class Reporter(Protocol):
    """Who listens: the console, or a test."""

    def info(self, line: str) -> None:
        """One line on what is done next, or on what was found."""

    def warn(self, warning: str) -> None:
        """What does not stop the work but should be known; lines after the first begin with two spaces."""

    def advance(self, what: str, done: int, total: int) -> None:
        """`done` of `total` steps of `what` are done; called at will, shown at a rate the listener chooses."""

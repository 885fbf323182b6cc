"""The protocol by which long work on data reports its progress."""

from typing import Protocol


class Reporter(Protocol):
    """Receiver of the reports: the console, or a test."""

    def info(self, line: str) -> None:
        """One line on what is done next, or on what was found."""

    def warn(self, warning: str) -> None:
        """What does not stop the work but should be known; lines after the first begin with two spaces."""

    def advance(self, what: str, done: int, total: int) -> None:
        """`done` of `total` steps of `what` are done; the receiver chooses how many of the calls it shows."""


class Silent:
    """A reporter that reports to nobody."""

    def info(self, line: str) -> None:
        """Nothing."""

    def warn(self, warning: str) -> None:
        """Nothing."""

    def advance(self, what: str, done: int, total: int) -> None:
        """Nothing."""

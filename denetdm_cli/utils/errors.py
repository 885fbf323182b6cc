"""Errors a user can mend: what is wrong, what to do, and the exit code the program ends with."""

import errno


class UserError(Exception):
    """A mistake outside the program's own code; the command line prints it in two parts and exits.

    Args:
        what: what is wrong and where (file, key, value).
        fix: what the user can do about it.
    """

    exit_code = 2
    reported = False
    """Whether another process prints it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n{self.fix}"


class ConfigError(UserError):
    """A wrong option, key or value."""

    exit_code = 2


class DataError(UserError):
    """A data set or a source of images that is missing, damaged or does not fit."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint or run folder that is missing, damaged or does not fit."""

    exit_code = 4


class DownloadError(UserError):
    """Nothing could be fetched from any of the places tried."""

    exit_code = 5


class NumericError(UserError):
    """A loss or an output that is not a finite number; `what` names the epoch."""

    exit_code = 6

    @staticmethod
    def of(what: str, section: str) -> "NumericError":
        """The error of a method, by its section of the configuration."""
        return NumericError(
            what,
            "Epochs completed before this one are kept. Lower the learning rate "
            f"(--set {section}.learning_rate=...) and start anew with --force.",
        )


class StorageError(UserError):
    """A disk that is full or a folder that may not be written."""

    exit_code = 7


class RankError(UserError):
    """One of the processes that train a run together is gone."""

    exit_code = 8

    def __init__(
        self,
        what: str,
        fix: str = "See the messages of the other processes; signal 9 often means that memory ran out. The same "
        "command resumes from the last state that was written.",
    ) -> None:
        super().__init__(what, fix)


def from_os_error(error: OSError) -> StorageError:
    """What a user can do about an error of the operating system."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return StorageError(
        f"{error.filename}: {error.strerror}" if error.filename else str(error),
        "Make room, or give another folder. Nothing is half-written: the same command resumes from the last state "
        "that could be written."
        if full
        else "Check the path and its permissions, or give another one.",
    )


EXIT_STOPPED = 75
"""Stopped by a signal; the same command resumes (EX_TEMPFAIL of sysexits.h: "try again later")."""
EXIT_INTERRUPTED = 130
"""Stopped by Ctrl-C; the same command resumes."""

"""Signals that stop the program: they raise `Stopped` at once or, within `deferred`, after the current step."""

import ctypes
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from denetdm_cli.utils.errors import EXIT_INTERRUPTED, EXIT_STOPPED

DEFAULT = ("INT", "TERM", "HUP", "USR1")
"""Ctrl-C, a lost terminal, and what batch systems send before they kill."""
OPTIONAL = ("USR2", "ALRM", "QUIT", "XCPU")
"""Signals that the configuration key `stop_signals` may add."""

_PR_SET_PDEATHSIG = 1


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop.

    A kind of KeyboardInterrupt, so that everything that cleans up after Ctrl-C does so after any other signal too.
    """

    reported = False
    """Whether the stop has been printed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _State:
    """State of the signal handler, which Python calls with nothing of ours.

    Attributes:
        defer: whether signals become pending instead of raising.
        pending: number of the pending signal, or 0.
        raised: the newest `Stopped` that the handler raised.
    """

    defer = False
    pending = 0
    raised: Stopped | None = None


def exit_code(stop: KeyboardInterrupt) -> int:
    """130 after Ctrl-C, 75 ("try again later") after a signal of a batch system."""
    return EXIT_STOPPED if isinstance(stop, Stopped) and stop.number != signal.SIGINT else EXIT_INTERRUPTED


def mark_reported(stop: KeyboardInterrupt) -> None:
    """Note that the stop has been printed."""
    if isinstance(stop, Stopped):
        stop.reported = True


@contextmanager
def handlers(names: Iterable[str] = DEFAULT) -> Iterator[None]:
    """Install handlers that raise `Stopped` for the signals of these names; the earlier ones return at the end.

    Signals that the system does not have are left out, and all are outside the main thread, where Python handles none.
    A signal that the process was started to ignore, as `nohup` does with HUP, stays ignored.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = {getattr(signal, f"SIG{name}") for name in names if in_main_thread and hasattr(signal, f"SIG{name}")}
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    outermost = not any(signal.getsignal(number) is _handle for number in signal.valid_signals())
    for number in before:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        _State.pending = 0
        if outermost:
            _State.raised = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def default_handlers() -> Iterator[None]:
    """Restore the system's own handling of signals, for a wait in a C library, where no Python handler runs."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = [number for number in signal.valid_signals() if in_main_thread and signal.getsignal(number) is _handle]
    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _handle)


def terminate_with_parent() -> None:
    """Let the system send TERM to this process when its parent dies; Linux alone can."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


@contextmanager
def deferred() -> Iterator[None]:
    """Keep a signal pending until `raise_pending` or the end of the body; a second Ctrl-C raises at once.

    Raises:
        Stopped: at the end.
    """
    with _deferring(True):
        yield
    raise_pending()


@contextmanager
def immediate() -> Iterator[None]:
    """Within `deferred`: let signals raise at once again, a pending one included."""
    with _deferring(False):
        raise_pending()
        yield


def last_raised() -> Stopped | None:
    """The newest `Stopped` that a signal raised; None where there was none."""
    return _State.raised


def pending() -> int:
    """Number of the pending signal; 0 where there is none."""
    return _State.pending


def raise_pending() -> None:
    """Raise the pending signal, if there is one.

    Raises:
        Stopped: there was one.
    """
    number, _State.pending = _State.pending, 0
    if number:
        raise Stopped(number)


def raise_swallowed() -> None:
    """Raise again a `Stopped` that was swallowed, as destructors and imports do with exceptions.

    Call it before long work, which a stopped program must not begin.

    Raises:
        Stopped: there was one.
    """
    if _State.raised is not None:
        raise _State.raised


@contextmanager
def _deferring(defer: bool) -> Iterator[None]:
    before, _State.defer = _State.defer, defer
    try:
        yield
    finally:
        _State.defer = before


def _handle(number: int, _: FrameType | None) -> None:
    second_ctrl_c = number == signal.SIGINT == _State.pending
    if _State.defer and not second_ctrl_c:
        _State.pending = _State.pending or number
    else:
        _State.pending = 0
        _State.raised = Stopped(number)
        raise _State.raised

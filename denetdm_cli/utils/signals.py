"""Signals that ask the program to stop: an exception at once, or, where a step must not be cut, after it."""

import ctypes
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from denetdm_cli.utils.errors import EXIT_INTERRUPTED, EXIT_STOPPED

ALWAYS = ("INT", "TERM", "HUP", "USR1")
"""Ctrl-C, a lost terminal, and what batch systems send before they kill."""
ALSO = ("USR2", "ALRM", "QUIT", "XCPU")
"""What a configuration may add."""


_PR_SET_PDEATHSIG = 1


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop.

    A kind of KeyboardInterrupt, so that everything that tidies up after Ctrl-C does so after any other signal too.
    """

    told = False
    """Whether a person has been told of it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Heard:
    """Whether signals are to wait, the one that does, and what the newest that did not has raised.

    A handler can only speak through something global.
    """

    wait = False
    number = 0
    raised: Stopped | None = None


def exit_code(stop: KeyboardInterrupt) -> int:
    """130 after Ctrl-C, 75 ("try again later") after a signal of a batch system."""
    return EXIT_STOPPED if isinstance(stop, Stopped) and stop.number != signal.SIGINT else EXIT_INTERRUPTED


def tell(stop: KeyboardInterrupt) -> None:
    """Note that a person has been told of it."""
    if isinstance(stop, Stopped):
        stop.told = True


@contextmanager
def listening(names: Iterable[str] = ALWAYS) -> Iterator[None]:
    """Let the signals of these names raise `Stopped`; what they did before they do again at the end.

    Those that the system does not have are left out, and all are outside the main thread, where Python handles none.
    One that the process was started to ignore, as `nohup` does with HUP, stays ignored.
    """
    here = threading.current_thread() is threading.main_thread()
    numbers = {getattr(signal, f"SIG{name}") for name in names if here and hasattr(signal, f"SIG{name}")}
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    outermost = not any(signal.getsignal(number) is _handle for number in signal.valid_signals())
    for number in before:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        _Heard.number = 0
        if outermost:
            _Heard.raised = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def by_default() -> Iterator[None]:
    """Let signals do what they do to any program: where nothing is kept, and a wait outside Python hears no handler."""
    here = threading.current_thread() is threading.main_thread()
    ours = [number for number in signal.valid_signals() if here and signal.getsignal(number) is _handle]
    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _handle)


def stop_with_parent() -> None:
    """Ask the system to send TERM to this process when the one that started it dies; Linux alone can."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


@contextmanager
def deferred() -> Iterator[None]:
    """Let a signal wait until `check`, or the end of the body; only a second Ctrl-C waits no longer.

    Raises:
        Stopped: at the end.
    """
    with _waiting(True):
        yield
    check()


@contextmanager
def at_once() -> Iterator[None]:
    """Within `deferred`: let signals raise at once again, also the one that waits."""
    with _waiting(False):
        check()
        yield


def raised() -> Stopped | None:
    """What the newest signal has raised that did not wait; None where there was none."""
    return _Heard.raised


def waiting() -> int:
    """The number of the signal that waits; 0 where none does."""
    return _Heard.number


def check() -> None:
    """Raise the signal that waits, if one does.

    Raises:
        Stopped: one did.
    """
    number, _Heard.number = _Heard.number, 0
    if number:
        raise Stopped(number)


def begin() -> None:
    """Raise again what a signal has raised, where long work begins, to which a program that was stopped does not come.

    Destructors and imports swallow exceptions.

    Raises:
        Stopped: there was one.
    """
    if _Heard.raised is not None:
        raise _Heard.raised


@contextmanager
def _waiting(wanted: bool) -> Iterator[None]:
    before, _Heard.wait = _Heard.wait, wanted
    try:
        yield
    finally:
        _Heard.wait = before


def _handle(number: int, _: FrameType | None) -> None:
    impatient = number == signal.SIGINT == _Heard.number
    if _Heard.wait and not impatient:
        _Heard.number = _Heard.number or number
    else:
        _Heard.number = 0
        _Heard.raised = Stopped(number)
        raise _Heard.raised

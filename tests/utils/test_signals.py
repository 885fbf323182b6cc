import os
import signal
import sys
import threading
import time

import pytest

from denetdm_cli.utils import signals as stopping
from denetdm_cli.utils.signals import Stopped


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    for _ in range(1000):  # a handler runs between two steps of the interpreter
        pass


@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1", "INT"])
def test_a_signal_raises_at_once(name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    with pytest.raises(Stopped, match=f"SIG{name}") as stop, stopping.handlers():
        send(number)
    assert stop.value.number == number
    assert stopping.exit_code(stop.value) == (130 if name == "INT" else 75)


def test_ctrl_c_of_python_itself_counts_as_one() -> None:
    assert stopping.exit_code(KeyboardInterrupt()) == 130


def test_others_are_heard_where_they_are_named() -> None:
    with pytest.raises(Stopped), stopping.handlers(), stopping.handlers(["USR2", "NONE"]):
        send(signal.SIGUSR2)


def test_what_was_before_is_there_again() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stopping.handlers():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.handlers():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_it_waits_for_the_end_of_a_step() -> None:
    steps = []

    def step() -> None:
        with stopping.deferred():
            send(signal.SIGUSR1)
            steps.append(stopping.pending())
            send(signal.SIGTERM)  # batch systems send several: the first one counts, and none cuts a step
            steps.append(stopping.pending())

    with pytest.raises(Stopped) as stop, stopping.handlers():
        step()
    assert steps == [signal.SIGUSR1] * 2
    assert stop.value.number == signal.SIGUSR1
    assert stopping.pending() == 0


def test_check_raises_the_one_that_waits() -> None:
    with stopping.handlers(), stopping.deferred():
        stopping.raise_pending()
        send(signal.SIGTERM)
        with pytest.raises(Stopped):
            stopping.raise_pending()
        stopping.raise_pending()


def test_a_second_ctrl_c_does_not_wait() -> None:
    with stopping.handlers(), stopping.deferred():
        send(signal.SIGINT)
        with pytest.raises(Stopped):
            send(signal.SIGINT)


def test_at_once_within_deferred() -> None:
    with stopping.handlers(), stopping.deferred():
        with pytest.raises(Stopped), stopping.immediate():
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        with pytest.raises(Stopped), stopping.immediate():
            pytest.fail("the one that waited was not raised")
        send(signal.SIGTERM)
        assert stopping.pending() == signal.SIGTERM
        with pytest.raises(Stopped):
            stopping.raise_pending()


def test_an_error_is_not_hidden_by_a_signal_that_waits() -> None:
    def step() -> None:
        with stopping.handlers(), stopping.deferred():
            send(signal.SIGTERM)
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        step()
    assert stopping.pending() == 0


def test_threads_listen_to_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def look() -> None:
        with stopping.handlers():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]


def test_what_was_swallowed_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with stopping.handlers():
        Careless()
        with stopping.handlers(("USR2",)):
            pass
        with pytest.raises(Stopped, match="SIGTERM"):
            stopping.raise_swallowed()
    stopping.raise_swallowed()

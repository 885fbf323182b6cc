"""Numbers as people read them."""

import pytest

from denetdm_cli.utils.text import duration, percent


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (3700, "1 h 1 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_percent() -> None:
    assert percent(0.98765) == "98.77"
    assert percent(0.98765, 1) == "98.8"
    assert percent(None) == "-"

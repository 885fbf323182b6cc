"""Numbers as people read them."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """A time span in its two largest units, such as `2 h 5 min`."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def percent(share: float | None, digits: int = 2) -> str:
    """A share between 0 and 1 in per cent without the sign; a dash for None."""
    return "-" if share is None else f"{100 * share:.{digits}f}"

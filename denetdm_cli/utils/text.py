"""Numbers and lists of names as people read them."""

from collections.abc import Iterable

from denetdm_cli.utils.log import shown

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


def gigabytes(size: int) -> str:
    """A number of bytes, such as `1.50 GB`."""
    return f"{size / 1e9:,.2f} GB"


def first_few(names: Iterable[str], count: int = 5) -> str:
    """The first names of a list, escaped by `shown`, and how many more there are."""
    listed = [shown(name) for name in names]
    more = f" and {len(listed) - count:,} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more

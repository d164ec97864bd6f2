"""Numbers in words: three significant digits, thousands separated, rates as "1 in 98"."""

from __future__ import annotations

import math

NOTHING = "—"
"""Shown when there is no value."""


def one_in(rate: float) -> str:
    """A rate in words: "1 in 98", "44 in 100", "1 in 2.5 million"; three significant digits at most.

    Raises:
        ValueError: not a number in [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"a rate lies in [0, 1], got {rate}")
    if rate == 0:
        return "0"
    if rate > 0.105:
        hundred = f"{100 * rate:.0f}"
        if hundred == "100" and rate < 1:
            return "more than 99 in 100"
        return "all" if rate == 1 else f"{hundred} in 100"
    inverse = _significant(1 / rate)
    if inverse < 1e6:
        return f"1 in {inverse:,.0f}"
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if size <= inverse < 1000 * size:
            return f"1 in {inverse / size:.3g} {name}"
    return f"1 in 10^{math.log10(inverse):.0f}"


def _significant(value: float, digits: int = 3) -> float:
    return float(f"{value:.{digits - 1}e}")


def chance(p: float) -> str:
    """A probability in words: "0.03", or "less than 1 in 1,000" if smaller digits say nothing more."""
    if p >= 0.995:
        return "nearly 1"
    return "less than 1 in 1,000" if p < 1e-3 else f"{p:.2g}"


def integer(value: int | None) -> str:
    """A whole number with thousands marked, or a dash for None."""
    return NOTHING if value is None else f"{value:,}"


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits; a power of ten if the number would need many zeros."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        text = f"{_significant(value, digits):,.10f}".rstrip("0").rstrip(".")
        return text.replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{power}".replace("-", "−")


def of(k: int, n: int) -> str:
    """A count in words: "39 of 4,000"."""
    return f"{k:,} of {n:,}"


def often(count: float) -> str:
    """How many times, in words: "never", "once", "27 times", "2.5 times"."""
    told = f"{count:,.0f}" if count == int(count) else f"{count:,.1f}"
    return "never" if count == 0 else "once" if count == 1 else f"{told} times"


def noise(t: float | None) -> str:
    """A t', or "never" if nothing came back."""
    return "never" if t is None else f"{t:.3g}"


def percent(value: float | None) -> str:
    """A share with two significant digits at either end: "44%", "0.25%", "99.8%"."""
    if value is None:
        return NOTHING
    hundred = 100 * value
    near_end = min(hundred, 100 - hundred)
    if hundred in (0.0, 100.0) or near_end >= 10:
        return f"{hundred:.0f}%"
    if near_end >= 1:
        return f"{hundred:.1f}%".replace(".0%", "%")
    if hundred < 1:
        return f"{number(hundred, 2)}%"
    return f"{hundred:.2f}%".replace(".00%", "%")


def between(low: float, high: float) -> str:
    """An interval of rates: "between 1 in 135 and 1 in 73", "at most 1 in 1,330"."""
    if low <= 0:
        return f"at most {one_in(high)}"
    if high >= 1:
        return f"at least {one_in(low)}"
    return f"between {one_in(low)} and {one_in(high)}"


def amount(value: float | None) -> str:
    """Large counts of work: "1.25 million"."""
    if value is None:
        return NOTHING
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """ "48 s", "3 min 20 s", "2 h 5 min"."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"

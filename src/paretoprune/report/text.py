"""Text for people: untrusted names made harmless, figures with units and intervals."""

from __future__ import annotations

import math
import unicodedata

from paretoprune.core.measurement import Measurement

_JOINERS = "\u200c\u200d"  # they shape Persian and Indic scripts and emoji; no direction, no effect of their own
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
MISSING = "–"


def clean(text: object, limit: int = 300) -> str:
    """One printable line. Controls, bidi marks and lone surrogates are spelled out (`\\x1b`), so nothing vanishes.

    Text longer than `limit` characters is cut with an ellipsis.
    """
    raw = str(text)
    cut = raw if len(raw) <= limit else raw[: limit - 1] + "…"
    return "".join(_shown(c) for c in cut)


def clean_lines(text: object, limit: int = 20_000) -> str:
    """The same for a paragraph: line feeds stay."""
    return "\n".join(clean(line, limit) for line in str(text)[:limit].splitlines())


def _shown(char: str) -> str:
    if char in "\t\n\r":
        return " "
    if char in _JOINERS or unicodedata.category(char) not in _HIDDEN:
        return char
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def number(value: float) -> str:
    """Three significant digits without an exponent where it can be helped: 0.0123, 4.12, 412, 12,300."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e15 or size < 1e-4:
        return f"{value:.2e}".replace("-", "−")
    digits = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:,.{digits}f}".replace("-", "−")


def scaled(value: float, steps: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    """(divisor, unit) of the largest step that `value` reaches; `steps` descend."""
    for divisor, unit in steps:
        if abs(value) >= divisor:
            return divisor, unit
    return steps[-1]


BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def half_width(m: Measurement) -> float:
    """The wider half of the interval (intervals need not be symmetric)."""
    return max(m.high - m.value, m.value - m.low, 0.0)


def has_interval(m: Measurement) -> bool:
    return math.isfinite(m.low) and math.isfinite(m.high) and m.high > m.low


def duration(seconds: float) -> str:
    """Under 10 ms, 0.42 s, 12.3 s, 3 min 05 s, 2 h 07 min."""
    if not math.isfinite(seconds) or seconds < 0:
        return MISSING
    if seconds < 0.01:
        return "under 10 ms"
    if seconds < 59.95:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"

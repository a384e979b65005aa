"""Where a number lies in a drawing, and at which round numbers its axes have ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Span = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """The part of a drawing inside of its axes, in pixels from the upper left, and its ranges."""

    left: float
    top: float
    width: float
    height: float
    x_span: Span
    y_span: Span

    def x(self, value: float) -> float:
        """Return where a number lies from the left."""
        low, high = self.x_span
        return self.left + self.width * (value - low) / (high - low)

    def y(self, value: float) -> float:
        """Return where a number lies from the top: large ones are above."""
        low, high = self.y_span
        return self.top + self.height * (high - value) / (high - low)


def span_of(values: Iterable[float | None], *also: float) -> Span:
    """Return the range of what is known, never empty; `also` is to lie inside."""
    known = [value for value in (*values, *also) if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if low == high:
        half = abs(low) / 2 or 0.5
        return low - half, high + half
    return low, high


def padded(span: Span, share: float = 0.05) -> Span:
    """Return a range with a margin on both sides."""
    margin = (span[1] - span[0]) * share
    return span[0] - margin, span[1] + margin


def ticks(span: Span, most: int, *, whole: bool = False) -> list[float]:
    """Return at most so many multiples of 1, 2 or 5 times a power of ten inside of a range.

    `whole`: of a power that is not below one.
    """
    low, high = span
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    distances = [factor * power for factor in (1, 2, 5, 10, 20, 50)]
    if whole:
        distances = [d for d in distances if d >= 1] or [1.0]
    for distance in distances:
        first, last = math.ceil(low / distance - 1e-9), math.floor(high / distance + 1e-9)
        if last - first < most:
            break
    # Not added up: 3 * 0.1 is the nearest number to 0.3 but for the last bit, and is rounded off.
    digits = max(0, -math.floor(math.log10(distance)))
    return [round(k * distance, digits) for k in range(first, last + 1)]


def equal_spans(x_span: Span, y_span: Span, width: float, height: float) -> tuple[Span, Span]:
    """Widen one of two ranges so that a unit is as long on both axes."""
    unit = max((x_span[1] - x_span[0]) / width, (y_span[1] - y_span[0]) / height)
    return _around(x_span, unit * width), _around(y_span, unit * height)


def _around(span: Span, length: float) -> Span:
    middle = (span[0] + span[1]) / 2
    return middle - length / 2, middle + length / 2

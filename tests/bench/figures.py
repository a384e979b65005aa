"""What a part of the benchmark found: figures against targets, as tables and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

MAX_RAW_SPREAD = 1.5
WIDTH = 96


@dataclass(frozen=True)
class Target:
    """What a figure should reach."""

    value: float
    sense: Literal[">=", "<="]

    def verdict(self, value: float) -> str:
        """Say whether a value meets the target, or by which share of it not."""
        missing = self.value - value if self.sense == ">=" else value - self.value
        if missing <= 0:
            return "meets"
        share = missing / self.value if self.value else missing
        return f"misses by {100 * share:.0f} %"


def at_least(value: float) -> Target:
    """Name the smallest good value."""
    return Target(value, ">=")


def at_most(value: float) -> Target:
    """Name the largest good value."""
    return Target(value, "<=")


@dataclass(frozen=True)
class Figure:
    """One row of a table; `no_verdict` says why none is given in spite of a target."""

    name: str
    value: float
    unit: str
    target: Target | None = None
    spread: str = ""
    no_verdict: str = ""

    @property
    def verdict(self) -> str:
        """Say whether the target is met; empty without a target."""
        if self.target is None:
            return ""
        return f"none: {self.no_verdict}" if self.no_verdict else self.target.verdict(self.value)

    def row(self) -> tuple[str, ...]:
        """Return the cells of its row."""
        target = f"{self.target.sense} {self.target.value:g}" if self.target else ""
        return (self.name, f"{self.value:.3g} {self.unit}", target, self.verdict, self.spread)

    def plain(self) -> dict[str, object]:
        """Return it for JSON."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class Table:
    """The figures of one part, and how they were taken."""

    part: str
    title: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    def text(self) -> str:
        """Return it as plain text of at most WIDTH columns."""
        lines = [f"{self.part}: {self.title} ({self.seconds:.0f} s)"]
        if self.figures:
            lines += _aligned([("", "figure", "target", "verdict", "spread")], self.figures)
        for note in self.notes:
            lines += textwrap.wrap(note, WIDTH, initial_indent="* ", subsequent_indent="  ")
        return "\n".join(lines) + "\n"

    def plain(self) -> dict[str, object]:
        """Return it for JSON."""
        return {
            "title": self.title,
            "figures": [figure.plain() for figure in self.figures],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def _aligned(head: list[tuple[str, ...]], figures: Sequence[Figure]) -> list[str]:
    rows = head + [figure.row() for figure in figures]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def document(machine: Mapping[str, object], quick: bool, tables: Sequence[Table]) -> object:
    """Return everything for JSON."""
    parts = {table.part: table.plain() for table in tables}
    return {"machine": dict(machine), "quick": quick, "parts": parts}

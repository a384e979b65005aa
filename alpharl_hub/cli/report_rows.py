"""What the rows of a report hold: matrices together by group or layer, and their medians.

Every number of several matrices is the median over them, at the last step; what is unknown (None,
or not finite) is left out of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from alpharl_hub.cli.terminal import significant
from alpharl_hub.module_names import layer_and_group
from alpharl_hub.results import ModuleSpectrum, SpectralReport

NO_LAYER = "none"
YES, PARTLY = 0.9, 0.5
_BEFORE_LAYERS = re.compile(r".*?\.(?=[^.]+\.\d+\.)")


@dataclass(frozen=True)
class Placed:
    """A matrix with what its name says; `layer` is None outside the numbered layers."""

    layer: int | None
    group: str
    spectrum: ModuleSpectrum

    @property
    def share(self) -> float | None:
        """The rank-1 share at the last step."""
        return known(self.spectrum.rank1_share[-1])


@dataclass(frozen=True)
class Row:
    """One row of a table: the medians of its matrices; `sigma_T` has one for every step."""

    label: str
    matrices: tuple[Placed, ...]
    sigma_T: tuple[float | None, ...]
    frobenius: float | None
    share: float | None
    stable_rank: float | None
    drift: float | None
    q2_step: float | None
    q2_score: float | None
    r2_in_sample: float | None

    @property
    def count(self) -> int:
        """How many matrices there are."""
        return len(self.matrices)

    @property
    def sigma(self) -> float | None:
        """The largest singular value at the last step."""
        return self.sigma_T[-1]

    @property
    def fit(self) -> tuple[float, float]:
        """What rows are ranked by: the step's Q^2, then the rank-1 share; unknown is lowest."""
        low = float("-inf")
        return (
            low if self.q2_step is None else self.q2_step,
            low if self.share is None else self.share,
        )


_SORT_KEYS: Mapping[str, tuple[Callable[[Row], float | None], bool]] = {
    "sigma": (lambda row: row.sigma, True),
    "norm": (lambda row: row.frobenius, True),
    "share": (lambda row: row.share, False),
    "stable-rank": (lambda row: row.stable_rank, True),
    "drift": (lambda row: row.drift, True),
    "q2": (lambda row: row.q2_step, False),
    "q2-score": (lambda row: row.q2_score, False),
}
"""What rows can be sorted by besides their names, and whether the highest comes first."""

SORT_NAMES = ("name", *_SORT_KEYS)


def place(report: SpectralReport) -> list[Placed]:
    """Split the names of all matrices of a report."""
    return [Placed(*layer_and_group(one.name), one) for one in report.modules]


def split_by_group(placed: Iterable[Placed]) -> dict[str, list[Placed]]:
    """Put matrices together by module group, in the order in which the groups first appear."""
    groups: dict[str, list[Placed]] = {}
    for one in placed:
        groups.setdefault(one.group, []).append(one)
    return groups


def split_by_layer(
    placed: Sequence[Placed], max_parts: int | None = None
) -> dict[str, list[Placed]]:
    """Put matrices together by layer, neighbouring layers too where they are too many parts."""
    layers = sorted({p.layer for p in placed if p.layer is not None})
    num_together = 1 if max_parts is None else max(-(-len(layers) // max_parts), 1)
    label_of: dict[int | None, str] = {None: NO_LAYER}
    for start in range(0, len(layers), num_together):
        part = layers[start : start + num_together]
        for layer in part:
            label_of[layer] = str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}"
    parts: dict[str, list[Placed]] = {label_of[layer]: [] for layer in (*layers, None)}
    for one in placed:
        parts[label_of[one.layer]].append(one)
    return {label: part for label, part in parts.items() if part}


def rows_by_name(placed: Sequence[Placed]) -> list[Row]:
    """Make a row of each matrix, under its name without what all names share."""
    names = _short_names([p.spectrum.name for p in placed])
    return [make_row(name, [one]) for name, one in zip(names, placed, strict=True)]


def _short_names(names: Sequence[str]) -> list[str]:
    """Leave out ".weight" and what stands before "layers.12" in all names; regexes still match."""
    match = _BEFORE_LAYERS.match(names[0]) if names else None
    shared = match[0] if match and all(name.startswith(match[0]) for name in names) else ""
    return [name.removeprefix(shared).removesuffix(".weight") for name in names]


def make_row(label: str, placed: Sequence[Placed]) -> Row:
    """Take the medians of matrices."""
    spectra = [p.spectrum for p in placed]
    return Row(
        label=label,
        matrices=tuple(placed),
        sigma_T=tuple(map(median_of, zip(*(s.sigma for s in spectra), strict=True))),
        frobenius=median_of(s.frobenius[-1] for s in spectra),
        share=median_of(s.rank1_share[-1] for s in spectra),
        stable_rank=median_of(s.stable_rank for s in spectra),
        drift=median_of(s.drift[0] for s in spectra),
        q2_step=median_of(s.q2_step for s in spectra),
        q2_score=median_of(s.q2_score for s in spectra),
        r2_in_sample=median_of(s.r2_step_in_sample for s in spectra),
    )


def sort_rows(rows: Sequence[Row], key: str) -> list[Row]:
    """Sort by one of SORT_NAMES, the other way round behind a "-"; the unknown comes last."""
    name, turned = key.removeprefix("-"), key.startswith("-")
    if name == "name":
        return sorted(rows, key=lambda row: row.label, reverse=turned)
    read, highest_first = _SORT_KEYS[name]
    sign = -1.0 if highest_first is not turned else 1.0

    def rank(row: Row) -> tuple[bool, float]:
        value = read(row)
        return (True, 0.0) if value is None else (False, sign * value)

    return sorted(rows, key=rank)


def known(value: float | None) -> float | None:
    """Return a number, or None for what is none."""
    return value if value is not None and math.isfinite(value) else None


def median_of(values: Iterable[float | None]) -> float | None:
    """Return the median of the known ones."""
    present = [value for value in map(known, values) if value is not None]
    return median(present) if present else None


def fraction(value: float | None) -> str:
    """Write two decimals in five columns; a Q^2 far below zero says no more than that."""
    if value is None or not math.isfinite(value):
        return "-"
    return "< -9" if value < -9 else f"{value:.2f}"


def magnitude(value: float | None) -> str:
    """Write three digits."""
    return "-" if value is None or not math.isfinite(value) else significant(value, 3)

"""What there is to draw in a report: matrices by group and layer, medians and ranges over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from alpharl_hub.drawing.palette import STYLES
from alpharl_hub.module_names import layer_and_group
from alpharl_hub.results import ModuleSpectrum, SpectralReport

Values = Sequence[float | None]


@dataclass(frozen=True)
class Placed:
    """A matrix with what its name says; `layer` is None outside the numbered layers."""

    layer: int | None
    group: str
    spectrum: ModuleSpectrum


@dataclass(frozen=True)
class Group:
    """The matrices of one module group, or of all the groups that are left over."""

    label: str
    matrices: tuple[ModuleSpectrum, ...]


@dataclass(frozen=True)
class Course:
    """A number over the steps, for several matrices: their median and range at each of them."""

    median: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True)
class LayerMap:
    """A number for each group and layer: the median over its matrices, None without any.

    `cells` has a row per group and a column per layer; a layer None holds what stands outside them.
    """

    groups: tuple[str, ...]
    layers: tuple[int | None, ...]
    cells: tuple[tuple[float | None, ...], ...]


def place(report: SpectralReport) -> tuple[Placed, ...]:
    """Read layer and group from the names of a report's matrices."""
    return tuple(Placed(*layer_and_group(module.name), module) for module in report.modules)


def all_groups(report: SpectralReport) -> tuple[Group, ...]:
    """Return the module groups, in the order in which they first appear."""
    found: dict[str, list[ModuleSpectrum]] = {}
    for one in place(report):
        found.setdefault(one.group, []).append(one.spectrum)
    return tuple(Group(label, tuple(matrices)) for label, matrices in found.items())


def drawn_groups(report: SpectralReport) -> tuple[Group, ...]:
    """Return as many groups as there are styles; the last one holds all that are left over."""
    groups = all_groups(report)
    if len(groups) <= len(STYLES):
        return groups
    kept, rest = groups[: len(STYLES) - 1], groups[len(STYLES) - 1 :]
    left_over = tuple(matrix for group in rest for matrix in group.matrices)
    return (*kept, Group(f"{len(rest)} other groups", left_over))


def course(group: Group, values: Callable[[ModuleSpectrum], Values]) -> Course:
    """Return median and range of `values` (one per step) over the matrices of a group."""
    columns = [
        [value for value in column if value is not None]
        for column in zip(*(values(matrix) for matrix in group.matrices), strict=True)
    ]
    return Course(
        tuple(median_of(column) for column in columns),
        tuple(min(column, default=None) for column in columns),
        tuple(max(column, default=None) for column in columns),
    )


def relative_spectrum(group: Group) -> tuple[float, ...]:
    """Return the medians of sigma_k / sigma_1 at the last step; empty where nothing moved."""
    spectra = [
        [value / matrix.singular_values[0] for value in matrix.singular_values]
        for matrix in group.matrices
        if matrix.singular_values and matrix.singular_values[0] > 0
    ]
    longest = max((len(spectrum) for spectrum in spectra), default=0)
    return tuple(median(s[k] for s in spectra if len(s) > k) for k in range(longest))


def layer_map(report: SpectralReport, value: Callable[[ModuleSpectrum], float | None]) -> LayerMap:
    """Return a number for each group and layer."""
    cells: dict[tuple[str, int | None], list[float | None]] = {}
    for one in place(report):
        cells.setdefault((one.group, one.layer), []).append(value(one.spectrum))
    groups = tuple(dict.fromkeys(group for group, _ in cells))
    numbered = sorted({layer for _, layer in cells if layer is not None})
    outside = [None] if any(layer is None for _, layer in cells) else []
    layers = (*numbered, *outside)
    rows = tuple(
        tuple(median_of(cells.get((group, layer), ())) for layer in layers) for group in groups
    )
    return LayerMap(groups, layers, rows)


def median_of(values: Iterable[float | None]) -> float | None:
    """Return the median of those that are known, None without any."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def last_share(matrix: ModuleSpectrum) -> float | None:
    """Return the rank-1 share at the last step."""
    return matrix.rank1_share[-1]


def step_quality(matrix: ModuleSpectrum) -> float | None:
    """Return Q^2 on the step."""
    return matrix.q2_step

"""What `report` shows when asked: layers, modules, and the spectrum of either or of the groups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from alpharl_hub.cli.report_map import shorten
from alpharl_hub.cli.report_rows import (
    Placed,
    Row,
    fraction,
    known,
    magnitude,
    make_row,
    median_of,
    rows_by_name,
    sort_rows,
    split_by_group,
    split_by_layer,
)
from alpharl_hub.cli.report_tables import MAX_GROUPS, print_cut, print_rows
from alpharl_hub.cli.terminal import (
    GAP,
    add_number_column,
    add_text_column,
    escape_text,
    human_count,
    new_table,
    print_heading,
)
from alpharl_hub.errors import TrajectoryError, did_you_mean
from alpharl_hub.module_names import layer_and_group

MAX_MODULES = 20
_VALUE_CELLS = 7
_MAX_LABEL_CELLS = 30


@dataclass(frozen=True)
class LayerRanges:
    """Layers from a first to a last one, several times; none given means all layers."""

    ranges: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in self.ranges)

    def holds(self, layer: int | None) -> bool:
        """Whether a layer is one of these; what is outside the layers is only in all."""
        if not self.ranges:
            return True
        return layer is not None and any(first <= layer <= last for first, last in self.ranges)


@dataclass(frozen=True)
class Details:
    """What a report shows besides its first screen.

    `layers` and `modules` (a regex, searched in full names) ask for a table each, where they are
    not None; both say of which matrices all details are. `top`: rows of each table; `sort`: one of
    SORT_NAMES, with "-" before it turned round.
    """

    layers: LayerRanges | None = None
    modules: str | None = None
    top: int | None = None
    sort: str | None = None
    num_singular_values: int | None = None
    path: bool = False
    score_line: bool = False

    def choose(self, placed: Sequence[Placed]) -> list[Placed]:
        """Take the matrices that details are shown of."""
        return [p for p in placed if self._holds(p.layer, p.spectrum.name)]

    def check(self, names: Sequence[str]) -> None:
        """Refuse layers and modules that are none of these matrices.

        Raises:
            TrajectoryError: names the option, and what there is.
        """
        layers = [layer_and_group(name)[0] for name in names]
        held = [name for layer, name in zip(layers, names, strict=True) if self._in_layers(layer)]
        if not names or any(re.search(self.modules or "", name) for name in held):
            return
        if not held:
            there = sorted({layer for layer in layers if layer is not None})
            words = f"there are {_name_layers(there)}" if there else "no layer has a number"
            raise TrajectoryError(f"--layers {self.layers}: matches no matrix; {words}")
        where = "" if len(held) == len(names) else f" in --layers {self.layers}"
        parts = dict.fromkeys(part for name in held for part in name.split("."))
        raise TrajectoryError(
            f"--modules {self.modules}: matches none of {len(held)} names{where} such as {held[0]}"
            f"{did_you_mean(str(self.modules), parts)}"
        )

    def _in_layers(self, layer: int | None) -> bool:
        return self.layers is None or self.layers.holds(layer)

    def _holds(self, layer: int | None, name: str) -> bool:
        return self._in_layers(layer) and re.search(self.modules or "", name) is not None


def _name_layers(layers: Sequence[int]) -> str:
    """Name rising layers as --layers takes them: 0-27, or 0,4-7."""
    starts = [n for n in layers if n - 1 not in layers]
    ends = [n for n in layers if n + 1 not in layers]
    return f"layers {LayerRanges(tuple(zip(starts, ends, strict=True)))}"


def print_details(placed: Sequence[Placed], details: Details, step: int, console: Console) -> None:
    """Print the tables that were asked for."""
    if details.layers is None and details.modules is None and details.num_singular_values is None:
        return
    chosen = details.choose(placed)
    if details.layers is not None:
        _print_layers(chosen, details, step, console)
    if details.modules is not None:
        _print_modules(chosen, details, step, console)
    if details.num_singular_values is not None:
        _print_spectrum(chosen, details, step, console)


def _print_layers(chosen: Sequence[Placed], details: Details, step: int, console: Console) -> None:
    rows = _layer_rows(chosen, details)
    shown = rows[: details.top]
    print_rows("Layers", f"medians at step {step}", "layer", shown, console)
    print_cut(len(rows) - len(shown), console)


def _print_modules(chosen: Sequence[Placed], details: Details, step: int, console: Console) -> None:
    rows = _module_rows(chosen, details)
    shown = rows[: details.top or MAX_MODULES]
    order = f"by {details.sort}" if details.sort else "weakest first: by Q^2, then share"
    print_rows("Modules", f"step {step}, {order}", "module", shown, console)
    print_cut(len(rows) - len(shown), console)
    num_same = sum(one.spectrum.frobenius[-1] == 0 for one in chosen)
    if num_same:
        words = f"{human_count(num_same)} of {len(chosen)} do not differ from the base"
        console.print(Text(words))


def _layer_rows(chosen: Sequence[Placed], details: Details) -> list[Row]:
    rows = [make_row(label, part) for label, part in split_by_layer(chosen).items()]
    # Layers have their own order: as texts 10 would stand before 2.
    return rows if details.sort in (None, "name") else sort_rows(rows, str(details.sort))


def _module_rows(chosen: Sequence[Placed], details: Details) -> list[Row]:
    rows = rows_by_name(chosen)
    if details.sort is not None:
        return sort_rows(rows, details.sort)
    return sorted(rows, key=lambda row: (row.share is None, row.fit))


def _group_rows(chosen: Sequence[Placed], details: Details) -> list[Row]:
    rows = [make_row(label, part) for label, part in split_by_group(chosen).items()]
    return rows if details.sort is None else sort_rows(rows, details.sort)


def _print_spectrum(
    chosen: Sequence[Placed], details: Details, step: int, console: Console
) -> None:
    """Print two lines for each row: the singular values, and what those so far hold together."""
    if details.modules is not None:
        head, rows, most = "module", _module_rows(chosen, details), MAX_MODULES
    elif details.layers is not None:
        head, rows, most = "layer", _layer_rows(chosen, details), len(chosen)
    else:
        head, rows, most = "group", _group_rows(chosen, details), MAX_GROUPS
    shown = rows[: details.top or most]
    medians = "medians, " if any(row.count > 1 for row in shown) else ""
    note = f"{medians}step {step}; below each the share of the update up to there"
    print_heading(console, "Singular values", note)
    longest = max(len(one.spectrum.singular_values) for one in chosen)
    labels = [shorten(escape_text(row.label), _MAX_LABEL_CELLS) for row in shown]
    widest = max(map(cell_len, [*labels, head]))
    room = console.width - widest - len("stable") - 2 * GAP
    num_fitting = max(room // (_VALUE_CELLS + 1), 1)
    for start in range(0, longest, num_fitting):
        places = range(start, min(start + num_fitting, longest))
        if start:
            console.print()
        _print_values(head, labels, shown, places, console)
    print_cut(len(rows) - len(shown), console)


def _print_values(
    head: str, labels: Sequence[str], rows: Sequence[Row], places: range, console: Console
) -> None:
    table = new_table(1)
    add_text_column(table, f"\n{head}")
    add_number_column(table, "stable\nrank")
    for place in places:
        add_number_column(table, f"\n{place + 1}")
    for label, row in zip(labels, rows, strict=True):
        values = [magnitude(_value_at(row, place)) for place in places]
        table.add_row(*map(Text, (label, magnitude(row.stable_rank), *values)))
        shares = [fraction(_share_up_to(row, place)) for place in places]
        table.add_row(*map(Text, ("", "", *shares)))
    console.print(table)


def _value_at(row: Row, place: int) -> float | None:
    spectra = (one.spectrum.singular_values for one in row.matrices)
    return median_of(values[place] for values in spectra if place < len(values))


def _share_up_to(row: Row, place: int) -> float | None:
    """Take the median part of |D|_F^2 that the first singular values hold, this one included."""
    shares = []
    for one in row.matrices:
        values, frobenius = one.spectrum.singular_values, known(one.spectrum.frobenius[-1])
        if place < len(values) and frobenius:
            shares.append(sum(value**2 for value in values[: place + 1]) / frobenius**2)
    return median_of(shares)

"""What `report` shows: is this run rank-1, is it linear, and where is it not.

Every number of a group or a layer is the median over its matrices, at the last step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from alpharl_hub.cli.inspect_screen import print_notices
from alpharl_hub.cli.terminal import (
    GAP,
    add_number_column,
    add_row,
    add_text_column,
    escape_text,
    human_count,
    new_table,
    print_heading,
    print_labelled,
    significant,
)
from alpharl_hub.module_names import layer_and_group
from alpharl_hub.results import ModuleSpectrum, SpectralReport

MAP_WIDTH = 80
_MAX_LABEL_CELLS = 30
_MAX_LAYER_ROWS = 12
_MAX_GROUP_ROWS = 30
_NUM_EXTREMES = 4
_BEFORE_LAYERS = re.compile(r".*?\.(?=[^.]+\.\d+\.)")
_NO_LAYER = "none"
_YES, _PARTLY = 0.9, 0.5
_NUMBER_HEADS = (
    "\nsigma_1",
    "\n|D|_F",
    "rank-1\nshare",
    "drift\ndeg",
    "Q^2\nstep",
    "Q^2\nscore",
    "R^2 in\nsample",
)


@dataclass(frozen=True)
class _Placed:
    """A matrix with what its name says; `layer` is None outside the numbered layers."""

    layer: int | None
    group: str
    spectrum: ModuleSpectrum

    @property
    def share(self) -> float | None:
        return self.spectrum.rank1_share[-1]


@dataclass(frozen=True)
class _Numbers:
    """The numbers of one row of a table."""

    sigma: float | None
    frobenius: float | None
    share: float | None
    drift: float | None
    q2_step: float | None
    q2_score: float | None
    r2_in_sample: float | None

    @property
    def cells(self) -> list[str]:
        """The texts, in the order of _NUMBER_HEADS."""
        return [
            _magnitude(self.sigma),
            _magnitude(self.frobenius),
            _fraction(self.share),
            "-" if self.drift is None else f"{self.drift:.0f}",
            _fraction(self.q2_step),
            _fraction(self.q2_score),
            _fraction(self.r2_in_sample),
        ]

    @property
    def fit(self) -> tuple[float, float]:
        """What rows are ranked by: the step's Q^2, then the rank-1 share; unknown is lowest."""
        low = float("-inf")
        return (
            low if self.q2_step is None else self.q2_step,
            low if self.share is None else self.share,
        )


def print_report(report: SpectralReport, console: Console) -> None:
    """Print a report: the answers, the warnings, then where they come from."""
    placed = [_Placed(*layer_and_group(m.name), m) for m in report.modules]
    console.print(Text(_headline(report), style="bold"))
    if placed:
        groups = _split(placed, lambda p: p.group)
        layers = _fold_layers(placed, _MAX_LAYER_ROWS)
        _print_answers(report, placed, groups, layers, console)
        print_notices(report.warnings, console)
        _print_rows(console, "Module groups", "group", groups, report.steps[-1])
        _print_extremes(placed, console)
        _print_map(placed, report.steps[-1], console)
        _print_rows(console, "Layers", "layer", layers, report.steps[-1])
    else:
        console.print(Text("There is nothing to show: no matrix is in scope"))
        print_notices(report.warnings, console)


def _headline(report: SpectralReport) -> str:
    summary, steps = report.summary, report.steps
    what = "Spectral report"
    num_matrices = summary.num_matrices
    matrices = f"{human_count(num_matrices)} {'matrix' if num_matrices == 1 else 'matrices'}"
    if report.sampled:
        what = "Spectral report of a SAMPLE"
        matrices = (
            f"{human_count(num_matrices)} of {human_count(summary.num_matrices_in_run)} matrices"
        )
    if len(steps) == 1:
        return f"{what}: {matrices}, 1 checkpoint, step {steps[0]}"
    return f"{what}: {matrices}, {len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}"


def _print_answers(
    report: SpectralReport,
    placed: Sequence[_Placed],
    groups: Mapping[str, Sequence[_Placed]],
    layers: Mapping[str, Sequence[_Placed]],
    console: Console,
) -> None:
    summary = report.summary
    print_labelled(console, "Rank-1?", _rank1_answer(report, placed))
    print_labelled(console, "Linear?", _linear_answer(report))
    weakest = _weakest(groups, layers)
    if weakest:
        print_labelled(console, "Weakest", weakest)
    if summary.drift_first_to_last is not None and len(report.steps) > 1:
        drift = f"{summary.drift_first_to_last:.0f} degrees"
        print_labelled(
            console, "Drift", f"{drift} from the first checkpoint's direction to the last one's"
        )
    if summary.trust is not None:
        print_labelled(console, "Trust", summary.trust.verdict)


def _rank1_answer(report: SpectralReport, placed: Sequence[_Placed]) -> str:
    share = report.summary.rank1_share
    if share is None:
        return "unknown: no matrix differs from the base"
    num_above = sum(p.share is not None and p.share >= _PARTLY for p in placed)
    verdict = "yes" if share >= _YES else "mostly" if share >= _PARTLY else "NO"
    text = (
        f"{verdict}: median rank-1 share {share:.2f} at step {report.steps[-1]}; "
        f"{num_above} of {len(placed)} matrices at {_PARTLY:.2f} or more"
    )
    return text if share >= _PARTLY else f"{text}. A rank-1 method leaves most of the update out"


def _linear_answer(report: SpectralReport) -> str:
    summary = report.summary
    if summary.q2_step is None:
        return f"unknown: Q^2 takes 4 checkpoints that differ; this report has {len(report.steps)}"
    q2_step = summary.q2_step
    verdict = "yes" if q2_step >= _YES else "partly" if q2_step >= _PARTLY else "NO"
    name = f" ({report.score_name})" if report.score_name else ""
    score = "" if summary.q2_score is None else f", {_fraction(summary.q2_score)} on score{name}"
    r2 = _fraction(summary.r2_step_in_sample)
    return (
        f"{verdict}: median leave-one-out Q^2 {_fraction(q2_step)} on step{score}. "
        f"In-sample R^2 {r2} decides nothing: noise reaches it too"
    )


def _weakest(
    groups: Mapping[str, Sequence[_Placed]], layers: Mapping[str, Sequence[_Placed]]
) -> str:
    found = []
    for kind, rows in (("group", groups), ("layer", layers)):
        if len(rows) > 1:
            numbers = {label: _medians(row) for label, row in rows.items()}
            label = min(numbers, key=lambda label: numbers[label].fit)
            low = numbers[label]
            q2 = "" if low.q2_step is None else f"Q^2 {_fraction(low.q2_step)}, "
            found.append(f"{kind} {label} ({q2}share {_fraction(low.share)})")
    return " and ".join(found)


def _split(placed: Iterable[_Placed], key: Callable[[_Placed], str]) -> dict[str, list[_Placed]]:
    """Group matrices, in the order in which the groups first appear."""
    rows: dict[str, list[_Placed]] = {}
    for one in placed:
        rows.setdefault(key(one), []).append(one)
    return rows


def _fold_layers(placed: Sequence[_Placed], max_rows: int) -> dict[str, list[_Placed]]:
    """Group matrices by layer, neighbouring layers together where there are too many."""
    layers = sorted({p.layer for p in placed if p.layer is not None})
    num_together = -(-len(layers) // max_rows)
    label_of: dict[int | None, str] = {None: _NO_LAYER}
    for start in range(0, len(layers), max(num_together, 1)):
        part = layers[start : start + num_together]
        for layer in part:
            label_of[layer] = str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}"
    rows: dict[str, list[_Placed]] = {label_of[layer]: [] for layer in (*layers, None)}
    for one in placed:
        rows[label_of[one.layer]].append(one)
    return {label: row for label, row in rows.items() if row}


def _medians(placed: Sequence[_Placed]) -> _Numbers:
    spectra = [p.spectrum for p in placed]
    return _Numbers(
        sigma=_median(s.sigma[-1] for s in spectra),
        frobenius=_median(s.frobenius[-1] for s in spectra),
        share=_median(s.rank1_share[-1] for s in spectra),
        drift=_median(s.drift[0] for s in spectra),
        q2_step=_median(s.q2_step for s in spectra),
        q2_score=_median(s.q2_score for s in spectra),
        r2_in_sample=_median(s.r2_step_in_sample for s in spectra),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _print_rows(
    console: Console, title: str, head: str, rows: Mapping[str, Sequence[_Placed]], step: int
) -> None:
    print_heading(console, title, f"medians at step {step}; drift from first to last checkpoint")
    shown = list(rows.items())[:_MAX_GROUP_ROWS]
    widest = max(cell_len(label) for label, _ in shown)
    # 46 columns of numbers and 8 gaps stand beside the label.
    table = new_table(GAP if widest + 46 + 8 * GAP <= console.width else 1)
    add_text_column(table, f"\n{head}")
    for number_head in ("\ncount", *_NUMBER_HEADS):
        add_number_column(table, number_head)
    for label, row in shown:
        add_row(table, [label, str(len(row)), *_medians(row).cells])
    console.print(table)
    if len(rows) > len(shown):
        console.print(Text(f"and {len(rows) - len(shown)} more, which --json lists"))


def _print_extremes(placed: Sequence[_Placed], console: Console) -> None:
    changed = [p for p in placed if p.spectrum.frobenius[-1] > 0]
    ranked = sorted(changed, key=lambda p: _medians([p]).fit)
    if len(ranked) <= 2 * _NUM_EXTREMES:
        _print_modules("Modules, worst first", ranked, console)
    else:
        _print_modules("Worst modules", ranked[:_NUM_EXTREMES], console)
        _print_modules("Best modules", ranked[: -_NUM_EXTREMES - 1 : -1], console)
    if len(changed) < len(placed):
        num_same = len(placed) - len(changed)
        console.print(Text(f"{human_count(num_same)} of {len(placed)} do not differ from the base"))


def _print_modules(title: str, placed: Sequence[_Placed], console: Console) -> None:
    if not placed:
        return
    print_heading(console, title, "by Q^2 on step, then rank-1 share")
    names = _short_names([p.spectrum.name for p in placed])
    widest = max(cell_len(name) for name in names)
    # 39 columns of numbers and 6 gaps; |D|_F is left to the other tables.
    table = new_table(GAP if widest + 39 + 6 * GAP <= console.width else 1)
    add_text_column(table, "\nmodule")
    for head in (_NUMBER_HEADS[0], *_NUMBER_HEADS[2:]):
        add_number_column(table, head)
    for name, one in zip(names, placed, strict=True):
        sigma, _, *others = _medians([one]).cells
        add_row(table, [name, sigma, *others])
    console.print(table)


def _short_names(names: Sequence[str]) -> list[str]:
    """Leave out ".weight" and what stands before "layers.12" in all names; regexes still match."""
    match = _BEFORE_LAYERS.match(names[0])
    shared = match[0] if match and all(name.startswith(match[0]) for name in names) else ""
    return [name.removeprefix(shared).removesuffix(".weight") for name in names]


def _print_map(placed: Sequence[_Placed], step: int, console: Console) -> None:
    """Print a digit for each group and layer: the tenth in which the median rank-1 share lies."""
    by_group = list(_split(placed, lambda p: p.group).items())[:_MAX_GROUP_ROWS]
    labels = [_tail(escape_text(group), _MAX_LABEL_CELLS) for group, _ in by_group]
    label_cells = max(cell_len(label) for label in ("layer", *labels))
    room = min(MAP_WIDTH, console.width) - label_cells - GAP
    layers = _fold_layers(placed, room - 1)
    between = " " if 2 * len(layers) - 1 <= room else ""

    def print_line(label: str, cells: Iterable[str]) -> None:
        margin = " " * (label_cells + GAP - cell_len(label))
        console.print(Text(label + margin + between.join(cells)))

    print_heading(console, "Rank-1 share by group and layer", f"step {step}")
    heads = ["-" if label == _NO_LAYER else label.split("-")[0] for label in layers]
    num_digits = max(len(head) for head in heads)
    for place in range(num_digits):
        print_line("" if place else "layer", (head.rjust(num_digits)[place] for head in heads))
    for label, (group, _) in zip(labels, by_group, strict=True):
        cells = [[p for p in column if p.group == group] for column in layers.values()]
        print_line(label, (_map_digit(cell) for cell in cells))
    note = "0: share below 0.1, ... 9: from 0.9 up; -: no update, .: no such matrix"
    console.print(Text(note))
    if any("-" in label for label in layers):
        console.print(Text("A column is the median of the layers up to the next column's."))


def _map_digit(cell: Sequence[_Placed]) -> str:
    if not cell:
        return "."
    share = _median(p.share for p in cell)
    return "-" if share is None else str(min(int(share * 10), 9))


def _tail(text: str, max_cells: int) -> str:
    """Keep the end of a long name: there it differs from the others."""
    if cell_len(text) <= max_cells:
        return text
    while cell_len(text) > max_cells - 2:
        text = text[1:]
    return f"..{text}"


def _fraction(value: float | None) -> str:
    """Two decimals in five columns; a Q^2 far below zero says no more than that."""
    if value is None:
        return "-"
    return "< -9" if value < -9 else f"{value:.2f}"


def _magnitude(value: float | None) -> str:
    return "-" if value is None else significant(value, 3)

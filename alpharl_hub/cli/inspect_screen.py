"""What `inspect` shows: what was found, what it would cost, what is odd, and what to type next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from alpharl_hub.cli.terminal import (
    add_number_column,
    add_row,
    add_text_column,
    escape_text,
    human_bytes,
    human_count,
    human_duration,
    new_table,
    print_heading,
    print_labelled,
    significant,
)
from alpharl_hub.manifest import Notice
from alpharl_hub.results import BaseAnswer, ExcludedTensor, Inspection, ListedCheckpoint, ScopeGroup

RATE_BYTES_PER_S = 100_000_000
"""What the time is given at where no rate was measured; said on the screen."""

_MAX_ROWS = 6
_MAX_STEP_RANGES = 6
_MAX_FOLDED_NAMES = 4
_CHOSEN_BY = {
    "option": "named by --base",
    "step_0": "step 0 of the run",
    "card": "base_model of the model card",
    "adapter": "named in adapter_config.json",
}
_LAYOUTS = {
    "folders": "folders in the repo",
    "commits": "commits titled",
    "repos": "a repo for every step:",
    "local": "local folders",
    "single": "one model",
}
_FIRST_CODES = ("wrong_base", "repeats", "incomplete_steps", "gap", "base_only", "dtype_differs")
_LAST_CODES = ("other_layouts", "selection", "quick")


def print_inspection(inspection: Inspection, console: Console, next_command: str) -> None:
    """Print a run as it was found, on one screen; `next_command` is a shell command."""
    selected = [c for c in inspection.checkpoints if c.selected]
    print_labelled(console, "Found", _found(inspection, len(selected)))
    print_labelled(console, "Base", _base(inspection.base))
    print_labelled(console, "Scores", _scores(inspection.score_name, selected))
    print_labelled(console, "In scope", _scope(inspection.scope))
    for line_number, line in enumerate(_excluded(inspection.excluded)):
        print_labelled(console, "" if line_number else "Left out", line)
    _print_checkpoints(inspection, selected, console)
    _print_plan(inspection, console)
    if inspection.warnings:
        console.print()
        print_notices(inspection.warnings, console)
    console.print()
    console.print(Text("Next", style="bold"))
    print_command(next_command, console)


def print_notices(notices: Sequence[Notice], console: Console) -> None:
    """Print warnings, the most important first."""

    def importance(notice: Notice) -> int:
        if notice.code in _FIRST_CODES:
            return _FIRST_CODES.index(notice.code)
        return len(_FIRST_CODES) + (notice.code in _LAST_CODES)

    for notice in sorted(notices, key=importance):
        label = "Note" if notice.code in _LAST_CODES else "Warning"
        print_labelled(console, label, notice.message)


def print_command(command: str, console: Console) -> None:
    """Print a shell command ready to paste, continued with backslashes where it is too long.

    Words are never cut, so that a word wider than the screen leaves the line to the terminal.
    """
    line = ""
    for word in (shlex.quote(escape_text(word)) for word in shlex.split(command)):
        longer = f"{line} {word}" if line else f"  {word}"
        if line and len(longer) + len(" \\") > console.width:
            console.print(Text(f"{line} \\"), soft_wrap=True)
            longer = f"      {word}"
        line = longer
    console.print(Text(line), soft_wrap=True)


def fold_steps(steps: Sequence[int]) -> str:
    """Write rising steps as --steps takes them, evenly spaced ones as first-last:spacing.

    More than a few ranges are cut short in the middle.
    """
    ranges: list[str] = []
    start = 0
    while start < len(steps):
        stop = start + 1
        while stop + 1 < len(steps) and (
            steps[stop + 1] - steps[stop] == steps[start + 1] - steps[start]
        ):
            stop += 1
        if stop - start < 2:
            ranges.append(str(steps[start]))
            start += 1
        else:
            ranges.append(f"{steps[start]}-{steps[stop]}:{steps[stop] - steps[stop - 1]}")
            start = stop + 1
    if len(ranges) > _MAX_STEP_RANGES:
        ranges = [*ranges[: _MAX_STEP_RANGES - 2], "...", ranges[-1]]
    return ",".join(ranges)


def _found(inspection: Inspection, num_selected: int) -> str:
    steps = [c.step for c in inspection.checkpoints]
    layout = _LAYOUTS.get(inspection.layout, inspection.layout)
    where = f"{layout} {inspection.pattern}".strip()
    if not steps:
        return f"{where}: no steps"
    count = "1 checkpoint" if len(steps) == 1 else f"{human_count(len(steps))} checkpoints"
    return f"{where}: {count}, steps {fold_steps(steps)}; {num_selected} selected"


def _base(base: BaseAnswer) -> str:
    revision = f"@{base.revision}" if base.revision else ""
    commit = f" ({base.commit[:8]})" if base.commit else ""
    reason = _CHOSEN_BY.get(base.chosen_by, base.chosen_by)
    return f"{base.source}{revision}{commit}: {reason}"


def _scores(name: str | None, selected: Sequence[ListedCheckpoint]) -> str:
    scored = [(c.step, c.score) for c in selected if c.score is not None]
    if not scored:
        return "none; --scores FILE gives them, and --target-score needs them"
    (first_step, first), (last_step, last) = scored[0], scored[-1]
    return (
        f"{name or 'score'} of {len(scored)} of {len(selected)} selected checkpoints: "
        f"{significant(first, 4)} at step {first_step}, {significant(last, 4)} at step {last_step}"
    )


def _scope(scope: Sequence[ScopeGroup]) -> str:
    groups_by_count: dict[int, list[str]] = {}
    for group in scope:
        groups_by_count.setdefault(group.num_matrices, []).append(group.group)
    listed = "; ".join(
        f"{count} {'each of ' if len(names) > 1 else ''}{', '.join(names)}"
        for count, names in groups_by_count.items()
    )
    total = human_count(sum(group.num_matrices for group in scope))
    return f"{total} matrices: {listed}" if scope else "no matrix"


def _excluded(excluded: Sequence[ExcludedTensor]) -> list[str]:
    """Return a line for each reason; names that differ in their numbers only are one name."""
    counts: dict[str, dict[str, int]] = {}
    for tensor in excluded:
        names = counts.setdefault(tensor.reason, {})
        folded = re.sub(r"(?<=\.)\d+(?=\.)", "*", tensor.name)
        names[folded] = names.get(folded, 0) + 1
    return [_excluded_line(reason, names) for reason, names in counts.items()]


def _excluded_line(reason: str, counts: dict[str, int]) -> str:
    shown = [
        f"{name} ({count} x)" if count > 1 else name
        for name, count in list(counts.items())[:_MAX_FOLDED_NAMES]
    ]
    if len(counts) > _MAX_FOLDED_NAMES:
        num_hidden = sum(counts.values()) - sum(list(counts.values())[:_MAX_FOLDED_NAMES])
        shown.append(f"{human_count(num_hidden)} more")
    return f"{reason}: {', '.join(shown)}"


def _print_checkpoints(
    inspection: Inspection, selected: Sequence[ListedCheckpoint], console: Console
) -> None:
    others = [c.step for c in inspection.checkpoints if not c.selected]
    print_heading(console, "Selected checkpoints")
    columns = [
        column
        for column in _columns(selected)
        if column[0] == "step" or any(cell != "-" for cell in column[1])
    ]
    table = new_table()
    for head, _ in columns:
        (add_text_column if head == "where" else add_number_column)(table, head)
    for row, cells in enumerate(zip(*(cells for _, cells in columns), strict=True)):
        num_hidden = len(selected) - _MAX_ROWS
        if num_hidden > 0 and row == _MAX_ROWS // 2:
            add_row(table, ["...", *[""] * (len(columns) - 1)])
        if num_hidden <= 0 or not 0 <= row - _MAX_ROWS // 2 < num_hidden:
            add_row(table, list(cells))
    console.print(table)
    if others:
        steps = fold_steps(others)
        print_labelled(
            console, "Not used", f"{human_count(len(others))} checkpoints, steps {steps}"
        )


def _columns(selected: Sequence[ListedCheckpoint]) -> list[tuple[str, list[str]]]:
    """Return heads and cells; a column without anything to say is all "-"."""

    def column(read: Callable[[ListedCheckpoint], str | None]) -> list[str]:
        return [read(checkpoint) or "-" for checkpoint in selected]

    return [
        ("step", column(lambda c: str(c.step))),
        ("where", places(selected)),
        ("commit", column(lambda c: c.commit and c.commit[:8])),
        ("dtype", column(lambda c: c.dtype)),
        ("tensors", column(lambda c: None if c.num_tensors is None else f"{c.num_tensors:,}")),
        ("size", column(lambda c: None if c.num_bytes is None else human_bytes(c.num_bytes))),
        ("files", column(lambda c: None if c.num_files is None else f"{c.num_files:,}")),
        ("score", column(lambda c: None if c.score is None else significant(c.score, 4))),
    ]


def places(checkpoints: Sequence[ListedCheckpoint]) -> list[str]:
    """Name where each checkpoint lies by what tells it from the others: revision or folder."""
    if len({c.folder for c in checkpoints}) > 1:
        return [c.folder for c in checkpoints]
    if len({c.source for c in checkpoints}) < 2:
        return [_revision(c) or re.split(r"[/\\]", c.source)[-1] for c in checkpoints]
    parts = [re.split(r"[/\\]", c.source) for c in checkpoints]
    shared = 0
    while len({tuple(p[: shared + 1]) for p in parts}) == 1 and min(map(len, parts)) > shared + 1:
        shared += 1
    return ["/".join(p[shared:]) for p in parts]


def _revision(checkpoint: ListedCheckpoint) -> str | None:
    """Name a revision; of a commit the start of its sha is enough."""
    revision = checkpoint.revision
    return revision[:12] if revision is not None and revision == checkpoint.commit else revision


def _other_costs(inspection: Inspection, bytes_per_s: float) -> str:
    """Say what other numbers of checkpoints would cost, all of them included."""
    words = []
    for cost in inspection.plan.other_counts:
        is_all = cost.num_checkpoints == len(inspection.checkpoints)
        name = f"all {cost.num_checkpoints}" if is_all else str(cost.num_checkpoints)
        duration = human_duration(cost.read_bytes / bytes_per_s)
        words.append(f"{name}: {human_bytes(cost.read_bytes)}, {duration}")
    return f"with {'; with '.join(words)} (--steps, --until)"


def _print_plan(inspection: Inspection, console: Console) -> None:
    plan, rate = inspection.plan, inspection.rate
    print_heading(console, "What predict would cost")
    readings = "" if plan.readings == 1 else f", {plan.readings} readings"
    bytes_per_s = round(rate.bytes_per_s) if rate else RATE_BYTES_PER_S
    at = f"{human_bytes(bytes_per_s)}/s" + (", measured just now on one connection" if rate else "")
    print_labelled(
        console,
        "reads",
        f"{human_bytes(plan.read_bytes)} in {human_count(plan.requests)} requests{readings}: "
        f"{human_duration(plan.read_bytes / bytes_per_s)} at {at}",
    )
    if plan.other_counts:
        print_labelled(console, "instead", _other_costs(inspection, bytes_per_s))
    print_labelled(console, "memory", f"{human_bytes(plan.peak_memory_bytes)} at most")
    print_labelled(
        console,
        "disk",
        f"{human_bytes(plan.output_bytes)} for the output; nothing that is read is kept",
    )

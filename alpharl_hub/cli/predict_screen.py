"""What `predict` and `sweep` show at their end: what was done to which tensors."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from alpharl_hub.cli.terminal import (
    add_number_column,
    add_row,
    add_text_column,
    human_count,
    new_table,
)
from alpharl_hub.results import TensorAction

_MAX_GROUPS = 9
_FROM = {
    "predicted": "predicted",
    "copied": "from the last checkpoint",
    "base": "from the base",
    "linear": "along a straight line",
}


def print_actions(actions: Sequence[TensorAction], console: Console) -> None:
    """Print a row for everything that was done, the most weights first."""
    table = new_table()
    add_text_column(table, "weights")
    for head in ("tensors", "entries"):
        add_number_column(table, head)
    add_text_column(table, "which")
    for one in actions:
        shown = list(one.groups[:_MAX_GROUPS])
        if len(one.groups) > len(shown):
            shown.append(f"{len(one.groups) - len(shown)} more")
        counts = [human_count(one.num_tensors), human_count(one.num_entries)]
        add_row(table, [_FROM.get(one.action, one.action), *counts, ", ".join(shown)])
    console.print(table)

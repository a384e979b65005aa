"""What `compare` shows: the two models, how close they are, and in which groups they are not."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from alpharl_hub.cli.inspect_screen import print_notices
from alpharl_hub.cli.terminal import (
    GAP,
    add_number_column,
    add_row,
    add_text_column,
    human_count,
    new_table,
    print_heading,
    print_labelled,
    significant,
)
from alpharl_hub.results import ComparedModel, Comparison, GroupDifference

_MAX_GROUP_ROWS = 30
_MAX_NAMES = 3
_CHOSEN_BY = {"option": "named by --base", "manifest": "named in alpharl.json"}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a comparison: the answer first, then the module groups, then who was left out."""
    print_labelled(console, "A", _place(comparison.first))
    print_labelled(console, "B", _place(comparison.second))
    if comparison.base is None:
        base = "none: with --base the distance is also given in units of B's update"
    else:
        base = f"{_place(comparison.base)}, {_CHOSEN_BY[comparison.base_chosen_by or 'option']}"
    print_labelled(console, "Base C", base)
    for number, line in enumerate(_answers(comparison.pooled)):
        print_labelled(console, "" if number else "Distance", line)
    for text, names in (
        ("only in A", comparison.only_in_first),
        ("only in B", comparison.only_in_second),
        ("not in C, or of another shape there: compared without it", comparison.not_in_base),
        ("not floating point: not compared", comparison.not_floating),
    ):
        if names:
            print_labelled(console, "Tensors", f"{len(names)} {text}: {_first_names(names)}")
    print_notices(comparison.warnings, console)
    _print_groups(comparison, console)


def _place(model: ComparedModel) -> str:
    place = f"{model.source}@{model.revision}" if model.revision else model.source
    place = f"{place}/{model.folder}" if model.folder else place
    commit = ""
    if model.commit is not None and model.commit != model.revision:
        commit = f", commit {model.commit[:12]}"
    return f"{place} ({model.dtype}{commit})"


def _answers(pooled: GroupDifference) -> Sequence[str]:
    """The distance over all tensors, in words."""
    lines = []
    if pooled.error_of_update is not None:
        words = [f"|A - B| is {_number(pooled.error_of_update)} x |B - C|, B's update"]
        if pooled.cosine_of_updates is not None:
            words.append(f"cosine of the updates {pooled.cosine_of_updates:.3f}")
        words.append(f"A's update is {_number(pooled.length_of_update)} x as long")
        lines.append("; ".join(words))
    share = "" if pooled.equal_share is None else f"; {pooled.equal_share:.1%} of them are equal"
    lines.append(
        f"|A - B| is {_number(pooled.error_of_weights)} x |B|, over "
        f"{human_count(pooled.num_entries)} weights{share}"
    )
    return lines


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")


def _print_groups(comparison: Comparison, console: Console) -> None:
    has_base = comparison.base is not None
    note = "error 0: B itself, 1: no closer than the base" if has_base else ""
    print_heading(console, "Module groups", note)
    shown = comparison.groups[:_MAX_GROUP_ROWS]
    widest = max(cell_len(row.group) for row in shown)
    # 40 columns of numbers and 6 gaps stand beside the label.
    table = new_table(GAP if widest + 40 + 6 * GAP <= console.width else 1)
    add_text_column(table, "\ngroup")
    for head in ("\ntensors", "\nequal", "|A - B|\n/ |B|"):
        add_number_column(table, head)
    if has_base:
        for head in ("|A - B|\n/ |B - C|", "\ncosine", "\nlength"):
            add_number_column(table, head)
    for row in (*shown, comparison.pooled):
        cells = [row.group, str(row.num_tensors), _share(row.equal_share)]
        cells.append(_number(row.error_of_weights))
        if has_base:
            cosine = row.cosine_of_updates
            cells += [
                _number(row.error_of_update),
                "-" if cosine is None else f"{cosine:.3f}",
                _number(row.length_of_update),
            ]
        add_row(table, cells)
    console.print(table)
    if len(comparison.groups) > len(shown):
        num_more = len(comparison.groups) - len(shown)
        console.print(Text(f"and {num_more} more, which --json lists"))


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else significant(value, 3)

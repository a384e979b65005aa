"""What `backtest` shows: the verdict first, then a table for every window."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from alpharl_hub.backtesting.results import (
    STEPS,
    Backtest,
    Closeness,
    ScoredTest,
    TruthTest,
    WindowDirection,
    WindowTest,
)
from alpharl_hub.cli.inspect_screen import print_notices
from alpharl_hub.cli.terminal import (
    add_number_column,
    add_row,
    add_text_column,
    human_count,
    new_table,
    print_heading,
    print_labelled,
)

_LAST, _HALF = "last", "linear-half"
"""The rows that are no --method of predict by their own names."""

_TRUTHS_BESIDE = 4
"""Two numbers each and the name of the method fill 80 columns."""


def print_backtest(backtest: Backtest, verbose: bool, console: Console) -> None:
    """Print a backtest; with `verbose` also the errors over all entries."""
    console.print(Text(_headline(backtest), style="bold"))
    print_labelled(console, "Verdict", backtest.verdict.sentence)
    print_labelled(
        console, "Now", f"up to step {backtest.now.last_step}: {_direction_words(backtest.now)}"
    )
    print_notices(backtest.warnings, console)
    for window in backtest.windows:
        _print_window(window, verbose, console)
    _print_legend(backtest, console)


def _headline(backtest: Backtest) -> str:
    steps = backtest.steps
    matrices = f"{human_count(backtest.num_matrices)} matrices"
    if backtest.sampled:
        matrices = (
            f"a SAMPLE of {human_count(backtest.num_matrices)} of "
            f"{human_count(backtest.num_matrices_in_run)} matrices"
        )
    return f"Backtest: {matrices}, {len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}"


def _direction_words(direction: WindowDirection) -> str:
    if direction.cosine is None:
        cosine = "direction unknown"
    else:
        cosine = f"direction {direction.cosine:.2f}"
    if direction.auto_ratio > 1:
        then = f"auto goes to {direction.auto_ratio:.3g} x"
    else:
        then = "auto keeps the last"
    score = "" if direction.score is None else f"score {direction.score:.3f}, "
    return f"{score}{cosine}, {then}"


def _print_window(window: WindowTest, verbose: bool, console: Console) -> None:
    direction = window.direction
    count = direction.num_checkpoints
    title = f"Fitted up to step {direction.last_step}: {count} checkpoint{'s' * (count > 1)}"
    print_heading(console, title, _direction_words(direction))
    if window.clock.split(" ")[0] != STEPS or verbose:
        print_labelled(console, "clock", window.clock)
    for truths in _beside(window.truths):
        _print_tests(truths, [test.resolved for t in truths for test in t.methods], console)
    if verbose:
        _print_all_entries(window, console)


def _beside(truths: Sequence[TruthTest]) -> Iterator[Sequence[TruthTest]]:
    for start in range(0, len(truths), _TRUTHS_BESIDE):
        yield truths[start : start + _TRUTHS_BESIDE]


def _print_all_entries(window: WindowTest, console: Console) -> None:
    console.print(Text("over all entries, which is mostly rounding in half precision:"))
    for truths in _beside(window.truths):
        _print_tests(truths, [test.all_entries for t in truths for test in t.methods], console)


def _print_tests(truths: Sequence[TruthTest], cells: Sequence[Closeness], console: Console) -> None:
    """Print methods by truths; `cells` hold all methods of the first truth, then of the next."""
    table = new_table(gap=1)
    add_text_column(table, "\n\nmethod")
    for truth in truths:
        add_number_column(table, f"step {truth.step}\n{truth.ratio:.2f} x\nerror")
        add_number_column(table, "\n\ncos")
    methods = [test.method for test in truths[0].methods]
    for place, method in enumerate(methods):
        row = [cells[number * len(methods) + place] for number in range(len(truths))]
        add_row(table, [method, *(text for cell in row for text in _cells(cell))])
    if any(truth.score is not None for truth in truths):
        scores = ["-" if t.score is None else f"{t.score:.3f}" for t in truths]
        add_row(table, ["its score", *(text for score in scores for text in (score, ""))])
    console.print(table)


def _cells(closeness: Closeness) -> tuple[str, str]:
    error, cosine = closeness.error, closeness.cosine
    error_text = "-" if error is None else f"{error:.2f}" if error < 99.5 else "> 99"
    return error_text, "-" if cosine is None else f"{cosine:.2f}"


def _print_legend(backtest: Backtest, console: Console) -> None:
    console.print()
    text = (
        "error: distance to the later checkpoint, 1 as far as the last one fitted, 0 exact; cos: "
        "cosine of predicted and true change. On the smallest weights of each matrix, which the "
        "stored dtype resolves; -v shows all weights beside them. direction: cosine of the two "
        "halves of the update so far, 1 is straight."
    )
    print_labelled(console, "", text)
    truths = [truth for window in backtest.windows for truth in window.truths]
    names = {test.method for truth in truths for test in truth.methods}
    print_labelled(console, "", _method_words(names))
    if any(truth.floor is None for window in backtest.windows for truth in window.truths):
        print_labelled(console, "", "-: rounding hides the change, or too few checkpoints.")


def _method_words(names: Collection[str]) -> str:
    """Say how the methods of the tables are asked of predict."""
    kept = f"{_LAST} keeps the last checkpoint that was fitted" if _LAST in names else ""
    half = f"{_HALF} is --method linear --fit-last 50%" if _HALF in names else ""
    others = "every other name is a --method of predict"
    return f"method: {', '.join(filter(None, (kept, half, others)))}."


def print_scored(scored: ScoredTest, console: Console) -> None:
    """Print the scores of one test, what they come down to first."""
    note = f"fitted up to step {scored.last_step}, {scored.ratio:.2f} x"
    print_heading(console, f"Scores of predictions of step {scored.truth_step}", note)
    print_labelled(console, "Scored", _scored_words(scored))
    table = new_table()
    add_text_column(table, "model")
    add_number_column(table, "score")
    for model in scored.models:
        add_row(table, [model.model, f"{model.score:.4g}"])
    console.print(table)


def _scored_words(scored: ScoredTest) -> str:
    scores = {model.model: model.score for model in scored.models}
    last, truth = f"step {scored.last_step}", f"step {scored.truth_step}"
    best = max(
        (m for m in scored.models if m.model not in (last, truth)),
        key=lambda m: -m.score if scored.lower_is_better else m.score,
        default=None,
    )
    words = f"{last} {scores[last]:.3f}, {truth} ({scored.ratio:.2f} x) {scores[truth]:.3f}"
    if best is None:
        return words
    return f"{words}; the best prediction of it is {best.model}'s, {best.score:.3f}"

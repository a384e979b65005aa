"""A backtest of the run in its model's card: the verdict, and how near its own method came."""

from __future__ import annotations

from dataclasses import replace

from alpharl_hub.card.markdown import ABSENT, code, number, prose, table
from alpharl_hub.errors import CardError
from alpharl_hub.manifest import BacktestRecord, BacktestRow, Manifest

_LAST, _AUTO, _HALF = "last", "auto", "linear-half"
"""What a backtest calls keeping the last checkpoint, the method of its verdict, and
`--method linear --fit-last 50%`."""

_UNKNOWN = "unknown"
_MAX_TESTS = 40


def with_backtest(manifest: Manifest, backtest: BacktestRecord) -> Manifest:
    """Return the manifest with a backtest in the place of the one there.

    Kept are the rows of this model's method, of `auto`, and of keeping the last checkpoint.

    Raises:
        CardError: it has no step in common with the run.
    """
    steps = _steps(manifest)
    if not steps & set(backtest.steps):
        raise CardError(
            f"--backtest: of another run: none of its steps ({_span(backtest.steps)}) is one of "
            f"this model's ({_span(tuple(sorted(steps)))}); backtest the run it was predicted from"
        )
    shown = (_LAST, _own_method(manifest), _AUTO)
    rows = tuple(row for row in backtest.rows if row.method in shown)
    return replace(manifest, backtest=replace(backtest, rows=rows))


def backtest_section(manifest: Manifest) -> str:
    """Return the section, nothing without a backtest."""
    backtest = manifest.backtest
    if backtest is None:
        return ""
    parts = (
        "### Backtest",
        f"**{prose(backtest.sentence)}.**",
        " ".join(filter(None, (_horizon(manifest, backtest), _origin(manifest, backtest)))),
        _tests(backtest.rows, _own_method(manifest)),
    )
    return "\n\n".join(part for part in parts if part)


def _steps(manifest: Manifest) -> set[int]:
    return {record.step for record in manifest.run.checkpoints if record.step is not None}


def _span(steps: tuple[int, ...]) -> str:
    if not steps:
        return "none"
    return str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"


def _own_method(manifest: Manifest) -> str:
    """Return what a backtest calls the method of this model."""
    method = manifest.method
    assert method is not None, "a manifest of a model names its method"
    if manifest.auto is not None:
        return _AUTO
    return _HALF if (method.name, method.fit_last) == ("linear", "0.5") else method.name


def _horizon(manifest: Manifest, backtest: BacktestRecord) -> str:
    """Say where this model lies by the verdict, which is of predictions from its last step."""
    target = manifest.method.target_step if manifest.method is not None else None
    last = manifest.run.checkpoints[-1].step
    if target is None or not last:
        return ""
    ratio = target / last
    if last != backtest.last_step:
        return (
            f"That is of predictions from step {backtest.last_step}; this model is one from step "
            f"{last}, at {number(ratio)} x."
        )
    if backtest.code == _UNKNOWN:
        return ""
    place = "beyond that" if ratio > backtest.horizon else "within that"
    return f"This model was asked for at {number(ratio)} x, which is {place}."


def _origin(manifest: Manifest, backtest: BacktestRecord) -> str:
    """Say which steps were tested: nothing else in a backtest's answer tells runs apart."""
    steps = _steps(manifest)
    sample = " in a sample of the layers" if backtest.sampled else ""
    return (
        f"The backtest read {len(backtest.steps)} steps ({_span(backtest.steps)}){sample}, "
        f"{len(steps & set(backtest.steps))} of the {len(steps)} that this model was made from "
        "among them. Its answer names no run; whoever made this model says that it is of this one."
    )


def _tests(rows: tuple[BacktestRow, ...], own: str) -> str:
    tests: dict[tuple[int, int, float], dict[str, BacktestRow]] = {}
    for row in rows:
        tests.setdefault((row.fitted_until, row.step, row.ratio), {})[row.method] = row
    if not tests:
        return "It could test nothing."
    methods = list(dict.fromkeys(row.method for row in rows))
    header = ["fitted up to step", "tested at step", "ahead"]
    for method in methods:
        remark = " (this model's method)" if method == own else ""
        header += [f"{code(method)}{remark} error", "cosine"]
    lines = []
    for (fitted_until, step, ratio), found in list(tests.items())[:_MAX_TESTS]:
        cells = [str(fitted_until), str(step), f"{number(ratio)} x"]
        for method in methods:
            test = found.get(method)
            cells += [ABSENT, ABSENT] if test is None else _closeness(test)
        lines.append(cells)
    left = len(tests) - len(lines)
    words = (
        "Early checkpoints were fitted, and later ones that exist predicted, by each method with "
        "its default options. An error of 1 is as far from the later checkpoint as the last one "
        f"that was fitted ({code(_LAST)} keeps it), 0 is exact; the cosine is that of predicted "
        "and true change; both on the smallest weights of each matrix."
    )
    if own not in methods:
        words += f" No row is of {code(own)}, the method of this model."
    if left:
        words += f" {left} more tests are in `alpharl.json`."
    return f"{words}\n\n{table(header, lines)}"


def _closeness(test: BacktestRow) -> list[str]:
    return [number(test.error), number(test.cosine)]

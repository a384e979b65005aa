"""Backtest a run, top to bottom: choose windows, read every matrix once, test, judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alpharl_hub.backtesting.candidates import Design, Timed, choose_methods
from alpharl_hub.backtesting.cases import FitWindow, plan_windows, require_truths
from alpharl_hub.backtesting.readings import judge_tests, read_direction, read_truths
from alpharl_hub.backtesting.results import Backtest, WindowDirection, WindowTest
from alpharl_hub.backtesting.sums import PackedSums, Sums, add_sums
from alpharl_hub.backtesting.window_work import WindowBacktester
from alpharl_hub.prediction.automatic import learning_rates, name_clock
from alpharl_hub.preparation import Prepared, nearest_middle
from alpharl_hub.reporting.sample import sample_layers
from alpharl_hub.results import SCHEMA
from alpharl_hub.scope import ScopedTensor, count_matrices
from alpharl_hub.trajectory import LowRankRef, Trajectory
from alpharl_hub.windows.plan import (
    MIN_WINDOW_BYTES,
    WINDOW_BYTES,
    Window,
    group_by_bytes,
    plan_analysis,
)
from alpharl_hub.windows.streaming import Compute, Hooks, Results, find_crew, stream

_QUICK_LAYERS = 4
"""How many layers `--quick` reads: the first, the last, and two between."""

_COUNTED_READINGS = 2
"""What `window_memory_bytes` takes to be kept of a window, as stored: the base and one more."""

_SMALLEST_ENTRIES_BYTES = 64 * 0.02
"""An entry: finding the smallest 2 % takes up to 64 bytes for each of those."""


@dataclass(frozen=True)
class BacktestOptions:
    """How to backtest; the fields are the options of the command line.

    `fit_until` are steps or shares; `methods` names out of `candidates.CHOICES` (all when empty);
    `truths` are (name, step) of checkpoints that are predicted and never fitted; `quick` reads a
    sample of layers.
    """

    fit_until: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    truths: tuple[tuple[str, int], ...] = ()
    quick: bool = False


def backtest(
    prepared: Prepared,
    options: BacktestOptions,
    compute: Compute,
    hooks: Hooks,
    journal: Results | None = None,
) -> Backtest:
    """Test all methods on a run in one reading; windows that a journal holds are not read again.

    Raises:
        TrajectoryError: windows or truths that the run cannot serve. FitError: an unknown method.
        ResourceError: memory does not suffice; told before anything is read.
        SourceError, FitError: something cannot be read, or holds NaN.
    """
    trajectory = prepared.trajectory
    matrices = prepared.scope.matrices
    chosen = sample_layers(matrices, _QUICK_LAYERS) if options.quick else matrices
    tests, now = _test(trajectory, chosen, options, compute, hooks, journal)
    return Backtest(
        schema=SCHEMA,
        steps=trajectory.steps_T,
        truth_steps=_truth_steps(options),
        sampled=len(chosen) < len(matrices),
        num_matrices=count_matrices(chosen),
        num_matrices_in_run=count_matrices(matrices),
        score_name=trajectory.scores.name if trajectory.scores else None,
        verdict=judge_tests(tests, now),
        now=now,
        windows=tests,
        scored=None,
        warnings=prepared.notices,
    )


def _truth_steps(options: BacktestOptions) -> tuple[int, ...]:
    return tuple(sorted(step for _, step in options.truths))


def _test(
    trajectory: Trajectory,
    matrices: Sequence[ScopedTensor],
    options: BacktestOptions,
    compute: Compute,
    hooks: Hooks,
    journal: Results | None,
) -> tuple[tuple[WindowTest, ...], WindowDirection]:
    """Return the tests of every window, and the direction of the whole run."""
    steps_T, truth_steps = trajectory.steps_T, _truth_steps(options)
    require_truths(options.truths, steps_T, [c.step for c in trajectory.listed if c.step])
    windows = plan_windows(steps_T, truth_steps, options.fit_until)
    whole = FitWindow(tuple(t for t, s in enumerate(steps_T) if s not in truth_steps), ())
    clocks = [_timed(trajectory, window) for window in windows]
    methods = choose_methods(options.methods)
    design = Design(steps_T, windows, methods, [timed for timed, _ in clocks])
    sums = _read(trajectory, matrices, design, (*windows, whole), compute, hooks, journal)
    tests = tuple(
        WindowTest(
            direction=read_direction(trajectory, sums, number, window),
            clock=words,
            truths=read_truths(trajectory, sums, design, number),
        )
        for number, (window, (_, words)) in enumerate(zip(windows, clocks, strict=True))
    )
    return tests, read_direction(trajectory, sums, len(windows), whole)


def _read(
    trajectory: Trajectory,
    matrices: Sequence[ScopedTensor],
    design: Design,
    windows: Sequence[FitWindow],
    compute: Compute,
    hooks: Hooks,
    journal: Results | None,
) -> Sums:
    """Read every matrix at all its checkpoints, which are held together."""
    steps_T = trajectory.steps_T
    middles = [w.fitted[nearest_middle([steps_T[t] for t in w.fitted])] for w in windows]
    read = _windows_to_read(matrices, len(steps_T))
    crew = find_crew(read, compute, _num_deltas_held(read))
    work = WindowBacktester(trajectory, design, windows, middles)
    found = stream(trajectory, read, work, crew.reading(hooks), PackedSums, journal)
    return add_sums([packed.unpack() for index in sorted(found) for packed in found[index]])


def _windows_to_read(matrices: Sequence[ScopedTensor], num_steps: int) -> tuple[Window, ...]:
    """Cut the matrices into small windows: a window is held at all steps."""
    parts = [part for window in plan_analysis(matrices) for part in window.parts]
    window_bytes = max(MIN_WINDOW_BYTES, WINDOW_BYTES // max(1, num_steps // 2))
    return tuple(Window(i, group) for i, group in enumerate(group_by_bytes(parts, window_bytes)))


def _num_deltas_held(windows: Sequence[Window]) -> int:
    """Return how many fp32 copies of a window are held beyond what every plan counts.

    Those are three of its readings; all of them are held here.
    """
    most = 0.0
    for window in windows:
        entries = sum(part.num_elements for part in window.parts)
        sizes = sorted(sum(r.num_bytes for _, r in window.reads_at(p)) for p in window.positions)
        # Adapters with magnitudes (DoRA) have no factors, and are merged into fp32.
        merged = sum(
            part.num_elements
            for part in window.parts
            for ref in part.reads.values()
            if isinstance(ref, LowRankRef) and ref.magnitude is not None
        )
        most = max(most, (sum(sizes[:-_COUNTED_READINGS]) + 4 * merged) / (4 * entries))
    # One more for what is computed of a window beside its deltas.
    return 1 + math.ceil(most + _SMALLEST_ENTRIES_BYTES / 4)


def _timed(trajectory: Trajectory, window: FitWindow) -> tuple[Timed | None, str]:
    """Return the clock that auto would have had at the end of a window, and what it is."""
    rates = learning_rates(trajectory.history[window.last], trajectory.steps_T[window.last])
    clock, words = rates.uneven_clock, name_clock(rates.uneven_clock, rates)
    if clock is None:
        return None, words
    fitted = tuple(clock.time(trajectory.steps_T[t]) for t in window.fitted)
    truths = tuple(clock.time(trajectory.steps_T[t]) for t in window.truths)
    return Timed(fitted, truths), words

"""From pooled sums to what a backtest answers: directions of windows, and tests of truths."""

from __future__ import annotations

from collections.abc import Sequence

from alpharl_hub.backtesting.candidates import Design
from alpharl_hub.backtesting.cases import FitWindow
from alpharl_hub.backtesting.results import (
    Closeness,
    MethodTest,
    TruthTest,
    Verdict,
    WindowDirection,
    WindowTest,
)
from alpharl_hub.backtesting.rows import ALL_ENTRIES
from alpharl_hub.backtesting.sums import Sums, closeness, direction_of, floor_of, resolved_level
from alpharl_hub.backtesting.verdict import Fact, judge
from alpharl_hub.methods import AUTO
from alpharl_hub.numerics.direction import pool
from alpharl_hub.numerics.horizon import Evidence, decide
from alpharl_hub.numerics.score_course import score_evidence
from alpharl_hub.preparation import nearest_middle
from alpharl_hub.trajectory import Trajectory


def read_direction(
    trajectory: Trajectory, sums: Sums, number: int, window: FitWindow
) -> WindowDirection:
    """Read the direction of one window, and what auto would have made of it."""
    steps = [trajectory.steps_T[t] for t in window.fitted]
    middle = nearest_middle(steps)
    trust = pool([direction_of(sums, number)], steps, middle)
    decision = decide(
        Evidence(
            trust=trust,
            steps_T=tuple(float(step) for step in steps),
            middle=middle,
            scores=score_evidence(trajectory.scores, steps),
        )
    )
    table = trajectory.scores
    return WindowDirection(
        first_step=steps[0],
        last_step=steps[-1],
        num_checkpoints=len(steps),
        middle_step=steps[middle],
        score=table.at(steps[-1]) if table is not None else None,
        cosine=trust.cosine,
        cosine_all_entries=trust.cosine_all_entries,
        share_of_entries=trust.share_of_entries,
        floor=trust.floor,
        cap=trust.cap,
        auto_ratio=decision.ratio,
        bound_by=decision.bound,
    )


def read_truths(
    trajectory: Trajectory, sums: Sums, design: Design, number: int
) -> tuple[TruthTest, ...]:
    """Read all tests of one window."""
    cases = [index for index, case in enumerate(design.cases) if case.window == number]
    return tuple(_truth_test(trajectory, sums, design, index) for index in cases)


def _truth_test(trajectory: Trajectory, sums: Sums, design: Design, index: int) -> TruthTest:
    case, table = design.cases[index], trajectory.scores
    step = trajectory.steps_T[case.truth]
    level = resolved_level(sums, index)
    share = floor = None
    if level is not None:
        share = float(sums.truth_count[level, index] / sums.truth_count[ALL_ENTRIES, index])
        floor = floor_of(sums, index, level)
    return TruthTest(
        step=step,
        ratio=step / trajectory.steps_T[design.windows[case.window].last],
        score=table.at(step) if table is not None else None,
        share_of_entries=share,
        floor=floor,
        methods=tuple(
            MethodTest(
                method=name,
                resolved=closeness(sums, level, index, place),
                all_entries=closeness(sums, ALL_ENTRIES, index, place),
            )
            for place, name in enumerate(design.methods)
        ),
    )


def judge_tests(tests: Sequence[WindowTest], now: WindowDirection) -> Verdict:
    """Say what follows of all tests."""
    facts = [
        Fact(
            last_step=test.direction.last_step,
            truth_step=truth.step,
            ratio=truth.ratio,
            error=resolved_of(truth, AUTO).error,
            auto_ratio=test.direction.auto_ratio,
        )
        for test in tests
        for truth in test.truths
    ]
    return judge(facts, now)


def resolved_of(truth: TruthTest, method: str) -> Closeness:
    """Return how close one method came on the resolved entries."""
    return next(test.resolved for test in truth.methods if test.method == method)

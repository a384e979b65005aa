"""What follows from a backtest, in one sentence.

A test is passed when a line by auto's method came closer to the later checkpoint than the last one
of the window did. A test that is failed counts where auto would have gone that far, and always in
the latest window; elsewhere its rule has kept the last checkpoint, rightly. How far is safe is the
smaller of what was tested and of what the direction of the whole run carries: passing alone does
not do, because runs that lost score when extrapolated passed too (errors of 0.55 to 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alpharl_hub.backtesting.results import KEEP, SAFE, UNKNOWN, Verdict, WindowDirection
from alpharl_hub.numerics.horizon import (
    DIRECTION,
    DIRECTION_UNKNOWN,
    FEW_CHECKPOINTS,
    MIN_RATIO,
    SCORE_LINE,
    SCORE_PARABOLA,
    SCORED_DIRECTION,
)


@dataclass(frozen=True)
class Fact:
    """One test of auto: `error` on the resolved entries, None where rounding hides the truth.

    `ratio` is the truth's step in units of the window's last one, `auto_ratio` how far auto would
    have gone from there.
    """

    last_step: int
    truth_step: int
    ratio: float
    error: float | None
    auto_ratio: float


def judge(facts: Sequence[Fact], now: WindowDirection) -> Verdict:
    """Say what follows of all tests and of the direction of the whole run."""
    known = [fact for fact in facts if fact.error is not None]
    tested = max((fact.ratio for fact in known), default=None)
    failed = _first_failure(known)
    passed = [fact for fact in known if _is_passed(fact)]
    reach = max((f.ratio for f in passed if failed is None or f.ratio < failed.ratio), default=1.0)
    if failed is not None and reach < MIN_RATIO:
        return Verdict(KEEP, 1.0, tested, _failure_words(failed))
    reason = _reason_to_stop(now)
    if reason is not None:
        code, words = reason
        return Verdict(code, 1.0, tested, f"{words}{_history_words(known, passed)}")
    if not known:
        words = (
            "Unknown: rounding hides how the later checkpoints differ from the earlier ones, so "
            "nothing could be tested; keep the last checkpoint, or let scores decide"
        )
        return Verdict(UNKNOWN, 1.0, tested, words)
    horizon = min(reach, now.auto_ratio)
    if horizon < MIN_RATIO:
        words = f"Unknown: only {tested or 1.0:.2f} x the observed steps could be tested"
        return Verdict(UNKNOWN, 1.0, tested, words)
    words = _safe_words(horizon, known, passed, failed, now)
    return Verdict(SAFE, horizon, tested, words)


def _is_passed(fact: Fact) -> bool:
    return fact.error is not None and fact.error < 1


def _first_failure(known: Sequence[Fact]) -> Fact | None:
    """Return the nearest failure that counts, the latest window first."""
    latest = max((fact.last_step for fact in known), default=0)
    failed = [
        fact
        for fact in known
        if not _is_passed(fact) and (fact.last_step == latest or fact.ratio <= fact.auto_ratio)
    ]
    return min(failed, key=lambda fact: (fact.ratio, -fact.last_step), default=None)


def _failure_words(failed: Fact) -> str:
    return (
        f"Keep the last checkpoint: fitted up to step {failed.last_step}, auto's line to "
        f"step {failed.truth_step} ({failed.ratio:.2g} x) was farther from it than step "
        f"{failed.last_step} itself (error {failed.error:.2f}, where 1 is no gain)"
    )


def _reason_to_stop(now: WindowDirection) -> tuple[str, str] | None:
    """Return what the whole run says against going on; None if nothing."""
    if now.auto_ratio > 1:
        return None
    if now.bound_by == FEW_CHECKPOINTS:
        return UNKNOWN, (
            f"Unknown: {now.num_checkpoints} checkpoints are too few to tell where the run is going"
        )
    if now.bound_by == DIRECTION_UNKNOWN or now.cosine is None:
        return UNKNOWN, (
            "Unknown: too little of the update stands out from rounding to tell where the run is "
            "going now"
        )
    reasons = {
        DIRECTION: f"the direction of its update is turning (cosine {now.cosine:.2f})",
        SCORED_DIRECTION: f"the direction of its update is turning (cosine {now.cosine:.2f})",
        SCORE_LINE: "the scores leave nothing to gain ahead",
        SCORE_PARABOLA: "the scores have peaked",
    }
    return KEEP, f"Keep the last checkpoint: {reasons[now.bound_by]}"


def _history_words(known: Sequence[Fact], passed: Sequence[Fact]) -> str:
    if not known:
        return ""
    if not passed:
        return "; no earlier prediction came closer to what followed than the last checkpoint did"
    return (
        f"; that {_share_words(passed, known)} predictions came closer to what followed than the "
        f"last checkpoint did ({_errors_words(passed)}) does not outweigh it: a score can fall "
        "where weights are foreseen"
    )


def _safe_words(
    horizon: float,
    known: Sequence[Fact],
    passed: Sequence[Fact],
    failed: Fact | None,
    now: WindowDirection,
) -> str:
    within = [fact for fact in passed if failed is None or fact.ratio < failed.ratio]
    reach = max(fact.ratio for fact in within)
    tests = [fact for fact in known if fact.ratio <= reach]
    words = (
        f"Extrapolating to {_times_words(horizon)} the observed steps looks safe: in "
        f"{_share_words(within, tests)} tests, up to {_floor(reach)} x, a line by auto's method "
        f"came closer to the later checkpoint than the last one seen ({_errors_words(within)})"
    )
    if failed is not None:
        return f"{words}; at {failed.ratio:.2g} x it no longer did (error {failed.error:.2f})"
    if horizon < reach:
        return f"{words}; the direction of the update, as it is now, is trusted no farther"
    if now.auto_ratio > reach:
        return f"{words}; not tested beyond {_floor(reach)} x"
    return words


def _share_words(some: Sequence[Fact], of: Sequence[Fact]) -> str:
    return f"all {len(of)}" if len(some) == len(of) else f"{len(some)} of {len(of)}"


def _errors_words(facts: Sequence[Fact]) -> str:
    errors = [fact.error for fact in facts if fact.error is not None]
    low, high = f"{min(errors):.2f}", f"{max(errors):.2f}"
    return f"error {low}" if low == high else f"errors {low} to {high}"


def _times_words(ratio: float) -> str:
    return "twice" if 1.95 <= ratio < 2.05 else f"{_floor(ratio)} times"


def _floor(ratio: float) -> str:
    """A ratio with one digit, or two below 1.2, never rounded up: that would promise more."""
    factor = 100 if ratio < 1.2 else 10
    # 2.0 may have come out as 1.9999999.
    return f"{math.floor(ratio * factor + 1e-6) / factor:g}"

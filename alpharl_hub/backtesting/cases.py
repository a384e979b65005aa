"""Which checkpoints are fitted, and which later ones are predicted from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpharl_hub.errors import TrajectoryError
from alpharl_hub.sources.selection import spread_evenly
from alpharl_hub.trajectory import nearest_steps

DEFAULT_SHARES = (0.3, 0.4, 0.5, 0.7)
"""Of the last step; a run that is tested at 30 % is tested at more than three times the window."""

MIN_UNASKED_CHECKPOINTS = 3
"""A line through two checkpoints fits always and averages no noise out."""

MAX_TRUTHS = 4
"""Truths of one window, unless more are named: as many as stand side by side on a screen."""


@dataclass(frozen=True)
class FitWindow:
    """Positions in the history (rising) of what is fitted, and of what is predicted from it."""

    fitted: tuple[int, ...]
    truths: tuple[int, ...]

    @property
    def last(self) -> int:
        """The position of the last checkpoint that is fitted."""
        return self.fitted[-1]


def plan_windows(
    steps_T: Sequence[int], truth_steps: Sequence[int], limits: Sequence[str]
) -> tuple[FitWindow, ...]:
    """Choose windows and truths.

    Args:
        steps_T: all steps of the history, rising.
        truth_steps: those of them that are never fitted.
        limits: where windows end, as the user wrote them: a step, or a share such as 40% or 0.4 of
            the last step that may be fitted. Without any, DEFAULT_SHARES where they leave enough
            to fit, and all that may be fitted where a truth lies beyond.

    Raises:
        TrajectoryError: a limit leaves nothing to fit or nothing to predict, or no window is left.
    """
    steps = [step for step in steps_T if step not in truth_steps]
    if not steps:
        raise TrajectoryError("every checkpoint is a --truth: nothing is left to fit")
    found: list[FitWindow] = []
    for limit in limits or [f"{100 * share:g}%" for share in (*DEFAULT_SHARES, 1)]:
        inside = [step for step in steps if step <= parse_limit(limit, steps[-1])]
        beyond = [step for step in steps_T if inside and step > inside[-1]]
        if limits:
            _require_both(limit, inside, beyond, steps)
        elif len(inside) < MIN_UNASKED_CHECKPOINTS or not beyond:
            continue
        window = FitWindow(
            fitted=tuple(steps_T.index(step) for step in inside),
            truths=tuple(steps_T.index(step) for step in choose_truths(beyond, truth_steps)),
        )
        if window not in found:
            found.append(window)
    if not found:
        raise TrajectoryError(
            f"{len(steps_T)} checkpoints are too few to fit {MIN_UNASKED_CHECKPOINTS} and predict "
            "another; select more with --steps, or say where to end with --fit-until"
        )
    return tuple(sorted(found, key=lambda window: len(window.fitted)))


def choose_truths(beyond: Sequence[int], named: Sequence[int]) -> tuple[int, ...]:
    """Take the named steps among those beyond a window, the last one, and others between."""
    kept = [step for step in beyond if step in named]
    others = [step for step in beyond if step not in named]
    room = MAX_TRUTHS - len(kept)
    if beyond[-1] not in kept or room >= 2:
        kept += spread_evenly(others, room) if room >= 2 else others[-1:]
    return tuple(sorted(kept))


def parse_limit(text: str, last: int) -> float:
    """Turn a step, or a share of the last step, into a step.

    Raises:
        TrajectoryError: it is neither.
    """
    words = text.strip()
    is_share = words.endswith("%")
    try:
        value = float(words[:-1]) / 100 if is_share else float(words)
    except ValueError:
        value = float("nan")
    is_share = is_share or ("." in words and value <= 1)
    if not value > 0 or (is_share and value > 1):
        raise TrajectoryError(
            f"--fit-until {text}: give a step, such as 200, or a share of the last, such as 40%"
        )
    # A share is meant to include the step that it falls on, whatever floating point makes of it.
    return value * last * (1 + 1e-9) if is_share else value


def _require_both(
    limit: str, inside: Sequence[int], beyond: Sequence[int], steps: Sequence[int]
) -> None:
    if not inside:
        raise TrajectoryError(
            f"--fit-until {limit} leaves no checkpoint to fit: the first is at step {steps[0]}"
        )
    if not beyond:
        raise TrajectoryError(
            f"--fit-until {limit} leaves no checkpoint to predict: the last is at step "
            f"{steps[-1]}; end earlier, or add one with --truth"
        )


def require_truths(
    truths: Sequence[tuple[str, int]], steps_T: Sequence[int], listed: Sequence[int]
) -> None:
    """Refuse a --truth that the selection has left out.

    Raises:
        TrajectoryError: names it.
    """
    for name, step in truths:
        if step not in steps_T:
            near = nearest_steps(step, [s for s in listed if s != step])
            raise TrajectoryError(
                f"--truth {name}={step}: left out by --steps or --until, or its weights are those "
                f"of an earlier checkpoint; say with --steps which are used (beside it: {near})"
            )

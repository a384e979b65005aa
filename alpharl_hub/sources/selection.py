"""Which of the listed steps are used: --steps, --until, or a dozen spread evenly."""

from __future__ import annotations

import re
from collections.abc import Sequence

from alpharl_hub.errors import TrajectoryError, did_you_mean
from alpharl_hub.trajectory import nearest_steps

MAX_UNASKED_CHECKPOINTS = 12
"""Without --steps: enough for the fit to be steady, few enough to stay affordable."""

_RANGE = re.compile(r"^(\d+)-(\d*)(?::(\d+))?$")


def select_steps(steps: Sequence[int], spec: str | None, until: str | None) -> tuple[int, ...]:
    """Choose among `steps` (rising).

    Args:
        steps: all steps of the run, rising.
        spec: "10,20,40-100:20,200-": single steps, and ranges of which every listed step is taken,
            or with :STRIDE every multiple of the stride counted from the first number.
        until: the last step to use, or a share such as "40%" or "0.4" of the last step.

    Raises:
        TrajectoryError: nothing is left, a named step is not there, or the text is no selection.
    """
    chosen = tuple(steps)
    if spec is not None:
        chosen = tuple(sorted({step for part in spec.split(",") for step in _part(part, steps)}))
    if until is not None:
        limit = _limit(until, steps[-1])
        first = chosen[0]
        chosen = tuple(step for step in chosen if step <= limit)
        if not chosen:
            raise TrajectoryError(
                f"--until {until} leaves no checkpoint: the first is at step {first}; "
                f"give that or a later one{_meant(until, steps)}"
            )
    if spec is None:
        chosen = spread_evenly(chosen, MAX_UNASKED_CHECKPOINTS)
    return chosen


def spread_evenly(steps: Sequence[int], count: int) -> tuple[int, ...]:
    """Take `count` steps, first and last included, as evenly spaced in step as there are."""
    if len(steps) <= count:
        return tuple(steps)
    first, last = steps[0], steps[-1]
    wanted = [first + (last - first) * i / (count - 1) for i in range(count)]
    return tuple(sorted({min(steps, key=lambda step: abs(step - want)) for want in wanted}))


def _part(part: str, steps: Sequence[int]) -> list[int]:
    text = part.strip()
    match = _RANGE.match(text)
    if match:
        return _range(text, match, steps)
    if not text.isdecimal():
        raise TrajectoryError(
            f"--steps: {text!r} is neither a step nor a range; write for example "
            "10,20,40-100:20,200-"
        )
    return [_present(int(text), steps)]


def _range(text: str, match: re.Match[str], steps: Sequence[int]) -> list[int]:
    first = int(match[1])
    last = int(match[2]) if match[2] else steps[-1]
    inside = [step for step in steps if first <= step <= last]
    if match[3] is not None:
        stride = int(match[3])
        if stride == 0:
            raise TrajectoryError(f"--steps: the stride in {text!r} is 0; leave it out or raise it")
        inside = [step for step in inside if (step - first) % stride == 0]
    if not inside:
        raise TrajectoryError(
            f"--steps: no step of the run lies in {text!r}; it has {steps[0]} to {steps[-1]}"
        )
    return inside


def _present(step: int, steps: Sequence[int]) -> int:
    if step not in steps:
        near = nearest_steps(step, steps)
        neighbours = "neighbours are" if " and " in near else "neighbour is"
        raise TrajectoryError(
            f"--steps: step {step} is not there; its {neighbours} {near}{_meant(str(step), steps)}"
        )
    return step


def _meant(text: str, steps: Sequence[int]) -> str:
    """Offer a step that has a digit more or less: 1000 for 10000; the others are no neighbours."""
    return did_you_mean(text, map(str, steps), cutoff=0.85)


def _limit(until: str, last: int) -> float:
    text = until.strip()
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = float("nan")
    if not value > 0:
        raise TrajectoryError(
            f"--until {until}: give a step, such as 200, or a share of the last, such as 40%"
        )
    is_share = text.endswith("%") or ("." in text and value <= 1)
    if is_share and value > 1:
        raise TrajectoryError(
            f"--until {until}: the share is larger than the whole run; give 100% or less"
        )
    # A share is meant to include the step it falls on: 40% of 30 is 12, not 11.999.
    return value * last * (1 + 1e-9) if is_share else value

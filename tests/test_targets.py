"""What a prediction is aimed at, and what the user is told about it."""

from __future__ import annotations

import numpy as np
import pytest

from alpharl_hub.errors import FitError, ScoreError
from alpharl_hub.manifest import TrustRecord
from alpharl_hub.prediction.records import beyond_notice
from alpharl_hub.prediction.targets import ResolvedTarget, TargetOptions, resolve_target

STEPS = (10, 20, 40)


def aim(
    *, scores: tuple[float, ...] | None = None, method: str = "linear", **wanted: float
) -> ResolvedTarget:
    """Resolve what is wanted for a short history."""
    steps = (wanted.pop("target_step"),) if "target_step" in wanted else ()
    return resolve_target(method, STEPS, scores, TargetOptions(steps, **wanted), False)


def codes(found: ResolvedTarget) -> list[str]:
    """The codes of what the user is told."""
    return [notice.code for notice in found.notices]


def test_a_score_becomes_a_step_by_the_line_of_numpy() -> None:
    """The step is where numpy's least-squares line of score on step reaches the target."""
    scores = (0.1, 0.25, 0.4)
    slope, intercept = np.polyfit(STEPS, scores, 1)
    found = aim(scores=scores, target_score=0.9)
    (goal,) = found.goals
    assert goal.step == pytest.approx((0.9 - intercept) / slope)
    assert goal.response == goal.step
    by_score = aim(scores=scores, target_score=0.9, method="alpharl")
    assert by_score.clock.by_score
    assert by_score.goals[0].response == 0.9
    assert by_score.goals[0].step == goal.step


def test_scores_that_level_off_are_told() -> None:
    """A target above the last score that the line puts before the last step is no aim ahead."""
    found = aim(scores=(0.1, 0.95, 0.98), target_score=0.99)
    assert found.goals[0].step is not None
    assert found.goals[0].step < STEPS[-1]
    assert codes(found) == ["score_bracket", "scores_level_off"]


def test_scale_and_distance() -> None:
    """A scale is a multiple of the last step; inside the history and very far ahead are told."""
    assert aim(scale=2.0).goals[0].step == 80
    assert codes(aim(target_step=30)) == ["interpolation"]
    assert codes(aim(target_step=121)) == ["far"]
    assert codes(aim(target_step=100)) == []
    hundred = aim(target_step=100)
    assert hundred.ratio(hundred.goals[0]) == 2.5


def test_one_target_exactly() -> None:
    """None and two are refused, a step before the history, and a score without scores."""
    with pytest.raises(FitError, match="before the history"):
        aim(target_step=9.0)
    for wanted in ({}, {"target_step": 50.0, "scale": 2.0}):
        with pytest.raises(FitError, match="give one of"):
            aim(**wanted)
    with pytest.raises(ScoreError, match="needs the score of every checkpoint"):
        aim(target_score=0.9)


def test_several_steps_are_several_goals() -> None:
    """In the order given, each once; average takes none and stays where the run is."""
    found = resolve_target("ols", STEPS, None, TargetOptions((100, 60, 30)), False)
    assert [goal.step for goal in found.goals] == [100, 60, 30]
    with pytest.raises(FitError, match="the same step twice"):
        resolve_target("ols", STEPS, None, TargetOptions((100, 100)), False)
    assert resolve_target("average", STEPS, None, TargetOptions(), False).goals[0].step == 40
    with pytest.raises(FitError, match="looks nowhere ahead"):
        aim(method="average", target_step=100)


@pytest.mark.parametrize(
    ("requested", "cap", "told"), [(2.5, 2.0, True), (2.0, 2.0, False), (0.8, 1.0, False)]
)
def test_a_target_beyond_trust_is_a_warning(requested: float, cap: float, told: bool) -> None:
    """What lies farther ahead than the direction carries is told, an interpolation is not."""
    trust = TrustRecord(0.9, 0.9, 0.02, 0.01, 1.0, 20, cap, requested, "words")
    assert [n.code for n in beyond_notice(trust)] == (["beyond_trust"] if told else [])

"""How far `auto` goes: the rule against an independent implementation, and what it says."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alpharl_hub.numerics.direction import Trust
from alpharl_hub.numerics.horizon import Decision, Evidence, decide
from alpharl_hub.numerics.score_course import ASSUMED_PROBLEMS, ScoreEvidence

STEPS = (12, 24, 36, 48, 60, 72)
MIDDLE = 2
RISING = (0.50, 0.55, 0.61, 0.66, 0.70, 0.75)


def ramp(cosine: float | None) -> float:
    """The cap of the weights by its three anchor points."""
    return 1.0 if cosine is None else float(np.interp(cosine, [0.85, 0.90, 0.95], [1, 1.75, 2.5]))


def trust(cosine: float | None, everywhere: float | None = 0.26) -> Trust:
    """A reading with this cosine on the 2 % smallest weights."""
    if cosine is None:
        return Trust(None, everywhere, None, None, None, 1.0)
    return Trust(cosine, everywhere, 0.02, 0.03, 0.9, ramp(cosine))


def go(
    cosine: float | None,
    scores: tuple[float, ...] | None = None,
    asked: float | None = None,
    steps: tuple[float, ...] = STEPS,
    middle: int = MIDDLE,
    **more: Any,
) -> Decision:
    """Decide about a run."""
    given_scores = None if scores is None else ScoreEvidence(scores, **more)
    return decide(Evidence(trust(cosine), steps, middle, given_scores, asked))


def rule(
    cosine: float | None,
    steps: Any,
    middle: int,
    asked: float | None,
    scores: Any = None,
    base: float | None = None,
    n: int | None = None,
    lower: bool = False,
) -> tuple[float, float | None, float | None]:
    """The rule in numpy: (r, line, vertex)."""
    last = steps[-1]
    limits = [np.inf if asked is None else asked / last]
    if cosine is None or scores is None:
        limits.append(ramp(cosine))
        ratio = min(limits)
        return (float(ratio) if ratio >= 1.05 else 1.0), None, None
    y = np.array([*([] if base is None else [base]), *scores], dtype=np.float64)
    x = np.array([*([] if base is None else [0.0]), *steps]) / last
    line = None
    if np.all((y >= 0) & (y <= 1)):
        y = 1 - y if lower else y
        y = np.clip(y, 0.5 / (n or 1000), 1 - 0.5 / (n or 1000))
        y = np.log(y / (1 - y))
        at = y[-len(steps) :]
        slopes = [np.polyfit(steps[middle:], at[middle:], 1)[0]]
        if base is not None:
            slopes.append((at[-1] - y[0]) / last)
        aim = np.log(0.99 / 0.01)
        is_over = at[-1] >= aim or max(slopes) <= 0
        line = 1.0 if is_over else float(1 + (aim - at[-1]) / (max(slopes) * last))
        limits += [line, max(ramp(cosine), 1.25) if cosine >= 0.60 else 1.0]
    else:
        y = -y if lower else y
        limits.append(ramp(cosine))
    a, b, _ = np.polyfit(x, y, 2)
    vertex = float(max(1, -b / (2 * a))) if a < 0 else None
    if vertex is not None:
        limits.append(vertex)
    ratio = min(limits)
    return (float(ratio) if ratio >= 1.05 else 1.0), line, vertex


@settings(max_examples=300, deadline=None)
@given(
    cosine=st.floats(-0.2, 1.0),
    gaps=st.lists(st.integers(1, 30), min_size=4, max_size=12),
    asked_ratio=st.one_of(st.none(), st.floats(0.5, 4)),
    problems=st.one_of(st.none(), st.integers(50, 2000)),
    has_base=st.booleans(),
    is_share=st.booleans(),
    lower=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_with_scores_the_rule_is_that_of_numpy(
    cosine: float,
    gaps: list[int],
    asked_ratio: float | None,
    problems: int | None,
    has_base: bool,
    is_share: bool,
    lower: bool,
    seed: int,
) -> None:
    """Ratio, line and vertex equal numpy's polyfit, for shares and rewards, either way round."""
    rng = np.random.default_rng(seed)
    steps = tuple(np.cumsum(gaps).tolist())
    middle = int(np.argmin([abs(s - steps[-1] / 2) for s in steps]))
    assume(middle < len(steps) - 1)
    path = 0.3 + 0.6 * np.linspace(0, 1, len(steps) + 1) ** rng.uniform(0.2, 2)
    path += rng.normal(size=len(path)) * rng.choice([0.0, 0.02, 0.2])
    path = np.clip(path, 0, 1) if is_share else 10 * path - 4
    path = 1 - path if lower else path
    scores, base = tuple(path[1:].tolist()), (float(path[0]) if has_base else None)
    asked = None if asked_ratio is None else asked_ratio * steps[-1]
    found = go(
        cosine,
        scores,
        asked,
        steps,
        middle,
        base=base,
        num_problems=problems,
        lower_is_better=lower,
    )
    ratio, line, vertex = rule(cosine, steps, middle, asked, scores, base, problems, lower)
    assert found.ratio == pytest.approx(ratio, rel=1e-6)
    assert found.step == pytest.approx(ratio * steps[-1], rel=1e-6)
    assert found.goes_on == (ratio > 1)
    assert (found.line is None) == (line is None)
    assert (found.vertex is None) == (vertex is None)
    # Far out both are quotients of two tiny numbers, and bind nothing.
    for here, there in ((found.line, line), (found.vertex, vertex)):
        if there is not None and there < 50:
            assert here == pytest.approx(there, rel=1e-5)


@pytest.mark.parametrize("asked", [None, 60.0, 75.0, 90.0, 500.0])
@pytest.mark.parametrize("cosine", [None, 0.2, 0.85, 0.853, 0.88, 0.9, 0.95, 1.0])
def test_weights_alone_are_the_ramp(cosine: float | None, asked: float | None) -> None:
    """Without scores the cosine's cap and the target decide; below 1.05 nothing is predicted."""
    found = go(cosine, None, asked)
    ratio, _, _ = rule(cosine, STEPS, MIDDLE, asked)
    assert found.ratio == pytest.approx(ratio, rel=1e-12)
    assert (found.line, found.vertex, found.best_observed) == (None, None, None)
    assert not found.offer_average
    if found.bound == "asked" and found.goes_on:
        assert found.step == asked


def test_a_far_target_is_cut_where_the_direction_ends() -> None:
    """Cosine 0.95 and a target of 3.3 x the last step: 2.5 x, and --force for the rest."""
    found = go(0.95, None, 240)
    assert (found.ratio, found.step, found.bound) == (2.5, pytest.approx(180), "direction")
    direction, everywhere, going = found.sentences
    assert "cosine 0.95" in direction
    assert "2 % smallest" in direction
    assert direction.endswith("steady")
    assert "0.26" in everywhere
    assert re.search(r"step 240 is 3\.3 x .* step 180 \(2\.5 x .*--force goes on to 240", going)


def test_a_turning_run_is_left_alone_and_scores_are_asked_for() -> None:
    """Cosine 0.83 without scores: refused, with what the user can do about it."""
    found = go(0.83, None, 240)
    assert (found.ratio, found.step, found.bound) == (1.0, 72, "direction")
    assert found.sentences[0].endswith("turning")
    assert "--scores" in found.sentences[-1]
    assert "--force" in found.sentences[-1]


def test_scores_that_rise_vouch_for_a_little_while_the_direction_turns() -> None:
    """Between 0.60 and 0.85 rising scores allow 1.25 x; below 0.60 nothing does."""
    found = go(0.83, RISING, base=0.45)
    assert (found.ratio, found.bound) == (1.25, "scored_direction")
    found = go(0.59, RISING, base=0.45)
    assert (found.ratio, found.bound) == (1.0, "direction")
    # Rewards are no shares: they vouch for nothing.
    found = go(0.83, tuple(10 * score for score in RISING))
    assert (found.ratio, found.bound) == (1.0, "direction")


def test_the_line_of_the_scores_ends_the_horizon() -> None:
    """A logistic score that reaches 0.99 at 1.3 x the last step is followed to there."""
    logits = np.log(99) * np.array(STEPS) / (1.3 * 72)
    scores = tuple((1 / (1 + np.exp(-logits))).tolist())
    found = go(0.95, scores, 200, base=0.5, num_problems=10**6)
    assert found.bound == "score_line"
    assert found.ratio == pytest.approx(1.3, rel=1e-9)
    assert "reaches 0.99 at step 93.6" in found.sentences[2]
    # The mirror image of an error rate goes as far.
    errors = tuple(1 - score for score in scores)
    mirrored = go(0.95, errors, 200, base=0.5, num_problems=10**6, lower_is_better=True)
    assert mirrored.ratio == pytest.approx(found.ratio, rel=1e-9)
    assert "reaches 0.01 at step 93.6" in mirrored.sentences[2]


def test_the_parabola_of_a_reward_ends_the_horizon() -> None:
    """A reward along a parabola that peaks at 1.2 x is followed to its peak, no logit taken."""
    rewards = tuple(-3.0 - 5 * (step / 72 - 1.2) ** 2 for step in STEPS)
    found = go(0.95, rewards, 200)
    assert (found.bound, found.line, found.num_problems) == ("score_parabola", None, None)
    assert found.ratio == pytest.approx(1.2, rel=1e-9)
    assert "only its parabola counts" in found.sentences[2]


@pytest.mark.parametrize("level", [0.0, 0.3, 0.1 + 0.2, 1.0, -2.5])
@pytest.mark.parametrize("base", [True, False])
def test_equal_scores_promise_nothing(level: float, base: bool) -> None:
    """Scores that never move have no line ahead and no peak; a reward leaves it to the weights."""
    found = go(0.95, (level,) * 6, base=level if base else None)
    assert found.vertex is None
    if level >= 0:
        assert (found.ratio, found.bound, found.line) == (1.0, "score_line", 1.0)
    else:
        assert (found.ratio, found.bound, found.line) == (2.5, "direction", None)
    assert found.best_observed is None


def test_an_earlier_checkpoint_is_named_when_it_is_better_beyond_noise() -> None:
    """After a peak the best checkpoint is named, if two standard errors below it lies the last."""
    peaked = (0.55, 0.65, 0.75, 0.74, 0.70, 0.66)
    found = go(0.80, peaked, 200, base=0.5, num_problems=1000)
    assert (found.ratio, found.best_observed) == (1.0, 2)
    assert any("step 36 scored 0.750" in sentence for sentence in found.sentences)
    # 2 sqrt(0.66 * 0.34 / 100) = 0.095 > 0.09
    assert go(0.80, peaked, 200, base=0.5, num_problems=100).best_observed is None
    errors = tuple(1 - score for score in peaked)
    found = go(0.80, errors, 200, base=0.5, num_problems=1000, lower_is_better=True)
    assert found.best_observed == 2
    # Of two that are equally good, the later one.
    level = (0.55, 0.65, 0.75, 0.75, 0.70, 0.66)
    assert go(0.80, level, 200, num_problems=1000).best_observed == 3
    # Nobody knows the noise of a reward.
    assert go(0.80, tuple(10 * y for y in peaked), 200).best_observed is None


def test_an_unknown_number_of_problems_is_assumed_and_said() -> None:
    """Without n a score counts as a mean over 1000 problems, and a sentence says so."""
    scores = (0.9, 0.96, 0.99, 1.0, 1.0, 0.985)
    told, silent = go(0.95, scores, num_problems=1000), go(0.95, scores)
    assert silent.num_problems == ASSUMED_PROBLEMS == told.num_problems
    assert (silent.ratio, silent.line, silent.vertex) == (told.ratio, told.line, told.vertex)
    assert any("1000 problems is assumed" in sentence for sentence in silent.sentences)
    assert not any("assumed" in sentence for sentence in told.sentences)


def test_the_mean_of_recent_checkpoints_is_offered_to_wandering_runs_only() -> None:
    """Below cosine 0.60 with flat or falling scores; never without scores or in a rising run."""
    flat = (0.90, 0.93, 0.90, 0.92, 0.91, 0.915)
    assert go(0.5, flat, num_problems=1000).offer_average
    assert go(0.5, flat[::-1], num_problems=1000).offer_average
    assert any("average" in s for s in go(0.5, flat, num_problems=1000).sentences)
    assert not go(0.5, RISING, num_problems=1000).offer_average
    assert not go(0.7, flat, num_problems=1000).offer_average
    assert not go(0.5).offer_average
    assert go(0.5, tuple(-10 * y for y in RISING)).offer_average
    assert not go(0.5, tuple(10 * y for y in RISING)).offer_average


def test_three_checkpoints_are_too_few() -> None:
    """Under four checkpoints nothing is judged, whatever the direction and scores look like."""
    found = go(0.99, RISING[:3], 60, STEPS[:3], 1, base=0.4)
    assert (found.ratio, found.bound, found.line) == (1.0, "few_checkpoints", None)
    assert "3 checkpoints are too few" in found.sentences[-1]
    assert go(0.99, RISING[:4], 60, STEPS[:4], 1, base=0.4).goes_on


def test_an_unknown_direction_refuses_with_and_without_scores() -> None:
    """Scores alone do not carry: without a direction the last checkpoint stays."""
    for scores in (None, RISING):
        found = go(None, scores)
        assert (found.ratio, found.bound) == (1.0, "direction_unknown")
        assert "unknown" in found.sentences[0]
        assert not any("--scores" in sentence for sentence in found.sentences)


def test_a_target_that_is_not_ahead_is_refused() -> None:
    """A target within the history, or hardly beyond it, is not worth a prediction."""
    for asked in (40, 72, 75):
        found = go(0.95, None, asked)
        assert (found.ratio, found.bound) == (1.0, "asked")
        assert f"step {asked} is not 1.05 x" in found.sentences[-1]


@pytest.mark.parametrize(
    ("steps", "middle", "scores"),
    [
        ((), 0, None),
        ((10, 10, 20, 30), 1, None),
        ((-1, 10, 20, 30), 1, None),
        ((10, 20, 30, 40), 4, None),
        ((10, 20, 30, 40), 1, (0.1, 0.2)),
    ],
)
def test_evidence_that_does_not_fit_together_is_a_bug(
    steps: tuple[float, ...], middle: int, scores: tuple[float, ...] | None
) -> None:
    """Steps that do not rise, and scores or a middle that do not belong to them, raise."""
    with pytest.raises(ValueError, match=r"steps|middle|scores"):
        go(0.95, scores, None, steps, middle)


def test_sentences_are_single_lines_for_every_outcome() -> None:
    """Whatever is decided, every sentence is one line, and something is always said."""
    for cosine in (None, 0.3, 0.7, 0.9, 0.99):
        for scores in (None, RISING, RISING[::-1], (0.5,) * 6, tuple(9 * y for y in RISING)):
            for asked in (None, 50, 80, 400):
                sentences = go(cosine, scores, asked).sentences
                assert len(sentences) >= 2
                assert all(s.strip() == s and "\n" not in s and "None" not in s for s in sentences)

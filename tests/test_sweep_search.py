"""The search for the best size: planted curves, noise, edges, and what may be asked for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from alpharl_hub.errors import ScoreError
from alpharl_hub.sweeping.results import SCALE, STEP
from alpharl_hub.sweeping.search import DEFAULT_SCALES, SearchOptions, SizeSearch

Curve = Callable[[float], float]


def run_search(options: SearchOptions, curve: Curve) -> tuple[SizeSearch, dict[float, float]]:
    """Ask and tell until the end; the scores in the order in which they were asked for."""
    search = SizeSearch(options.grid(), options.budget, options.lower_is_better)
    scores: dict[float, float] = {}
    while (value := search.ask()) is not None:
        assert value not in scores, "no value is evaluated twice"
        scores[value] = curve(value)
        search.tell(value, scores[value])
    return search, scores


def parabola(top: float) -> Curve:
    """A score that falls with the square of the distance."""
    return lambda x: 1 - (x - top) ** 2 / 100


def bell(top: float) -> Curve:
    """A bell over the logarithm of the scale."""
    return lambda x: math.exp(-2 * math.log((x + 0.01) / (top + 0.01)) ** 2)


def rise_and_fall(top: float) -> Curve:
    """A linear start, one top, an exponential end."""
    return lambda x: (x / top) * math.exp(1 - x / top)


def kink(top: float) -> Curve:
    """A roof: no parabola fits it."""
    return lambda x: -abs(math.log((x + 0.05) / (top + 0.05)))


def lopsided(top: float) -> Curve:
    """A score that creeps up, then breaks down three times as fast: gamma-shaped."""
    return lambda x: ((x / top) * math.exp(1 - x / top)) ** 3


def broken(top: float) -> Curve:
    """A lopsided roof: straight up, then straight down at three times the slope."""
    return lambda x: x / top if x <= top else 1 - 3 * (x - top) / top


@pytest.mark.parametrize("curve", [parabola, bell, rise_and_fall, lopsided, kink])
@pytest.mark.parametrize("top", [0.23, 0.4, 0.75, 1.0, 1.2, 1.75, 2.45, 3.3, 4.1, 5.7, 6.6, 7.8])
def test_a_planted_top_is_found_within_five_percent(
    curve: Callable[[float], Curve], top: float
) -> None:
    """Between grid points or on one, smooth or kinked, in at most 12 evaluations."""
    search, scores = run_search(SearchOptions(), curve(top))
    assert len(scores) <= 12
    assert search.best == pytest.approx(top, rel=0.05)


@pytest.mark.parametrize("top", [0.75, 1.2, 2.45, 5.7, 6.6])
def test_a_lopsided_roof_is_found_within_a_tenth(top: float) -> None:
    """No four evaluations settle such a curve to 5 %: halves of the bracket hide its top."""
    search, _ = run_search(SearchOptions(), broken(top))
    assert search.best == pytest.approx(top, rel=0.1)


@pytest.mark.parametrize("top", [0.4, 1.2, 4.1])
def test_lower_is_better_searches_the_bottom(top: float) -> None:
    """A loss with its bottom in the same place gives the same evaluations and the same answer."""
    upward, up_scores = run_search(SearchOptions(), parabola(top))
    downward, down_scores = run_search(
        SearchOptions(lower_is_better=True), lambda x: -parabola(top)(x)
    )
    assert list(down_scores) == list(up_scores)
    assert downward.best == upward.best
    assert downward.best_score == -upward.best_score


def test_the_grid_comes_first_and_begins_with_the_last_checkpoint() -> None:
    """The default scales in rising order: an evaluation that fails does so on a real model."""
    _, scores = run_search(SearchOptions(), parabola(1.2))
    assert tuple(scores)[:8] == (0, 0.5, 1, 1.5, 2, 3, 5, 8)


def test_a_rising_curve_gives_the_largest_scale() -> None:
    """The search stays within the grid, whose end is the answer."""
    search, scores = run_search(SearchOptions(), lambda x: x)
    assert search.best == 8
    assert max(scores) == 8


def test_a_falling_curve_keeps_the_last_checkpoint() -> None:
    """The scale 0 is best, and values between 0 and the first one were tried too."""
    search, scores = run_search(SearchOptions(), lambda x: -x)
    assert search.best == 0
    assert any(0 < value < 0.5 for value in scores)


def test_a_flat_curve_takes_the_grid_only() -> None:
    """Where all scores are equal nothing is refined, and the last checkpoint is kept."""
    search, scores = run_search(SearchOptions(), lambda _: 0.5)
    assert tuple(scores) == DEFAULT_SCALES
    assert search.best == 0
    assert search.is_flat


def test_equal_scores_go_to_the_grid_and_then_to_the_smaller_value() -> None:
    """A plateau from 1.5 to 5 gives 1.5, though values between were found as good."""
    search, scores = run_search(SearchOptions(), lambda x: min(x, 1.5) - max(x - 5, 0))
    assert search.best == 1.5
    assert len(scores) > 8
    assert not search.is_flat


@pytest.mark.parametrize("seed", range(200))
def test_noise_never_gives_less_than_the_best_of_the_grid(seed: int) -> None:
    """Scores on 200 problems, each counted right by chance: the answer was measured to be best."""
    rng = random.Random(seed)
    top = math.exp(rng.uniform(math.log(0.2), math.log(8)))

    def noisy(x: float) -> float:
        share = 0.2 + 0.6 * bell(top)(x)
        return sum(rng.random() < share for _ in range(200)) / 200

    search, scores = run_search(SearchOptions(), noisy)
    assert len(scores) <= 12
    assert scores[search.best] >= max(scores[value] for value in DEFAULT_SCALES)
    assert scores[search.best] == max(scores.values())


@pytest.mark.parametrize("seed", range(20))
def test_pure_noise_ends_too(seed: int) -> None:
    """Without any signal the budget is kept, and the answer was measured to be best."""
    rng = random.Random(seed)
    search, scores = run_search(SearchOptions(budget=40), lambda _: rng.random())
    assert len(scores) <= 40
    assert search.best_score == max(scores.values())


def test_a_large_budget_is_not_used_up() -> None:
    """The search ends when the bracket is narrower than what an evaluation is worth."""
    search, scores = run_search(SearchOptions(budget=100), bell(2.45))
    assert len(scores) < 30
    assert search.best == pytest.approx(2.45, rel=0.02)


def test_values_have_three_digits() -> None:
    """What is printed with three digits is what was evaluated."""
    _, scores = run_search(SearchOptions(), bell(2.45))
    assert all(value == float(f"{value:.3g}") for value in scores)


@pytest.mark.parametrize("top", [130.0, 260.0, 333.0, 700.0])
def test_target_steps_are_searched_like_scales(top: float) -> None:
    """Between the user's steps, in the logarithm of the step."""
    options = SearchOptions(STEP, (100.0, 200.0, 400.0, 800.0), budget=10)
    search, scores = run_search(options, lambda step: -(math.log(step / top) ** 2))
    assert tuple(scores)[:4] == (100, 200, 400, 800)
    assert search.best == pytest.approx(top, rel=0.05)


def test_one_target_step_is_one_evaluation() -> None:
    """Without a neighbour there is nothing to search between."""
    search, scores = run_search(SearchOptions(STEP, (300.0,)), lambda _: 1.0)
    assert list(scores) == [300]
    assert search.best == 300


def test_the_users_scales_get_the_last_checkpoint_too() -> None:
    """In any order, the scale 0 is added and evaluated first; repeated ones count once."""
    assert SearchOptions(SCALE, (3.0, 1.0, 3.0)).grid() == (0, 1, 3)
    assert SearchOptions(SCALE, (0.0, 1.0)).grid() == (0, 1)


@pytest.mark.parametrize("budget", range(2, 9))
def test_a_small_budget_thins_the_default_scales(budget: int) -> None:
    """As many as may be, both ends among them, no two the same, and nothing beyond the budget."""
    _, scores = run_search(SearchOptions(budget=budget), parabola(1.2))
    assert len(scores) == budget
    assert {0, 8} <= set(scores) <= set(DEFAULT_SCALES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SearchOptions(budget=1), "--budget 1: give 2"),
        (SearchOptions(SCALE, (1.0, 2.0, 3.0), budget=3), "takes 4 evaluations"),
        (SearchOptions(STEP, (1.0, 2.0, 3.0), budget=2), "--target-steps takes 3 evaluations"),
        (SearchOptions(SCALE, (-1.0,)), "--scales -1: give finite numbers of 0 or more"),
        (SearchOptions(SCALE, (math.nan,)), "--scales nan"),
        (SearchOptions(SCALE, (math.inf,)), "--scales inf"),
        (SearchOptions(STEP, (0.0, 100.0)), "--target-steps 0: give finite numbers above 0"),
        (SearchOptions(STEP), "--target-steps: give at least one"),
        (SearchOptions(STEP, ()), "--target-steps: give at least one"),
    ],
)
def test_impossible_searches_are_refused(options: SearchOptions, words: str) -> None:
    """One line says which option is wrong and what to give instead."""
    with pytest.raises(ScoreError, match=words):
        options.grid()

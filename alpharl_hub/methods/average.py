"""The mean of the last checkpoints (LAWA, arXiv 2306.03241): looks nowhere ahead.

D_hat = mean of D_t over the window; without `fit_last` that is the recent half of the steps.
"""

from __future__ import annotations

from alpharl_hub.methods import Clock, MethodOptions, first_of_window
from alpharl_hub.methods.combination import Combination, FixedCombination

RECENT_HALF = 0.5


def make(clock: Clock, options: MethodOptions) -> FixedCombination:
    """Build the method.

    Raises:
        FitError: an empty window.
    """
    fit_last = RECENT_HALF if options.fit_last is None else options.fit_last
    first = first_of_window(clock.steps_T, fit_last, 1)
    count = len(clock.steps_T) - first
    combination = Combination(((1 / count,) * count,), (1.0,), (0.0,))
    return FixedCombination(combination, tuple(range(first, len(clock.steps_T))))

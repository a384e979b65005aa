"""Least squares of every weight on the step, over all checkpoints or those of a window.

Letters: n checkpoints of the window, D_t delta at step s_t, s_mean their mean step, s* the target.

D_hat = mean(D) + (s* - s_mean) B with the slope B = sum (s_t - s_mean) D_t / sum (s_t - s_mean)^2:
fixed coefficients, the same for every weight. That single weights follow such lines in RLVR is the
finding of arXiv 2601.04537; fitting them averages out the rounding that a line through two
checkpoints keeps.
"""

from __future__ import annotations

from statistics import fmean

from alpharl_hub.methods import Clock, MethodOptions, first_of_window
from alpharl_hub.methods.combination import Combination, FixedCombination

MIN_CHECKPOINTS = 2


def make(clock: Clock, options: MethodOptions) -> FixedCombination:
    """Build the method.

    Raises:
        FitError: fewer than two checkpoints in the window.
    """
    num_checkpoints = len(clock.steps_T)
    first = first_of_window(clock.steps_T, options.fit_last, MIN_CHECKPOINTS)
    responses = clock.responses_T[first:]
    mean = fmean(responses)
    spread = sum((response - mean) ** 2 for response in responses)
    combination = Combination(
        basis_KT=(
            (1 / len(responses),) * len(responses),
            tuple((response - mean) / spread for response in responses),
        ),
        intercept_K=(1.0, -mean),
        slope_K=(0.0, 1.0),
    )
    return FixedCombination(combination, tuple(range(first, num_checkpoints)))

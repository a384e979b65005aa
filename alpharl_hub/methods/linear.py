"""Linear extrapolation (arXiv 2601.04537): the straight line through two checkpoints.

Letters: W_0 base, D_t delta at step s_t, s* the target step.

D_hat = (s*/s_T) D_T; `scale` a is the step a s_T (ExPO, arXiv 2404.16792, is a = 1 + alpha). With
`fit_last` the line goes through the first checkpoint m of the window and the last one:
D_hat = D_T + (s* - s_T)/(s_T - s_m) (D_T - D_m). Norm layers are not predicted.
"""

from __future__ import annotations

from alpharl_hub.errors import FitError
from alpharl_hub.methods import Clock, MethodOptions, first_of_window
from alpharl_hub.methods.combination import Combination, FixedCombination


def make(clock: Clock, options: MethodOptions) -> FixedCombination:
    """Build the method.

    Raises:
        FitError: an empty window, or a scale that is none.
    """
    if options.scale is not None and options.fit_last is not None:
        raise FitError("--scale and --fit-last exclude each other; give one")
    if options.scale is not None and not options.scale > 0:
        raise FitError(f"--scale {options.scale:g}: give a multiple of the update above 0")
    last, end = len(clock.steps_T) - 1, clock.last
    if options.fit_last is None:
        through_base = Combination(((1.0,),), (0.0,), (1 / end,))
        return FixedCombination(through_base, (last,), predicts_norms=False)
    first = first_of_window(clock.steps_T, options.fit_last, 2)
    per_step = 1 / (end - clock.responses_T[first])
    through_two = Combination(
        basis_KT=((0.0, 1.0), (-1.0, 1.0)),
        intercept_K=(1.0, -end * per_step),
        slope_K=(0.0, per_step),
    )
    return FixedCombination(through_two, (first, last), predicts_norms=False)

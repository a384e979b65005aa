"""Linear extrapolation (arXiv 2601.04537): the straight line through two checkpoints.

Letters: W_0 base, D_t delta at step s_t, s* the target step.

D_hat = (s*/s_T) D_T; `scale` a is the step a s_T (ExPO, arXiv 2404.16792, is a = 1 + alpha). With
`fit_last` the line goes through the first checkpoint m of the window and the last one:
D_hat = D_T + (s* - s_T)/(s_T - s_m) (D_T - D_m). Norm layers are not predicted.

Convention: fp32 throughout; the factors are float64 numbers.
"""

from __future__ import annotations

from torch import Tensor

from alpharl_hub.errors import FitError
from alpharl_hub.methods import Clock, MethodOptions


class LinearFit:
    """One tensor: its last delta, and that of the window's first checkpoint."""

    def __init__(self, clock: Clock, first: int | None) -> None:
        self._clock = clock
        self._first = first
        self._deltas: list[Tensor] = []

    def observe(self, delta: Tensor) -> None:
        """Keep the delta."""
        self._deltas.append(delta.clone())

    def predict_delta(self, response: float) -> Tensor:
        """Return D_hat at a step, in the tensor's shape (fp32)."""
        steps_T, last = self._clock.steps_T, self._deltas[-1]
        if self._first is None:
            return last * (response / steps_T[-1])
        ahead = (response - steps_T[-1]) / (steps_T[-1] - steps_T[self._first])
        return (last - self._deltas[0]).mul_(ahead).add_(last)

    def quality(self) -> None:
        """A line through two points has no quality of fit."""
        return


class Linear:
    """The method with its options, for all tensors of a run."""

    def __init__(self, clock: Clock, options: MethodOptions) -> None:
        self._clock = clock
        self._first = _first_of_window(clock.steps_T, options.fit_last)
        if options.scale is not None and self._first is not None:
            raise FitError("--scale and --fit-last exclude each other; give one")
        if options.scale is not None and not options.scale > 0:
            raise FitError(f"--scale {options.scale:g}: give a multiple of the update above 0")
        if options.scale is None and clock.target < clock.steps_T[0]:
            raise FitError(
                f"step {clock.target:g} lies before the history, which begins at "
                f"{clock.steps_T[0]}; ask for a later one"
            )

    @property
    def observed(self) -> tuple[int, ...]:
        """The last checkpoint, and the first one of the window."""
        last = len(self._clock.steps_T) - 1
        return (last,) if self._first is None else (self._first, last)

    @property
    def num_deltas_held(self) -> int:
        """One or two."""
        return len(self.observed)

    def covers(self, name: str, shape: tuple[int, ...], is_matrix: bool) -> bool:
        """Every tensor but the norms, which the paper takes from the last checkpoint."""
        return "norm" not in name.lower() and "ln_" not in name.lower()

    def fit(self, name: str, shape: tuple[int, ...]) -> LinearFit:
        """Start on one tensor, or a run of entries of one: entries do not meet."""
        return LinearFit(self._clock, self._first)


def _first_of_window(steps_T: tuple[int, ...], fit_last: int | float | None) -> int | None:
    """Return the position of the window's first checkpoint, None without a window."""
    if fit_last is None:
        return None
    if isinstance(fit_last, int):
        first = len(steps_T) - fit_last
    else:
        if not 0 < fit_last <= 1:
            raise FitError(f"--fit-last {fit_last:g}: a share lies between 0 and 100%")
        begin = steps_T[-1] - fit_last * (steps_T[-1] - steps_T[0])
        first = next(i for i, step in enumerate(steps_T) if step >= begin - 1e-9)
    if not 0 <= first < len(steps_T) - 1:
        raise FitError(
            f"--fit-last {fit_last:g}: the window needs two of the {len(steps_T)} checkpoints"
        )
    return first


def make(clock: Clock, options: MethodOptions) -> Linear:
    """Build the method.

    Raises:
        FitError: a target before the history, or an empty window.
    """
    return Linear(clock, options)

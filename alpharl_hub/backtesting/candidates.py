"""The methods that are tested, each as a sum of the same few rows.

Letters: T checkpoints of the history, E_t = W_t - W_{t-1} the increments (E_1 = W_1 - W_0), D_t the
deltas, so that D_t = E_1 + ... + E_t; F the last fitted checkpoint; C cases (a window and one of
its truths), K methods, R rows.

The first T rows are the increments, then come two for each window: alpharl's prediction at the
window's last step and at its last truth. It is linear in the step, so that every prediction of it
is a sum of these two. What is written down here is W_hat - W_F, so that nothing cancels later.

Convention: float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.backtesting.cases import FitWindow
from alpharl_hub.errors import FitError, did_you_mean
from alpharl_hub.methods import AUTO, METHODS, Clock, MethodOptions, make_method
from alpharl_hub.methods.alpharl import AlphaRL
from alpharl_hub.methods.combination import FixedCombination
from alpharl_hub.methods.relex import MIN_CHECKPOINTS, combination_of
from alpharl_hub.prediction.automatic import METHOD as AUTO_METHOD
from alpharl_hub.preparation import nearest_middle

LAST, LINEAR_RECENT = "last", "linear-half"
RECENT_HALF = 0.5

CHOICES = (LAST, "average", "linear", LINEAR_RECENT, "ols", "relex", "alpharl", AUTO)
"""Everything that can be tested, in the order of tables; `linear-half` is `linear --fit-last 50%`
and `auto` what `--method auto` does: least squares on the recent half, anchored."""

assert {*METHODS, LAST, LINEAR_RECENT, AUTO} == set(CHOICES)


def choose_methods(names: Sequence[str]) -> tuple[str, ...]:
    """Return what is tested: all without names; the last checkpoint and auto in any case.

    Raises:
        FitError: an unknown name.
    """
    for name in names:
        if name not in CHOICES:
            raise FitError(
                f"--methods {name}: no method; there are {', '.join(CHOICES)}"
                f"{did_you_mean(name, CHOICES)}"
            )
    wanted = {*(names or CHOICES), LAST, AUTO}
    return tuple(name for name in CHOICES if name in wanted)


@dataclass(frozen=True)
class Case:
    """A window (its number) and one of its truths (a position)."""

    window: int
    truth: int


@dataclass(frozen=True)
class Timed:
    """Another clock than the steps in one window: at its checkpoints, and at its truths."""

    fitted: tuple[float, ...]
    truths: tuple[float, ...]


class Design:
    """Every prediction of every case as coefficients of rows.

    Args:
        steps_T: the steps of the history.
        windows: what is fitted and predicted.
        methods: names out of CHOICES.
        clocks: for each window the clock of auto, None for the steps.
    """

    def __init__(
        self,
        steps_T: Sequence[int],
        windows: Sequence[FitWindow],
        methods: Sequence[str],
        clocks: Sequence[Timed | None],
    ) -> None:
        self._steps_T = steps_T
        self.windows = tuple(windows)
        self.methods = tuple(methods)
        self._clocks = clocks
        self.cases = tuple(
            Case(number, truth) for number, window in enumerate(windows) for truth in window.truths
        )
        self.num_rows = len(steps_T) + (2 * len(windows) if "alpharl" in methods else 0)
        self._fixed_CKR = self._fixed()

    @property
    def truths_CR(self) -> Tensor:
        """W - W_F of every case."""
        rows = torch.zeros(len(self.cases), self.num_rows, dtype=torch.float64)
        for number, case in enumerate(self.cases):
            rows[number, self.windows[case.window].last + 1 : case.truth + 1] = 1.0
        return rows

    def moves_CKR(self, gram_TT: Tensor) -> Tensor:
        """Return W_hat - W_F of every case and method for one matrix; NaN without an answer.

        `gram_TT` are the inner products of the increments over all entries of the matrix.
        """
        if "relex" not in self.methods:
            return self._fixed_CKR
        moves_CKR = self._fixed_CKR.clone()
        place = self.methods.index("relex")
        for number, window in enumerate(self.windows):
            if len(window.fitted) < MIN_CHECKPOINTS:
                continue
            select_NT = _deltas(window.fitted, len(self._steps_T))
            steps_N = [float(self._steps_T[t]) for t in window.fitted]
            combination = combination_of(select_NT @ gram_TT @ select_NT.T, steps_N, 1)
            for case, (of, truth) in enumerate((c.window, c.truth) for c in self.cases):
                if of == number:
                    found_N = combination.coefficients_T(self._steps_T[truth])
                    moves_CKR[case, place] = self._from_last(window, found_N)
        return moves_CKR

    def alpharl(self, window: FitWindow) -> AlphaRL | None:
        """Return the method for a window, None where it has no answer there."""
        steps_N = tuple(self._steps_T[t] for t in window.fitted)
        if "alpharl" not in self.methods or len(steps_N) < MIN_CHECKPOINTS:
            return None
        method = make_method("alpharl", Clock(steps_N), MethodOptions())
        assert isinstance(method, AlphaRL)
        return method

    def alpharl_steps(self, window: FitWindow) -> tuple[float, float]:
        """Return the two steps at which alpharl's rows of a window are predicted."""
        return float(self._steps_T[window.last]), float(self._steps_T[window.truths[-1]])

    def _fixed(self) -> Tensor:
        shape = (len(self.cases), len(self.methods), self.num_rows)
        moves_CKR = torch.full(shape, torch.nan, dtype=torch.float64)
        for number, case in enumerate(self.cases):
            for place, name in enumerate(self.methods):
                found_R = self._move(name, case)
                if found_R is not None:
                    moves_CKR[number, place] = found_R
        return moves_CKR

    def _move(self, name: str, case: Case) -> Tensor | None:
        window = self.windows[case.window]
        if name == "relex":
            return None
        if name == LAST:
            return torch.zeros(self.num_rows, dtype=torch.float64)
        if name == "alpharl":
            return self._alpharl_move(case, window)
        found_N = self._fixed_coefficients(name, case, window)
        return None if found_N is None else self._from_last(window, found_N)

    def _alpharl_move(self, case: Case, window: FitWindow) -> Tensor | None:
        if self.alpharl(window) is None:
            return None
        near, far = self.alpharl_steps(window)
        ahead = (self._steps_T[case.truth] - near) / (far - near)
        move_R = self._from_last(window, (0.0,) * len(window.fitted))
        first = len(self._steps_T) + 2 * case.window
        move_R[first], move_R[first + 1] = 1 - ahead, ahead
        return move_R

    def _fixed_coefficients(
        self, name: str, case: Case, window: FitWindow
    ) -> Sequence[float] | None:
        """Return how much of the delta of each fitted checkpoint is in the prediction."""
        steps_N = tuple(self._steps_T[t] for t in window.fitted)
        target, clock = float(self._steps_T[case.truth]), Clock(steps_N)
        method_name, options = name, MethodOptions()
        if name == LINEAR_RECENT:
            method_name, options = "linear", MethodOptions(fit_last=RECENT_HALF)
        elif name == AUTO:
            method_name = AUTO_METHOD
            options = MethodOptions(fit_last=max(2, len(steps_N) - nearest_middle(steps_N)))
            timed = self._clocks[case.window]
            if timed is not None:
                clock = Clock(steps_N, times_T=timed.fitted)
                target = timed.truths[window.truths.index(case.truth)]
        try:
            method = make_method(method_name, clock, options)
        except FitError:
            # Too few checkpoints for this method; the others are tested all the same.
            return None
        assert isinstance(method, FixedCombination)
        found_N = [0.0] * len(steps_N)
        ahead = method.combination.coefficients_T(target)
        at_last = method.combination.coefficients_T(clock.last)
        for place, (there, here) in zip(
            method.observed, zip(ahead, at_last, strict=True), strict=True
        ):
            found_N[place] = there - here if name == AUTO else there
        if name == AUTO:
            found_N[-1] += 1.0
        return found_N

    def _from_last(self, window: FitWindow, coefficients_N: Sequence[float]) -> Tensor:
        """Turn a sum of deltas of fitted checkpoints, less that of the last one, into rows."""
        weights_N = torch.tensor(coefficients_N, dtype=torch.float64)
        weights_N[-1] -= 1.0
        num_increments = len(self._steps_T)
        move_R = torch.zeros(self.num_rows, dtype=torch.float64)
        move_R[:num_increments] = weights_N @ _deltas(window.fitted, num_increments)
        return move_R


def _deltas(fitted: Sequence[int], num_increments: int) -> Tensor:
    """Return the deltas of checkpoints (N) as sums of increments (T)."""
    select_NT = torch.zeros(len(fitted), num_increments, dtype=torch.float64)
    for place, position in enumerate(fitted):
        select_NT[place, : position + 1] = 1.0
    return select_NT

"""AlphaRL (arXiv 2510.00553): left singular vectors extrapolated by PLS, the right ones kept.

Letters: T checkpoints, M rows, N columns; D_t delta, y_t the response (step or score).

For each matrix x_t = alpha_t sigma_t u_t with alpha_t = |D_t|_F / sigma_t (the paper's rescaling;
1 without), a PLS of one component of x_t on y_t, inverted at the target, and
D_hat = x_hat v_T^T. Where the paper leaves it open: v is the last checkpoint's, the anchor is the
base, the norm is Frobenius, and the base is no row of the fit.

Convention: factors fp32, the fit float64, the outer product fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alpharl_hub.errors import FitError
from alpharl_hub.methods import Clock, MethodOptions
from alpharl_hub.numerics.factors import FactorBuilder, Factors, MatrixQuality, quality_of
from alpharl_hub.numerics.pls import fit_pls

MIN_CHECKPOINTS = 2


class AlphaRLPredictor:
    """One matrix whose factors are known."""

    def __init__(
        self, factors: Factors, clock: Clock, rescale: bool, device: torch.device, certified: bool
    ) -> None:
        # Of factors of a higher rank the first triplets, to the bit those of rank 1.
        self._factors = factors.truncate(1)
        self._clock = clock
        self._rescale = rescale
        self._device = device
        self._certified = certified

    def predict_delta(self, response: float) -> Tensor:
        """Return x_hat v_T^T (M x N, fp32)."""
        x_TM = self._factors.scaled_rows(self._rescale)
        fit = fit_pls(x_TM, self._clock.responses_T)
        x_M = fit.invert(response)
        v_N = self._factors.v_TRN[-1, 0]
        return torch.outer(x_M.to(self._device, torch.float32), v_N.to(self._device))

    def quality(self) -> MatrixQuality:
        """Describe the spectrum and the fits on step and score."""
        clock = self._clock
        return quality_of(
            self._factors, clock.steps_T, clock.scores_T, self._certified, self._rescale
        )


class AlphaRLFit:
    """One matrix while its deltas stream by."""

    def __init__(self, name: str, clock: Clock, rescale: bool) -> None:
        self._builder = FactorBuilder(name, 1)
        self._clock = clock
        self._rescale = rescale
        self._device = torch.device("cpu")
        self._known: AlphaRLPredictor | None = None

    def observe(self, delta: Tensor) -> None:
        """Factorise the next delta."""
        self._device = delta.device
        self._builder.observe(delta)

    def _predictor(self) -> AlphaRLPredictor:
        if self._known is None:
            factors, certified = self._builder.finish(), self._builder.certified
            self._known = AlphaRLPredictor(
                factors, self._clock, self._rescale, self._device, certified
            )
        return self._known

    def predict_delta(self, response: float) -> Tensor:
        """Return x_hat v_T^T (M x N, fp32)."""
        return self._predictor().predict_delta(response)

    def quality(self) -> MatrixQuality:
        """Describe the spectrum and the fits on step and score."""
        return self._predictor().quality()


class AlphaRL:
    """The method with its options, for all matrices of a run."""

    num_deltas_held = 0

    def __init__(self, clock: Clock, options: MethodOptions) -> None:
        num_checkpoints = len(clock.steps_T)
        if num_checkpoints < MIN_CHECKPOINTS:
            raise FitError(
                f"alpharl fits at least {MIN_CHECKPOINTS} checkpoints and has {num_checkpoints}; "
                "select more with --steps, or take --method linear"
            )
        if not clock.by_score and clock.target < clock.steps_T[0]:
            raise FitError(
                f"step {clock.target:g} lies before the history, which begins at "
                f"{clock.steps_T[0]}; ask for a later one"
            )
        if len(set(clock.responses_T)) == 1:
            raise FitError(
                f"the score is {clock.last:g} at every checkpoint, so nothing follows from it; "
                "give --target-step instead"
            )
        self._clock = clock
        self._options = options

    @property
    def observed(self) -> tuple[int, ...]:
        """Every checkpoint."""
        return tuple(range(len(self._clock.steps_T)))

    def covers(self, name: str, shape: tuple[int, ...], is_matrix: bool) -> bool:
        """Matrices in the general scope."""
        return is_matrix

    def fit(self, name: str, shape: tuple[int, ...]) -> AlphaRLFit:
        """Start on one matrix."""
        return AlphaRLFit(name, self._clock, self._options.rescale)

    def from_factors(
        self, factors: Factors, device: torch.device, certified: bool
    ) -> AlphaRLPredictor:
        """Take a matrix whose factors were extracted before; the bytes come out the same."""
        return AlphaRLPredictor(factors, self._clock, self._options.rescale, device, certified)


def make(clock: Clock, options: MethodOptions) -> AlphaRL:
    """Build the method.

    Raises:
        FitError: too few checkpoints, or a target before the history.
    """
    return AlphaRL(clock, options)

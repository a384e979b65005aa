"""AlphaRL (arXiv 2510.00553): left singular vectors extrapolated by PLS, the right ones kept.

Letters: T checkpoints, R triplets, M rows, N columns; D_t delta, y_t the response (step or score).

For each matrix and triplet r, x_tr = alpha_t sigma_tr u_tr with alpha_t = |D_t|_F over the norm of
the kept part (the paper's rescaling; 1 without), a PLS of one component of x_tr on y_t, inverted at
the target, and D_hat = sum_r x_hat_r v_Tr^T. Where the paper leaves it open: v is the last
checkpoint's, the anchor is the base, the norm is Frobenius, and the base is no row of the fit.

Convention: factors fp32, the fit float64, the product fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alpharl_hub.errors import FitError
from alpharl_hub.methods import Clock, MethodOptions, first_of_window
from alpharl_hub.numerics.factors import FactorBuilder, Factors, MatrixQuality, quality_of
from alpharl_hub.numerics.low_rank import LowRank
from alpharl_hub.numerics.pls import fit_pls

MIN_CHECKPOINTS = 2


class AlphaRLPredictor:
    """One matrix whose factors are known."""

    def __init__(
        self,
        factors: Factors,
        clock: Clock,
        options: MethodOptions,
        device: torch.device,
        certified: bool,
    ) -> None:
        # Of factors of a higher rank the first triplets, to the bit those of the rank asked for.
        self._factors = factors.truncate(options.rank)
        self._clock = clock
        self._rescale = options.rescale and not options.keep_residual
        self._device = device
        self._certified = certified

    def predict_delta(self, response: float) -> LowRank:
        """Return sum_r x_hat_r v_Tr^T as its factors (M x R and R x N, fp32)."""
        columns = []
        for triplet in range(self._factors.sigma_TR.shape[1]):
            x_TM = self._factors.scaled_rows(self._rescale, triplet)
            columns.append(fit_pls(x_TM, self._clock.responses_T).invert(response))
        left_MR = torch.stack(columns, dim=1).to(self._device, torch.float32)
        return LowRank(left_MR, self._factors.v_TRN[-1].to(self._device))

    def kept_part(self) -> LowRank:
        """Return the rank-R part of the last delta, as observed."""
        u_RM, sigma_R = self._factors.u_TRM[-1], self._factors.sigma_TR[-1]
        left_MR = (sigma_R[:, None] * u_RM).T.contiguous().to(self._device)
        return LowRank(left_MR, self._factors.v_TRN[-1].to(self._device))

    def quality(self) -> MatrixQuality:
        """Describe the spectrum and the fits on step and score."""
        clock = self._clock
        return quality_of(
            self._factors, clock.steps_T, clock.scores_T, self._certified, self._rescale
        )


class AlphaRLFit:
    """One matrix while its deltas stream by."""

    def __init__(self, name: str, clock: Clock, options: MethodOptions) -> None:
        self._builder = FactorBuilder(name, options.rank)
        self._clock = clock
        self._options = options
        self._device = torch.device("cpu")
        self._known: AlphaRLPredictor | None = None

    def observe(self, delta: Tensor | LowRank) -> None:
        """Factorise the next delta."""
        self._device = delta.left_MR.device if isinstance(delta, LowRank) else delta.device
        self._builder.observe(delta)

    def _predictor(self) -> AlphaRLPredictor:
        if self._known is None:
            factors, certified = self._builder.finish(), self._builder.certified
            self._known = AlphaRLPredictor(
                factors, self._clock, self._options, self._device, certified
            )
        return self._known

    def predict_delta(self, response: float) -> LowRank:
        """Return sum_r x_hat_r v_Tr^T as its factors (M x R and R x N, fp32)."""
        return self._predictor().predict_delta(response)

    def kept_part(self) -> LowRank:
        """Return the rank-R part of the last delta, as observed."""
        return self._predictor().kept_part()

    def quality(self) -> MatrixQuality:
        """Describe the spectrum and the fits on step and score."""
        return self._predictor().quality()


class AlphaRL:
    """The method with its options, for all matrices of a run."""

    num_deltas_held = 0
    meets_entries = True

    def __init__(self, clock: Clock, options: MethodOptions) -> None:
        num_checkpoints = len(clock.steps_T)
        if num_checkpoints < MIN_CHECKPOINTS:
            raise FitError(
                f"alpharl fits at least {MIN_CHECKPOINTS} checkpoints and has {num_checkpoints}; "
                "select more with --steps, or take --method linear"
            )
        self._first = first_of_window(clock.steps_T, options.fit_last, MIN_CHECKPOINTS)
        self._clock = _since(clock, self._first)
        self._options = options
        if len(set(self._clock.responses_T)) == 1:
            raise FitError(
                f"the score is {clock.last:g} at every checkpoint, so nothing follows from it; "
                "give --target-step instead"
            )

    @property
    def observed(self) -> tuple[int, ...]:
        """Every checkpoint of the window."""
        return tuple(range(self._first, self._first + len(self._clock.steps_T)))

    def covers(self, name: str, shape: tuple[int, ...], is_matrix: bool) -> bool:
        """Matrices in the general scope."""
        return is_matrix

    def fit(self, name: str, shape: tuple[int, ...]) -> AlphaRLFit:
        """Start on one matrix."""
        return AlphaRLFit(name, self._clock, self._options)

    def from_factors(
        self, factors: Factors, device: torch.device, certified: bool
    ) -> AlphaRLPredictor:
        """Take a matrix whose factors were extracted before; the bytes come out the same.

        Raises:
            FitError: fewer triplets were extracted than the rank asked for.
        """
        if factors.sigma_TR.shape[1] < self._options.rank:
            raise FitError(
                f"--rank {self._options.rank}: the folder of factors has rank "
                f"{factors.sigma_TR.shape[1]}; extract again with --rank {self._options.rank}"
            )
        since = factors.since(self._first)
        return AlphaRLPredictor(since, self._clock, self._options, device, certified)


def _since(clock: Clock, first: int) -> Clock:
    scores_T, times_T = clock.scores_T, clock.times_T
    return Clock(
        steps_T=clock.steps_T[first:],
        scores_T=None if scores_T is None else scores_T[first:],
        by_score=clock.by_score,
        times_T=None if times_T is None else times_T[first:],
    )


def make(clock: Clock, options: MethodOptions) -> AlphaRL:
    """Build the method.

    Raises:
        FitError: too few checkpoints, or a flat response.
    """
    return AlphaRL(clock, options)

"""Predictions that are sums of deltas, with one coefficient per checkpoint.

Letters: T checkpoints, D_t delta at response s_t, K sums, P entries.

D_hat(s) = sum over k of (intercept_k + slope_k s) V_k with V_k = sum over t of basis_kt D_t.
One sum of V_k for each k is all that is kept while the checkpoints stream by. Of LoRA runs the
deltas are kept as they are, in factors, and so is the sum.

Convention: coefficients are float64 numbers, sums are fp32, in the order of checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alpharl_hub.numerics import low_rank
from alpharl_hub.numerics.low_rank import LowRank


@dataclass(frozen=True)
class Combination:
    """The coefficients; `basis_KT` over the checkpoints that are observed, in their order."""

    basis_KT: tuple[tuple[float, ...], ...]
    intercept_K: tuple[float, ...]
    slope_K: tuple[float, ...]

    def mix_K(self, response: float) -> tuple[float, ...]:
        """Return how much of each V_k is in D_hat at a response."""
        return tuple(a + b * response for a, b in zip(self.intercept_K, self.slope_K, strict=True))

    def coefficients_T(self, response: float) -> tuple[float, ...]:
        """Return how much of each D_t is in D_hat at a response."""
        mix_K = self.mix_K(response)
        columns = zip(*self.basis_KT, strict=True)
        return tuple(sum(m * b for m, b in zip(mix_K, column, strict=True)) for column in columns)


@dataclass(frozen=True)
class Mixture:
    """The delta sum over k of mix_k V_k (fp32), added up only where it is asked for."""

    sums: tuple[Tensor, ...]
    mix_K: tuple[float, ...]

    def write_entries(self, out_P: Tensor, first: int) -> None:
        """Write its entries from the `first` on, flattened."""
        run = slice(first, first + out_P.numel())
        torch.mul(self.sums[0].view(-1)[run], self.mix_K[0], out=out_P)
        for values, factor in zip(self.sums[1:], self.mix_K[1:], strict=True):
            out_P.add_(values.view(-1)[run], alpha=factor)

    def dense(self) -> Tensor:
        """Return all of it, in the tensor's shape."""
        out = torch.empty_like(self.sums[0])
        self.write_entries(out.view(-1), 0)
        return out


class CombinationFit:
    """One tensor (or a run of entries of one: they do not meet) while its deltas stream by."""

    def __init__(self, combination: Combination) -> None:
        self._combination = combination
        self._sums: list[Tensor] = []
        self._updates: list[LowRank] = []
        self._num_seen = 0

    def observe(self, delta: Tensor | LowRank) -> None:
        """Add the next delta to the sums."""
        if isinstance(delta, LowRank):
            self._updates.append(delta)
            return
        if not self._sums:
            self._sums = [torch.zeros_like(delta) for _ in self._combination.basis_KT]
        for total, basis_T in zip(self._sums, self._combination.basis_KT, strict=True):
            coefficient = basis_T[self._num_seen]
            if coefficient != 0:
                total.add_(delta, alpha=coefficient)
        self._num_seen += 1

    def predict_delta(self, response: float) -> Mixture | LowRank:
        """Return D_hat at a response (fp32, the tensor's shape)."""
        if self._updates:
            return low_rank.combine(self._updates, self._combination.coefficients_T(response))
        return Mixture(tuple(self._sums), self._combination.mix_K(response))

    def quality(self) -> None:
        """A sum of whole deltas has no quality of fit per matrix."""
        return


@dataclass(frozen=True)
class FixedCombination:
    """A method whose coefficients follow from the steps alone, the same for every tensor."""

    combination: Combination
    observed: tuple[int, ...]
    predicts_norms: bool = True
    meets_entries = False

    @property
    def num_deltas_held(self) -> int:
        """One sum for each k."""
        return len(self.combination.basis_KT)

    def covers(self, name: str, shape: tuple[int, ...], is_matrix: bool) -> bool:
        """Every tensor; norm layers only where the method predicts them."""
        return self.predicts_norms or not ("norm" in name.lower() or "ln_" in name.lower())

    def fit(self, name: str, shape: tuple[int, ...]) -> CombinationFit:
        """Start on one tensor."""
        return CombinationFit(self.combination)

"""RELEX (arXiv 2605.21468) on true steps: the path of a tensor reduced to its leading directions.

Letters: T checkpoints of the window, D_t delta at step s_t, R directions, P entries, C of a chunk.

The deltas of one tensor, flattened, are T rows of P entries. Their leading right singular vectors
are sums of deltas, and follow from the T x T Gram matrix alone: with eigenvalue lambda_r and
eigenvector e_r, V_r = sum_t e_rt D_t has length sqrt(lambda_r) and D_t has the coefficient e_rt in
it. Least squares with intercept of e_r on the step gives D_hat(s*) = sum_r (a_r s* + b_r) V_r. The
base is no row, nothing is centred, every tensor is predicted (norms, biases, embeddings too).

Differences to the published scripts: the step is the one in the name, not the place in the list,
and deltas are subtracted in fp32, not fp16.

Convention: products of a chunk of 2^17 entries in fp32, sums over chunks in fp64, chunk by chunk
within a run of 2^22 entries and then run by run: the same numbers whether a tensor is seen at once
or run by run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from alpharl_hub.methods import Clock, MethodOptions, first_of_window
from alpharl_hub.methods.combination import Combination, CombinationFit, Mixture
from alpharl_hub.numerics import low_rank
from alpharl_hub.numerics.low_rank import LowRank

MIN_CHECKPOINTS = 2

RUN_ELEMENTS = 1 << 22
"""A tensor too large for memory at all steps is seen in runs of so many entries."""

_CHUNK_ELEMENTS = 1 << 17


def gram_of_run(deltas_T: Sequence[Tensor]) -> Tensor:
    """Return the T x T matrix of inner products (float64, CPU) of deltas of one shape (fp32)."""
    rows_T = [delta.reshape(-1) for delta in deltas_T]
    num_rows, num_entries = len(rows_T), rows_T[0].numel()
    gram_TT = torch.zeros(num_rows, num_rows, dtype=torch.float64, device=rows_T[0].device)
    chunk_TC = rows_T[0].new_empty(num_rows, min(_CHUNK_ELEMENTS, num_entries))
    for start in range(0, num_entries, _CHUNK_ELEMENTS):
        count = min(_CHUNK_ELEMENTS, num_entries - start)
        # Copied together, so that neither place nor stride in memory changes a sum.
        block_TC = (
            chunk_TC[:, :count]
            if count == chunk_TC.shape[1]
            else chunk_TC.new_empty(num_rows, count)
        )
        torch.stack([row[start : start + count] for row in rows_T], out=block_TC)
        gram_TT += (block_TC @ block_TC.T).double()
    return gram_TT.cpu()


def gram_of(deltas_T: Sequence[Tensor]) -> Tensor:
    """Return the T x T matrix of inner products (float64) of whole tensors, run by run."""
    rows_T = [delta.reshape(-1) for delta in deltas_T]
    total_TT = torch.zeros(len(rows_T), len(rows_T), dtype=torch.float64)
    for run in runs(rows_T[0].numel()):
        total_TT += gram_of_run([row[run] for row in rows_T])
    return total_TT


def runs(num_entries: int) -> Iterator[slice]:
    """Cut a tensor of so many entries into runs."""
    for start in range(0, num_entries, RUN_ELEMENTS):
        yield slice(start, min(start + RUN_ELEMENTS, num_entries))


def combination_of(gram_TT: Tensor, responses_T: Sequence[float], rank: int) -> Combination:
    """Fit the leading `rank` directions of a tensor from its Gram matrix (float64)."""
    eigenvalues_T, eigenvectors_TT = torch.linalg.eigh((gram_TT + gram_TT.T) / 2)
    response_T = torch.tensor(responses_T, dtype=torch.float64)
    centred_T = response_T - response_T.mean()
    basis, intercepts, slopes = [], [], []
    for r in range(1, rank + 1):
        # A tensor that never moves has no direction; rank 1 of it is a sum of zeros.
        found = r == 1 or float(eigenvalues_T[-r]) > 0
        vector_T = eigenvectors_TT[:, -r] if found else torch.zeros_like(response_T)
        slope = float(centred_T @ vector_T / (centred_T @ centred_T))
        basis.append(tuple(vector_T.tolist()))
        slopes.append(slope)
        intercepts.append(float(vector_T.mean()) - slope * float(response_T.mean()))
    return Combination(tuple(basis), tuple(intercepts), tuple(slopes))


class RelexFit:
    """One whole tensor: its deltas are held until the last one has been seen."""

    def __init__(self, responses_T: Sequence[float], rank: int) -> None:
        self._responses_T = responses_T
        self._rank = rank
        self._deltas: list[Tensor] = []
        self._updates: list[LowRank] = []
        self._fit: CombinationFit | None = None

    def observe(self, delta: Tensor | LowRank) -> None:
        """Keep the delta."""
        if isinstance(delta, LowRank):
            self._updates.append(delta)
        else:
            self._deltas.append(delta.clone())

    def gram(self) -> Tensor:
        """Return the Gram matrix of what was observed (T x T, float64)."""
        return low_rank.gram(self._updates) if self._updates else gram_of(self._deltas)

    def predict_delta(self, response: float) -> Mixture | LowRank:
        """Return D_hat at a step (fp32, the tensor's shape)."""
        if self._fit is None:
            combination = combination_of(self.gram(), self._responses_T, self._rank)
            self._fit = CombinationFit(combination)
            for delta in self._updates or self._deltas:
                self._fit.observe(delta)
            self._deltas.clear()
        return self._fit.predict_delta(response)

    def quality(self) -> None:
        """A path of whole tensors has no spectrum of one matrix."""
        return


class Relex:
    """The method with its options, for all tensors of a run."""

    meets_entries = True

    def __init__(self, clock: Clock, options: MethodOptions) -> None:
        needed = max(MIN_CHECKPOINTS, options.rank)
        self._first = first_of_window(clock.steps_T, options.fit_last, needed)
        self._clock = clock
        self.rank = options.rank

    @property
    def observed(self) -> tuple[int, ...]:
        """Every checkpoint of the window."""
        return tuple(range(self._first, len(self._clock.steps_T)))

    @property
    def responses_T(self) -> tuple[float, ...]:
        """The steps of the window."""
        return self._clock.responses_T[self._first :]

    @property
    def num_deltas_held(self) -> int:
        """All of them, and the sums in the end."""
        return len(self.observed) + self.rank

    def covers(self, name: str, shape: tuple[int, ...], is_matrix: bool) -> bool:
        """Every tensor."""
        return True

    def fit(self, name: str, shape: tuple[int, ...]) -> RelexFit:
        """Start on one whole tensor."""
        return RelexFit(self.responses_T, self.rank)

    def known_fit(self, gram_TT: Tensor) -> CombinationFit:
        """Start on a tensor, or a run of entries, whose Gram matrix an earlier reading gave."""
        return CombinationFit(combination_of(gram_TT, self.responses_T, self.rank))


def make(clock: Clock, options: MethodOptions) -> Relex:
    """Build the method.

    Raises:
        FitError: fewer checkpoints than two, or than directions asked for.
    """
    return Relex(clock, options)

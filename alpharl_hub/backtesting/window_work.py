"""What a backtest does with one window of matrices: all its checkpoints are held, then read.

Letters: W_0 base, D_t = W_t - W_0 the delta at checkpoint t.

Numerical convention: see `rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alpharl_hub.backtesting.candidates import Design
from alpharl_hub.backtesting.cases import FitWindow
from alpharl_hub.backtesting.rows import Course, Dense, Product, Values, products_of
from alpharl_hub.backtesting.sums import PackedSums, add_sums, sums_of
from alpharl_hub.executors.local import WindowReads
from alpharl_hub.methods import MethodOptions
from alpharl_hub.numerics.factors import FactorBuilder
from alpharl_hub.numerics.low_rank import LowRank
from alpharl_hub.prediction.deltas import delta_of, origin_of
from alpharl_hub.trajectory import LowRankRef, Trajectory
from alpharl_hub.windows.plan import Part
from alpharl_hub.windows.reader import StoredTensors, labels_by_position

_RANK = MethodOptions().rank


class WindowBacktester:
    """Reads matrices; one object serves all workers.

    Args:
        trajectory: names what is read, for errors.
        design: the predictions.
        windows: those whose direction is read; `middles` are their middle positions.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        design: Design,
        windows: Sequence[FitWindow],
        middles: Sequence[int],
    ) -> None:
        self._labels = labels_by_position(trajectory)
        self._num_checkpoints = len(trajectory.history)
        self._design = design
        self._windows = windows
        self._middles = middles

    def __call__(self, reads: WindowReads, device: str) -> tuple[PackedSums, ...]:
        """Do one window on one device; its matrices come back as one."""
        held = dict(reads.readings)
        found = []
        for place, part in enumerate(reads.window.parts):
            products = products_of(self._course(part, place, held, device))
            found.append(sums_of(products, self._design, self._windows, self._middles))
        return (PackedSums.pack(add_sums(found)),)

    def _course(
        self, part: Part, place: int, held: Mapping[int, StoredTensors], device: str
    ) -> Course:
        origin = origin_of(held, place)
        positions = range(self._num_checkpoints)
        are_deltas = any(isinstance(part.reads[t], LowRankRef) for t in positions)
        builder = FactorBuilder(part.name, _RANK)
        scratch = torch.empty(part.num_elements, dtype=torch.float32, device=device)
        ends = {window.last: n for n, window in enumerate(self._design.windows)}
        fitted = self._fitted_by_alpharl()
        predictions: list[Values | None] = [None] * (self._design.num_rows - self._num_checkpoints)
        values: list[Values] = []
        for t in positions:
            delta = delta_of(part, t, held[t][place], origin, scratch, self._labels)
            values.append(_kept(delta, held[t][place], are_deltas))
            if t in fitted:
                builder.observe(delta)
                if t in ends:
                    rows = self._alpharl_rows(builder, ends[t], device)
                    predictions[2 * ends[t] : 2 * ends[t] + 2] = rows
        return Course(origin.base, values, are_deltas, predictions)

    def _fitted_by_alpharl(self) -> frozenset[int]:
        """What is factorised: windows all begin at the start, so that each begins the next one."""
        windows = self._design.windows
        return frozenset(t for w in windows if self._design.alpharl(w) for t in w.fitted)

    def _alpharl_rows(
        self, builder: FactorBuilder, number: int, device: str
    ) -> Sequence[Values | None]:
        window = self._design.windows[number]
        method = self._design.alpharl(window)
        if method is None:
            return (None, None)
        # The factors so far are those of a run that ends here, to the bit.
        known = method.from_factors(builder.finish(), torch.device(device), builder.certified)
        steps = self._design.alpharl_steps(window)
        return tuple(Product(known.predict_delta(step)) for step in steps)


def _kept(delta: Tensor | LowRank, stored: tuple[Tensor, ...], are_deltas: bool) -> Values:
    """Return what stays of a checkpoint when the next one is looked at."""
    if isinstance(delta, LowRank):
        return Product(delta)
    return Dense(delta.clone()) if are_deltas else Dense(stored[0])

"""Does the base look like what this run started from? Read on a small sample, before anything else.

A wrong base gives silent nonsense: every delta is then the difference of two models. RL moves
weights by 0.3 to 1.5 % of their norm; two unrelated models differ by 100 %.

Numerical convention: samples are widened to fp32 and subtracted, squares are summed in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from alpharl_hub.numerics.low_rank import LowRank, from_stored
from alpharl_hub.scope import Scope, ScopedTensor
from alpharl_hub.sources.remembering import RememberingStore
from alpharl_hub.tensor_bytes import TORCH_DTYPES
from alpharl_hub.trajectory import CheckpointContents, StoredRef, TensorRef, Trajectory

MAX_RELATIVE_NORM = 0.05
_NUM_SAMPLED = 8
_SAMPLE_ELEMENTS = 16_384


@dataclass(frozen=True)
class BaseCheck:
    """`relative_norm`: |W_T - W_0| / |W_0| on the sample; `growth`: that over the first's.

    `problem` says what is wrong with the base, None if nothing was seen.
    """

    relative_norm: float
    growth: float | None
    problem: str | None


def sample_base(trajectory: Trajectory, scope: Scope) -> tuple[Trajectory, BaseCheck]:
    """Compare rows of a few matrices of base, first and last checkpoint.

    Returns the trajectory whose stores remember what was read here (under 1 MB a checkpoint), and
    what was seen.
    """
    chosen = _spread(scope.matrices)
    base = _remembering(trajectory.base)
    history = list(trajectory.history)
    history[0] = _remembering(history[0])
    if len(history) > 1:
        history[-1] = _remembering(history[-1])
    sampled = replace(trajectory, base=base, history=tuple(history))
    base_rows = [_rows(base, t.base) for t in chosen]
    norms = {}
    for position in sorted({0, len(history) - 1}):
        refs = [t.history[position] if t.history else None for t in chosen]
        pairs = zip(refs, base_rows, strict=True)
        norms[position] = _norm([_delta(history[position], ref, rows) for ref, rows in pairs])
    return sampled, _judge(trajectory, _norm(base_rows), norms[0], norms[len(history) - 1])


def _spread(matrices: Sequence[ScopedTensor]) -> list[ScopedTensor]:
    usable = [t for t in matrices if t.base is not None and t.history is not None]
    step = max(1, len(usable) // _NUM_SAMPLED)
    return usable[::step][:_NUM_SAMPLED]


def _remembering(contents: CheckpointContents) -> CheckpointContents:
    return replace(contents, store=RememberingStore(contents.store))


def _rows(contents: CheckpointContents, ref: StoredRef | None) -> torch.Tensor:
    assert isinstance(ref, TensorRef)
    return _stored(contents, ref, min(_SAMPLE_ELEMENTS, ref.num_elements)).to(torch.float32)


def _delta(
    contents: CheckpointContents, ref: StoredRef | None, base_P: torch.Tensor
) -> torch.Tensor:
    """Return the first entries of a delta; an update in factors is read whole, it is small."""
    if isinstance(ref, TensorRef):
        return _rows(contents, ref) - base_P
    assert ref is not None
    left, right = (
        _stored(contents, factor, factor.num_elements).view(factor.shape)
        for factor in (ref.left, ref.right)
    )
    update = from_stored(left, right, ref.scale, ref.transposed)
    num_rows = -(-len(base_P) // ref.shape[1])
    return LowRank(update.left_MR[:num_rows], update.right_RN).dense().view(-1)[: len(base_P)]


def _stored(contents: CheckpointContents, ref: TensorRef, count: int) -> torch.Tensor:
    assert isinstance(contents.store, RememberingStore)
    dtype = TORCH_DTYPES[ref.dtype]
    stop = ref.start + count * dtype.itemsize
    data = contents.store.sample(contents.path_of(ref.filename), ref.start, stop)
    return torch.frombuffer(bytearray(data), dtype=dtype)


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def _judge(trajectory: Trajectory, base_norm: float, first: float, last: float) -> BaseCheck:
    stranger = _other_model(trajectory)
    if stranger is not None:
        return BaseCheck(0.0, None, stranger)
    relative = last / base_norm if base_norm else 0.0
    growth = last / first if first and len(trajectory.history) > 1 else None
    label = trajectory.base.checkpoint.label
    problem = None
    if relative > MAX_RELATIVE_NORM:
        problem = (
            f"{label} does not look like the base of this run: step "
            f"{trajectory.steps_T[-1]} differs "
            f"from it by {relative:.0%} of its norm (RL moves 0.3 to 1.5 %)"
        )
    elif growth is not None and growth <= 1:
        problem = (
            f"{label} does not look like the base of this run: step {trajectory.steps_T[-1]} is no "
            f"farther from it than step {trajectory.steps_T[0]} ({growth:.2f} x)"
        )
    return BaseCheck(relative, growth, problem)


def _other_model(trajectory: Trajectory) -> str | None:
    """Say that an adapter was trained on a model of another class than the base.

    The norm of its update tells nothing: it is the same on every base.
    """
    adapter = trajectory.last.adapter
    mapping = adapter.get("auto_mapping") if adapter is not None else None
    wanted = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    found = trajectory.base.config.get("architectures")
    if not isinstance(wanted, str) or not isinstance(found, list) or wanted in found:
        return None
    named = ", ".join(map(str, found))
    return (
        f"{trajectory.base.checkpoint.label} does not look like the base of this run: it is a "
        f"{named}, and the adapters were trained on a {wanted}"
    )

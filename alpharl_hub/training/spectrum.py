"""The rank-1 share and the linearity of a run, watched on a few matrices while it trains.

Letters: M rows, N columns of a matrix, R the rank of a LoRA adapter. A delta is the matrix now
minus the matrix when the watch began.

What it costs: on the CPU of the watching process, the start of each watched matrix in its own dtype
(at most MAX_BASE_BYTES together; of LoRA its factors, R (M + N) values), and for each measurement
4 (M + 2 N) bytes. While one is made, one matrix at a time is there in fp32, twice at most. Nothing
is put on an accelerator. Random generators are left alone. For the widths of a 7B model in bf16
five matrices are watched, 195 MB are kept, and a measurement takes 3 to 8 s on two CPU cores.

Convention: deltas and factors are fp32 on the CPU, the numbers are those of `numerics.factors`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alpharl_hub.errors import FitError
from alpharl_hub.module_names import layer_and_group, why_not_a_matrix
from alpharl_hub.numerics.factors import FactorBuilder, quality_of
from alpharl_hub.numerics.low_rank import LowRank

SHARE_KEY, LINEARITY_KEY = "alpharl/rank1_share", "alpharl/q2"

MAX_MATRICES = 7
"""One of each kind that a block of most models has: q, k, v, o, gate, up, down."""
MAX_BASE_BYTES = 256_000_000


class _Delta(Protocol):
    """A matrix that is watched."""

    @property
    def num_bytes(self) -> int:
        """How much memory keeping its start takes."""

    def keep_start(self) -> None:
        """Copy what the delta is taken against."""

    def now(self) -> Tensor | LowRank | None:
        """Return the delta as it is, None where this process does not hold the whole matrix."""


class _WholeMatrix:
    """A weight that is trained itself."""

    def __init__(self, module: nn.Module, attribute: str) -> None:
        # The module is kept, not the parameter: wrappers put others in its place.
        self._module, self._attribute = module, attribute
        self._start_MN = torch.empty(0)

    @property
    def num_bytes(self) -> int:
        weight_MN = self._weight()
        return weight_MN.numel() * weight_MN.element_size()

    def keep_start(self) -> None:
        self._start_MN = self._weight().to("cpu", copy=True)

    def now(self) -> Tensor | None:
        weight_MN = self._weight()
        if weight_MN.shape != self._start_MN.shape or _is_spread(weight_MN):
            return None
        delta_MN = weight_MN.to("cpu", torch.float32, copy=True).contiguous()
        return delta_MN.sub_(self._start_MN)

    def _weight(self) -> Tensor:
        weight_MN: Tensor = getattr(self._module, self._attribute).detach()
        return weight_MN


class _LoraUpdate:
    """What a LoRA adapter adds to a weight; starts other than zero (PiSSA) are taken off."""

    def __init__(self, module: Any, adapter: str) -> None:
        self._module, self._adapter = module, adapter
        self._start: LowRank | None = None

    @property
    def num_bytes(self) -> int:
        right_RN, left_MR = self._factors()
        return 4 * (right_RN.numel() + left_MR.numel())

    def keep_start(self) -> None:
        self._start = self._update()

    def now(self) -> LowRank | None:
        start = self._start
        assert start is not None, "the start is kept before anything is measured"
        if any(map(_is_spread, self._factors())):
            return None
        now = self._update()
        if now.shape != start.shape:
            return None
        if torch.equal(now.left_MR, start.left_MR) and torch.equal(now.right_RN, start.right_RN):
            # Of a difference of equal products rounding would be left, with a share of its own.
            return LowRank(torch.zeros_like(now.left_MR), now.right_RN)
        left_MR = torch.cat([now.left_MR, -start.left_MR], dim=1)
        return LowRank(left_MR, torch.cat([now.right_RN, start.right_RN]))

    def _update(self) -> LowRank:
        right_RN, left_MR = self._factors()
        right_RN = right_RN.to("cpu", torch.float32, copy=True)
        left_MR = left_MR.to("cpu", torch.float32, copy=True) * self._module.scaling[self._adapter]
        if self._module.fan_in_fan_out:
            left_MR, right_RN = right_RN.T.contiguous(), left_MR.T.contiguous()
        return LowRank(left_MR, right_RN)

    def _factors(self) -> tuple[Tensor, Tensor]:
        adapter = self._adapter
        lora_a, lora_b = self._module.lora_A[adapter], self._module.lora_B[adapter]
        return lora_a.weight.detach(), lora_b.weight.detach()


@dataclass(frozen=True)
class _Watched:
    """A matrix of the sample, and what was found of it so far."""

    name: str
    delta: _Delta
    builder: FactorBuilder


class SpectrumWatch:
    """Measures a sample of a model's matrices against what they are now, `begin`.

    Args:
        watched: the sample; empty where the model has no matrix that could be watched.
    """

    def __init__(self, watched: Sequence[_Watched]) -> None:
        self._watched = watched
        self._steps: list[int] = []

    @classmethod
    def begin(cls, model: nn.Module) -> SpectrumWatch:
        """Choose matrices of attention and MLP, of every kind one, and keep them as they are."""
        watched: list[_Watched] = []
        left_bytes = MAX_BASE_BYTES
        for name, delta in _one_of_each_kind(_candidates(model)):
            if len(watched) < MAX_MATRICES and delta.num_bytes <= left_bytes:
                left_bytes -= delta.num_bytes
                delta.keep_start()
                watched.append(_Watched(name, delta, FactorBuilder(name, rank=1)))
        return cls(watched)

    @property
    def names(self) -> tuple[str, ...]:
        """The matrices of the sample."""
        return tuple(watched.name for watched in self._watched)

    @property
    def last_step(self) -> int | None:
        """The step that was measured last."""
        return self._steps[-1] if self._steps else None

    def measure(self, step: int) -> Mapping[str, float]:
        """Measure the sample at a step, which is later than the last one.

        Medians over the matrices: `alpharl/rank1_share`, sigma_1^2 / |delta|_F^2, 0 to 1; and from
        the fourth measurement on `alpharl/q2`, the leave-one-out Q^2 of the rank-1 parts on the
        step, at most 1. A number that no matrix has is left out.

        Raises:
            FitError: a weight holds NaN or Inf, or is spread over several processes by now.
        """
        for watched in self._watched:
            delta = watched.delta.now()
            if delta is None:
                raise FitError(
                    f"{watched.name}: this process does not hold all of it any more (as under "
                    "FSDP and ZeRO-3); train without them to have it measured"
                )
            watched.builder.observe(delta)
        self._steps.append(step)
        found = [quality_of(w.builder.finish(), self._steps, None) for w in self._watched]
        shares = [quality.rank1_share for quality in found if quality.rank1_share is not None]
        linearities = [quality.q2_step for quality in found if quality.q2_step is not None]
        numbers = ((SHARE_KEY, shares), (LINEARITY_KEY, linearities))
        return {key: median(values) for key, values in numbers if values}


def is_whole(model: nn.Module) -> bool:
    """Whether this process holds every weight: neither FSDP nor ZeRO-3 has taken them apart."""
    return not any(_is_spread(weight) for weight in model.parameters())


def _is_spread(weight: Tensor) -> bool:
    """Whether a weight is a DTensor (FSDP2), or an empty stand-in (ZeRO-3)."""
    return hasattr(weight, "full_tensor") or weight.numel() == 0


def _candidates(model: nn.Module) -> Iterator[tuple[str, _Delta]]:
    """Give the matrices in scope that are trained: of LoRA the updates, else the weights."""
    adapted = list(_lora_updates(model))
    yield from adapted
    if adapted:
        return
    for prefix, module in model.named_modules():
        for attribute, weight in module.named_parameters(recurse=False):
            name = f"{prefix}.{attribute}"
            trained = weight.requires_grad and weight.is_floating_point()
            if trained and weight.dim() == 2 and not _is_spread(weight) and _in_scope(name, weight):
                yield name, _WholeMatrix(module, attribute)


def _lora_updates(model: nn.Module) -> Iterator[tuple[str, _Delta]]:
    """Give the layers that peft's LoRA adapts; not those of DoRA, whose update is no product."""
    for prefix, module in model.named_modules():
        factors = getattr(module, "lora_A", None)
        if not isinstance(factors, nn.ModuleDict) or "experts" in prefix.split("."):
            continue
        adapter = str(module.active_adapters[0])
        is_dora = adapter in getattr(module, "lora_magnitude_vector", ())
        if adapter not in factors or is_dora:
            continue
        weight, name = factors[adapter].weight, f"{prefix}.weight"
        if not isinstance(weight, Tensor) or weight.dim() != 2 or _is_spread(weight):
            continue
        if _in_scope(name, weight):
            yield name, _LoraUpdate(module, adapter)


def _in_scope(name: str, weight: Tensor) -> bool:
    # A LoRA of rank 1 has factors of one row, and adapts a matrix all the same.
    rows, columns = (max(2, size) for size in weight.shape)
    return why_not_a_matrix(name, "F32", (rows, columns)) is None


def _one_of_each_kind(
    candidates: Iterator[tuple[str, _Delta]],
) -> Iterator[tuple[str, _Delta]]:
    """Give one matrix of each kind, the smallest kinds first, each from another depth."""
    kinds: dict[str, list[tuple[str, _Delta]]] = defaultdict(list)
    for name, delta in candidates:
        kinds[layer_and_group(name)[1]].append((name, delta))
    by_size = sorted(kinds.values(), key=lambda members: members[0][1].num_bytes)
    for number, members in enumerate(by_size):
        yield members[(2 * number + 1) * len(members) // (2 * len(by_size))]

"""What `report --quick` reads: a matrix of every kind, from all depths, at a few checkpoints.

It is a fiftieth of what the whole report reads, so that the first table comes in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from alpharl_hub.manifest import Notice
from alpharl_hub.module_names import layer_and_group
from alpharl_hub.preparation import Prepared, at_positions
from alpharl_hub.scope import Scope, ScopedTensor
from alpharl_hub.sources.selection import spread_evenly

MAX_SHARE = 0.02
MIN_BYTES = 32_000_000
"""So much is read in any case, where there is as much: small models are read whole."""

NUM_CHECKPOINTS = 5
"""Enough to tell a straight course from a bent one."""


def quick_sample(prepared: Prepared) -> Prepared:
    """Narrow a run to the checkpoints and matrices that are read; at least one of each."""
    matrices = prepared.scope.matrices
    most_bytes = max(MIN_BYTES, MAX_SHARE * sum(map(_read_bytes, matrices)))
    if sum(map(_read_bytes, matrices)) <= most_bytes:
        return prepared
    steps_T = prepared.trajectory.steps_T
    places = [steps_T.index(step) for step in spread_evenly(steps_T, NUM_CHECKPOINTS)]
    narrowed = at_positions(prepared, places)
    chosen = _affordable(narrowed.scope.matrices, most_bytes)
    share = sum(map(_read_bytes, chosen)) / sum(map(_read_bytes, matrices))
    message = (
        f"{share:.1%} of the matrices' bytes were read: {len(chosen)} of {len(matrices)} tensors, "
        f"at {len(places)} of {len(steps_T)} checkpoints"
    )
    notices = (*prepared.notices, Notice("quick", message))
    return replace(narrowed, scope=Scope(chosen, prepared.scope.notices), notices=notices)


def _affordable(tensors: Sequence[ScopedTensor], most_bytes: float) -> tuple[ScopedTensor, ...]:
    """Take one of each kind, the smallest kinds first, then another of each, while they fit."""
    order = list(_by_kind(tensors))
    chosen = {order[0].name}
    left_bytes = most_bytes - _read_bytes(order[0])
    for tensor in order[1:]:
        if _read_bytes(tensor) <= left_bytes:
            chosen.add(tensor.name)
            left_bytes -= _read_bytes(tensor)
    return tuple(tensor for tensor in tensors if tensor.name in chosen)


def _by_kind(tensors: Sequence[ScopedTensor]) -> Iterator[ScopedTensor]:
    """Give tensors in rounds over the kinds, each time from another depth."""
    kinds: dict[str, list[ScopedTensor]] = {}
    for tensor in tensors:
        kinds.setdefault(layer_and_group(tensor.name)[1], []).append(tensor)
    by_size = sorted(kinds.values(), key=lambda kind: _read_bytes(kind[0]))
    rounds = max(len(kind) for kind in by_size)
    for number in range(rounds):
        for shift, kind in enumerate(by_size):
            if number < len(kind):
                yield kind[_depths(len(kind))[(number + shift) % len(kind)]]


def _depths(count: int) -> list[int]:
    """Order places such that each next one lies far from those before: the middle, the ends, ..."""
    found = [count // 2, 0, count - 1]
    step = count / 4
    while step >= 0.5:
        found += [round(step * odd) for odd in range(1, int(count / step) + 1, 2)]
        step /= 2
    return list(dict.fromkeys(place for place in (*found, *range(count)) if place < count))


def _read_bytes(tensor: ScopedTensor) -> int:
    refs = (tensor.base, *(tensor.history or ()))
    return sum(ref.num_bytes for ref in refs if ref is not None)


def sample_layers(matrices: Sequence[ScopedTensor], count: int) -> tuple[ScopedTensor, ...]:
    """Take the matrices of `count` layers spread evenly, and those outside of any layer."""
    layers = sorted({layer for t in matrices if (layer := layer_and_group(t.name)[0]) is not None})
    if len(layers) <= count:
        return tuple(matrices)
    chosen = {layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)}
    return tuple(t for t in matrices if layer_and_group(t.name)[0] in chosen | {None})

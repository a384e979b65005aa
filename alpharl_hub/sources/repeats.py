"""Checkpoints with identical weights: the first of each run of repeats stays."""

from __future__ import annotations

from collections.abc import Sequence

from alpharl_hub.manifest import Notice
from alpharl_hub.trajectory import CheckpointContents

_COMPARED_BYTES = 8 << 20


def drop_repeats(
    history: Sequence[CheckpointContents],
) -> tuple[tuple[CheckpointContents, ...], tuple[Notice, ...]]:
    """Leave out checkpoints whose weights equal those of the one kept before them.

    On a Hub the sets of LFS sha256 are compared. Local files whose sizes, headers and sampled
    blocks agree are compared whole.
    """
    kept: list[CheckpointContents] = []
    dropped: list[CheckpointContents] = []
    for contents in history:
        if kept and _same_weights(kept[-1], contents):
            dropped.append(contents)
        else:
            kept.append(contents)
    if not dropped:
        return tuple(kept), ()
    names = ", ".join(str(contents.checkpoint.step) for contents in dropped)
    message = f"steps {names} repeat the weights of the step before and are left out"
    if history[-1] in dropped:
        message += "; repeats at the end mean a plateau or a broken release"
    return tuple(kept), (Notice("repeats", f"{message} (--keep-repeats keeps them)"),)


def _same_weights(a: CheckpointContents, b: CheckpointContents) -> bool:
    if a.identity != b.identity:
        return False
    if all(f.sha256 is not None for f in (*a.weight_files, *b.weight_files)):
        return True
    return all(
        _same_bytes(a, one.filename, b, other.filename, one.num_bytes)
        for one, other in zip(a.weight_files, b.weight_files, strict=True)
    )


def _same_bytes(
    a: CheckpointContents, file_a: str, b: CheckpointContents, file_b: str, num_bytes: int
) -> bool:
    for start in range(0, num_bytes, _COMPARED_BYTES):
        size = min(_COMPARED_BYTES, num_bytes - start)
        one, other = bytearray(size), bytearray(size)
        a.store.read_into(a.path_of(file_a), start, memoryview(one))
        b.store.read_into(b.path_of(file_b), start, memoryview(other))
        if one != other:
            return False
    return True

"""Answer `inspect`: what the run is, and what predicting from it would cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from alpharl_hub.errors import FitError
from alpharl_hub.module_names import layer_and_group
from alpharl_hub.prediction.planning import PredictionPlan
from alpharl_hub.preparation import Prepared, at_positions
from alpharl_hub.results import (
    SCHEMA,
    BaseAnswer,
    CountCost,
    ExcludedTensor,
    Inspection,
    ListedCheckpoint,
    MeasuredRate,
    PlanCost,
    ScopeGroup,
)
from alpharl_hub.scope import count_matrices
from alpharl_hub.trajectory import Checkpoint, CheckpointContents, Trajectory
from alpharl_hub.windows.devices import Workers

_USUAL_COUNTS = (6, 12)
"""Numbers of checkpoints whose cost is told: enough for a fit, and what is taken unasked."""

_MIN_SLOPE = 0.002
"""A checkpoint more that adds less than this share to what is read is not worth a word."""

_MIN_PLAN_BYTES = 1_000_000_000
"""Of what is read in seconds on any line the rate is not measured."""

_WARM_BYTES, _TIMED_BYTES = 1_000_000, 8_000_000
"""A connection is slow at first, which says nothing of the hours to come."""


def make_inspection(
    prepared: Prepared,
    plan: PredictionPlan,
    workers: Workers,
    other_counts: tuple[CountCost, ...],
) -> Inspection:
    """Put together what was found; nothing is read any more."""
    trajectory = prepared.trajectory
    base = trajectory.base.checkpoint
    groups: Counter[str] = Counter()
    for tensor in prepared.scope.matrices:
        groups[layer_and_group(tensor.name)[1]] += count_matrices([tensor])
    excluded = tuple(
        ExcludedTensor(tensor.name, tensor.excluded_because)
        for tensor in prepared.scope.tensors
        if tensor.excluded_because is not None and len(tensor.last.shape) >= 2
    )
    return Inspection(
        schema=SCHEMA,
        layout=trajectory.layout,
        pattern=trajectory.pattern,
        base=BaseAnswer(base.source, base.revision, base.commit, trajectory.base_chosen_by),
        checkpoints=_listed(trajectory),
        score_name=trajectory.scores.name if trajectory.scores else None,
        scope=tuple(ScopeGroup(group, count) for group, count in sorted(groups.items())),
        excluded=excluded,
        plan=PlanCost(
            readings=plan.readings,
            read_bytes=plan.read_bytes,
            requests=plan.requests,
            peak_memory_bytes=workers.peak_memory_bytes,
            output_bytes=plan.output_bytes,
            other_counts=other_counts,
        ),
        rate=_measure_rate(trajectory.last) if plan.read_bytes >= _MIN_PLAN_BYTES else None,
        warnings=prepared.notices,
    )


def cost_of_counts(
    prepared: Prepared, plan: PredictionPlan, plan_with: Callable[[Prepared], PredictionPlan]
) -> tuple[CountCost, ...]:
    """Say what other numbers of checkpoints would cost, all of them included.

    The costs of half of the checkpoints, which `plan_with` finds, and of all that were opened lie
    on a line. Empty for too few checkpoints, and where their number does not matter.
    """
    num_opened, num_listed = len(prepared.trajectory.history), len(prepared.trajectory.listed)
    places = sorted({*range(0, num_opened, 2), num_opened - 1})
    if num_opened - len(places) < 2:
        return ()
    try:
        fewer = plan_with(at_positions(prepared, places))
    except FitError:  # what was asked for takes more checkpoints than half of them
        return ()
    slope = (plan.read_bytes - fewer.read_bytes) / (num_opened - len(places))
    if slope < _MIN_SLOPE * plan.read_bytes:
        return ()
    counts = sorted({*(n for n in _USUAL_COUNTS if n < num_listed), num_listed} - {num_opened})
    return tuple(CountCost(n, round(plan.read_bytes + (n - num_opened) * slope)) for n in counts)


def _measure_rate(contents: CheckpointContents) -> MeasuredRate | None:
    """Time a piece from the middle of the largest file; None where it is too short for one."""
    largest = max(contents.weight_files, key=lambda file: file.num_bytes)
    start = largest.num_bytes // 2
    if largest.num_bytes - start < _WARM_BYTES + _TIMED_BYTES:
        return None
    path = contents.path_of(largest.filename)
    buffer = memoryview(bytearray(_TIMED_BYTES))
    contents.store.read_into(path, start, buffer[:_WARM_BYTES])
    began_s = time.perf_counter()
    contents.store.read_into(path, start + _WARM_BYTES, buffer)
    return MeasuredRate(_TIMED_BYTES / (time.perf_counter() - began_s), _TIMED_BYTES)


def _listed(trajectory: Trajectory) -> tuple[ListedCheckpoint, ...]:
    opened = {contents.checkpoint.step: contents for contents in trajectory.history}
    scores = dict(zip(trajectory.steps_T, trajectory.scores_T(), strict=True))
    return tuple(
        _one(checkpoint, opened.get(checkpoint.step), scores.get(checkpoint.step or 0))
        for checkpoint in trajectory.listed
    )


def _one(
    checkpoint: Checkpoint, contents: CheckpointContents | None, score: float | None
) -> ListedCheckpoint:
    assert checkpoint.step is not None, "what is listed has a step"
    return ListedCheckpoint(
        step=checkpoint.step,
        source=checkpoint.source,
        revision=checkpoint.revision,
        commit=checkpoint.commit,
        folder=checkpoint.folder,
        selected=contents is not None,
        score=score,
        dtype=contents.dtype if contents else None,
        num_tensors=len(contents.tensors) if contents else None,
        num_bytes=contents.num_bytes if contents else None,
        num_files=len(contents.weight_files) if contents else None,
    )

"""Answer `inspect`: what the run is, and what predicting from it would cost."""

from __future__ import annotations

from collections import Counter

from alpharl_hub.module_names import layer_and_group
from alpharl_hub.prediction.planning import PredictionPlan
from alpharl_hub.preparation import Prepared
from alpharl_hub.results import (
    SCHEMA,
    BaseAnswer,
    ExcludedTensor,
    Inspection,
    ListedCheckpoint,
    PlanCost,
    ScopeGroup,
)
from alpharl_hub.scope import count_matrices
from alpharl_hub.trajectory import Checkpoint, CheckpointContents, Trajectory
from alpharl_hub.windows.devices import Workers


def make_inspection(prepared: Prepared, plan: PredictionPlan, workers: Workers) -> Inspection:
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
        ),
        warnings=prepared.notices,
    )


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

"""Everything that is settled before the first weight is read in earnest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alpharl_hub.base_check import BaseCheck, sample_base
from alpharl_hub.errors import TrajectoryError
from alpharl_hub.manifest import CheckpointRecord, Notice, RunRecord
from alpharl_hub.scope import Scope, find_scope
from alpharl_hub.trajectory import CheckpointContents, Trajectory


@dataclass(frozen=True)
class ScopeOptions:
    """Which matrices count, and whether a doubtful base is gone on with."""

    include: str | None = None
    exclude: str | None = None
    force: bool = False


@dataclass(frozen=True)
class Prepared:
    """An opened trajectory with its scope; `notices` are all that was seen so far."""

    trajectory: Trajectory
    scope: Scope
    base_check: BaseCheck
    notices: tuple[Notice, ...]

    @property
    def scores_T(self) -> tuple[float, ...] | None:
        """The scores of the whole history, or None when one is missing."""
        found = [score for score in self.trajectory.scores_T() if score is not None]
        return tuple(found) if len(found) == len(self.trajectory.history) else None


def prepare(trajectory: Trajectory, options: ScopeOptions, *, stop_on_wrong_base: bool) -> Prepared:
    """Find what is in scope and look whether the base is the run's.

    Raises:
        TrajectoryError: the checkpoints do not fit together, or (unless forced, or only inspected)
            the base does not look like this run's.
    """
    scope = find_scope(
        trajectory.base, trajectory.history, options.include, options.exclude, trajectory.start
    )
    trajectory, check = sample_base(trajectory, scope)
    notices = [*trajectory.notices, *scope.notices]
    if check.problem is not None:
        if stop_on_wrong_base and not options.force:
            raise TrajectoryError(f"{check.problem}; name the right --base, or --force to go on")
        advice = "" if options.force else "; other commands refuse it without --force"
        notices.insert(0, Notice("wrong_base", f"{check.problem}{advice}"))
    return Prepared(trajectory, scope, check, tuple(notices))


def at_positions(prepared: Prepared, places: Sequence[int]) -> Prepared:
    """Leave out all checkpoints of the history but those at some positions."""
    history = tuple(prepared.trajectory.history[place] for place in places)
    tensors = tuple(
        replace(t, history=None if t.history is None else tuple(t.history[i] for i in places))
        for t in prepared.scope.tensors
    )
    return replace(
        prepared,
        trajectory=replace(prepared.trajectory, history=history),
        scope=replace(prepared.scope, tensors=tensors),
    )


def nearest_middle(steps_T: Sequence[int]) -> int:
    """Return the position of the checkpoint nearest half of the last step, the earlier of two."""
    half = steps_T[-1] / 2
    return min(range(len(steps_T)), key=lambda i: (abs(steps_T[i] - half), i))


def run_record(prepared: Prepared, options: ScopeOptions) -> RunRecord:
    """Write down the trajectory for a manifest; local folders by name only."""
    trajectory = prepared.trajectory
    base = trajectory.base.checkpoint
    return RunRecord(
        layout=trajectory.layout,
        pattern=_recorded_pattern(trajectory),
        base=checkpoint_record(trajectory.base, None),
        base_chosen_by=trajectory.base_chosen_by,
        checkpoints=tuple(
            checkpoint_record(contents, score)
            for contents, score in zip(trajectory.history, trajectory.scores_T(), strict=True)
        ),
        score_name=trajectory.scores.name if trajectory.scores else None,
        base_model=base.source if base.commit is not None else None,
        private=trajectory.private,
        include=options.include,
        exclude=options.exclude,
        keep_repeats=trajectory.keep_repeats,
        lower_is_better=trajectory.scores is not None and trajectory.scores.lower_is_better,
        start=None if trajectory.start is None else checkpoint_record(trajectory.start, None),
    )


def _recorded_pattern(trajectory: Trajectory) -> str:
    """Return the pattern, below the name of the run's folder where it is a local one."""
    last = trajectory.last.checkpoint
    if trajectory.layout != "local" or not trajectory.pattern:
        return trajectory.pattern
    depth = trajectory.pattern.count("/")
    root = Path(last.source).resolve().parents[depth]
    return f"{root.name}/{trajectory.pattern}"


def checkpoint_record(contents: CheckpointContents, score: float | None) -> CheckpointRecord:
    """Write down one checkpoint."""
    checkpoint = contents.checkpoint
    is_local = checkpoint.commit is None
    return CheckpointRecord(
        step=checkpoint.step,
        source=Path(checkpoint.source).name if is_local else checkpoint.source,
        revision=checkpoint.revision,
        commit=checkpoint.commit,
        folder=checkpoint.folder,
        fingerprint=contents.fingerprint,
        score=score,
    )

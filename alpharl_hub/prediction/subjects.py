"""What a prediction is made from: a run, a folder of factors, or the record of an earlier one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from alpharl_hub import strict_json
from alpharl_hub.errors import ManifestError, SourceError
from alpharl_hub.manifest import (
    KIND_MODEL,
    MANIFEST_NAME,
    CheckpointRecord,
    MethodRecord,
    RunRecord,
    read_manifest,
)
from alpharl_hub.methods import METHODS
from alpharl_hub.output.factor_files import FactorFolder
from alpharl_hub.prediction.factor_places import FactorPlace, require_rising_steps
from alpharl_hub.prediction.foreign_patterns import require_bounded
from alpharl_hub.prediction.planning import ANCHORS, DTYPES, OTHERS
from alpharl_hub.prediction.setting import PredictOptions, Subject
from alpharl_hub.prediction.targets import TargetOptions, Times
from alpharl_hub.preparation import Prepared, ScopeOptions, nearest_middle, prepare, run_record
from alpharl_hub.scope import Scope, find_scope
from alpharl_hub.scores.table import ScoreTable
from alpharl_hub.sources.adapter_fitting import fit_to_base
from alpharl_hub.sources.local_run import LocalRun, pin_folder
from alpharl_hub.sources.opening import Opener, RunRequest
from alpharl_hub.sources.recorded import FindLocal, open_recorded
from alpharl_hub.trajectory import Checkpoint, CheckpointContents, CheckpointStore, Trajectory


def trajectory_subject(prepared: Prepared, scope: ScopeOptions) -> Subject:
    """Take a trajectory that is to be read now."""
    trajectory = prepared.trajectory
    return Subject(
        trajectory=trajectory,
        scope=prepared.scope,
        run=run_record(prepared, scope),
        steps_T=trajectory.steps_T,
        scores_T=prepared.scores_T,
        middle=nearest_middle(trajectory.steps_T),
        factors=None,
        certified={},
        trust=None,
        notices=prepared.notices,
    )


def factor_subject(place: FactorPlace, request: RunRequest, opener: Opener) -> Subject:
    """Take extracted factors: of the checkpoints only base and last are read again.

    Where these were local and lie elsewhere by now, `request` names them: its base, and in `at` a
    folder for a step.

    Raises:
        ManifestError: the factors are damaged, or where a local checkpoint lies is not known.
        SourceError: factors, base or last cannot be read.
    """
    manifest = place.read_manifest()
    run = manifest.run
    if place.is_private():
        run = replace(run, private=True)
    factors = place.open(len(run.checkpoints))
    find_local = _by_fingerprint(place.local_places(), run, request)
    base, start, (last,) = _open(run, run.checkpoints[-1:], opener, find_local)
    _require_bounded(run, (base, last), f"{place.label}/{MANIFEST_NAME}")
    scope = find_scope(base, (last,), run.include, run.exclude, start)
    _require_same_shapes(factors, scope)
    return Subject(
        trajectory=_trajectory(run, base, (last,), start),
        scope=scope,
        run=run,
        steps_T=_steps(run),
        scores_T=_scores(run),
        middle=None,
        factors=factors,
        certified={record.name: record.certified is True for record in manifest.tensors},
        trust=manifest.trust,
        notices=manifest.warnings,
    )


def _require_same_shapes(factors: FactorFolder, scope: Scope) -> None:
    names = frozenset(factors.names())
    for tensor in scope.tensors:
        if tensor.name in names and factors.shape(tensor.name) != tensor.last.shape:
            raise ManifestError(
                f"the factors of {tensor.name} are those of {list(factors.shape(tensor.name))}, "
                f"not of {list(tensor.last.shape)}; extract again"
            )


def recorded_subject(path: Path, request: RunRequest) -> tuple[Subject, PredictOptions]:
    """Open the checkpoints that a model's manifest names, and the options it was made with.

    Raises:
        ManifestError: it is damaged, of another kind, or a local run's folders do not fit.
        SourceError: a commit is gone.
    """
    manifest = read_manifest(strict_json.read_file(path), str(path))
    if manifest.kind != KIND_MODEL or manifest.method is None:
        raise ManifestError(f"{path}: the manifest of {manifest.kind}, not of a predicted model")
    run = manifest.run
    require_rising_steps(run, str(path))
    if request.run and all(record.commit is not None for record in run.checkpoints):
        raise ManifestError(
            f"{path}: names its checkpoints on the Hub, commits and all; leave out RUN"
        )
    wanted = _options(manifest.method, str(path), is_swept=manifest.sweep is not None)
    base, start, history = _open(run, run.checkpoints, Opener(request), _by_step(run, request))
    _require_bounded(run, (base, history[-1]), str(path))
    options = ScopeOptions(run.include, run.exclude, force=True)
    prepared = prepare(_trajectory(run, base, history, start), options, stop_on_wrong_base=False)
    subject = trajectory_subject(prepared, options)
    subject = replace(subject, run=run, scores_T=_scores(run), backtest=manifest.backtest)
    return subject, wanted


def _require_bounded(run: RunRecord, contents: Sequence[CheckpointContents], where: str) -> None:
    expressions = [one for one in (run.include, run.exclude) if one is not None]
    require_bounded(expressions, {name for c in contents for name in c.tensors}, where)


def _by_fingerprint(places: Mapping[str, str], run: RunRecord, request: RunRequest) -> FindLocal:
    named = {step: folder for folder, step in request.at}

    def find(record: CheckpointRecord) -> tuple[Checkpoint, CheckpointStore]:
        is_base = record == run.base
        told = request.base if is_base else named.get(record.step or 0)
        place = told or places.get(record.fingerprint or "")
        if place is None:
            how = "--base FOLDER" if is_base else f"--at FOLDER={record.step}"
            raise ManifestError(
                f"{request.run}: made from the local folder {record.source}, and where that lies "
                f"is not known here; name it with {how}"
            )
        checkpoint, store = pin_folder(place)
        return replace(checkpoint, step=record.step), store

    return find


def _by_step(run: RunRecord, request: RunRequest) -> FindLocal:
    def find(record: CheckpointRecord) -> tuple[Checkpoint, CheckpointStore]:
        if not request.run:
            raise ManifestError(
                f"{record.source} was a local folder; name the RUN (and --base) beside --from"
            )
        if record == run.base and request.base is not None:
            return pin_folder(request.base)
        if record.step is None:
            raise ManifestError(f"{record.source} was a local folder; name it with --base")
        source = LocalRun(request.run)
        for checkpoint in source.list_steps().checkpoints:
            if checkpoint.step == record.step:
                return checkpoint, source.open_store(checkpoint)
        raise SourceError(f"{request.run}: no step {record.step}, which the manifest names")

    return find


def _open(
    run: RunRecord,
    checkpoints: Sequence[CheckpointRecord],
    opener: Opener,
    find_local: FindLocal,
) -> tuple[CheckpointContents, CheckpointContents | None, Sequence[CheckpointContents]]:
    """Open base, start (of some LoRA runs) and checkpoints as recorded."""
    first = () if run.start is None else (run.start,)
    base, *opened = open_recorded((run.base, *first, *checkpoints), opener.client, find_local)
    fitted = [fit_to_base(contents, base) for contents in opened]
    return base, fitted[0] if first else None, fitted[len(first) :]


def _trajectory(
    run: RunRecord,
    base: CheckpointContents,
    history: Sequence[CheckpointContents],
    start: CheckpointContents | None,
) -> Trajectory:
    by_step = {r.step: r.score for r in run.checkpoints if r.step is not None}
    scores = {step: score for step, score in by_step.items() if score is not None}
    return Trajectory(
        layout=run.layout,
        pattern=run.pattern,
        base=base,
        base_chosen_by=run.base_chosen_by,
        listed=tuple(contents.checkpoint for contents in history),
        selected_steps=tuple(by_step),
        history=tuple(history),
        scores=_score_table(run, scores),
        private=run.private,
        card=None,
        notices=(),
        keep_repeats=run.keep_repeats,
        start=start,
    )


def _score_table(run: RunRecord, scores: Mapping[int, float]) -> ScoreTable | None:
    if run.score_name is None:
        return None
    return ScoreTable(run.score_name, scores, MANIFEST_NAME, run.lower_is_better)


def _steps(run: RunRecord) -> tuple[int, ...]:
    return tuple(record.step for record in run.checkpoints if record.step is not None)


def _scores(run: RunRecord) -> tuple[float, ...] | None:
    found = [record.score for record in run.checkpoints if record.score is not None]
    return tuple(found) if len(found) == len(run.checkpoints) else None


def _options(method: MethodRecord, where: str, is_swept: bool) -> PredictOptions:
    for key, value, known in (
        ("name", method.name, METHODS),
        ("anchor", method.anchor, ANCHORS),
        ("others", method.others, OTHERS),
        ("dtype", method.dtype, (None, *DTYPES)),
    ):
        if value not in known:
            raise ManifestError(f"{where}: method.{key} {value!r} is not known to this version")
    # A sweep chooses among all sizes; 0 is the last checkpoint.
    is_size = is_swept and 0 <= method.damping < math.inf
    if not (is_size or 0 < method.damping <= 1):
        raise ManifestError(f"{where}: method.damping {method.damping:g} is not above 0 up to 1")
    by_score = method.target_score is not None
    by_scale = method.scale is not None
    return PredictOptions(
        method=method.name,
        target=TargetOptions(
            target_steps=() if by_score or by_scale else _steps_of(method),
            target_score=method.target_score,
            scale=method.scale,
            times=_times(method, where),
        ),
        rescale=method.rescale is not False,
        rank=method.rank or 1,
        keep_residual=method.keep_residual is True,
        fit_last=_fit_last(method.fit_last),
        anchor=method.anchor,
        damping=method.damping,
        others=method.others,
        dtype=method.dtype,
        as_adapter=method.as_adapter is True,
    )


def _steps_of(method: MethodRecord) -> tuple[float, ...]:
    if method.target_step is None or not METHODS[method.name].looks_ahead:
        return ()
    return (method.target_step,)


def _times(method: MethodRecord, where: str) -> Times | None:
    if method.times is None or method.target_time is None:
        return None
    if any(b <= a for a, b in pairwise(method.times)):
        raise ManifestError(f"{where}: method.times do not rise")
    return Times(method.times, method.target_time)


def _fit_last(text: str | None) -> int | float | None:
    if text is None:
        return None
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise ManifestError(f"the manifest's fit_last {text!r} is no number") from error

"""Five functions for notebooks and scripts: open_trajectory, report, extract, predict, push.

    from alpharl_hub.api import open_trajectory, report, records, extract, predict, push

    run = open_trajectory("org/run", base="org/base", until="40%")
    table = pandas.DataFrame(records(report(run, quick=True)))
    extract(run, "factors")
    predict(run, "predicted", target_step=500)
    push("predicted", "me/run-step-500", private=True)

They do what the commands of the same names do, print nothing, and raise errors of
`alpharl_hub.AlphaRLError`. What each one answers with is described in `alpharl_hub.results`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpharl_hub import pipeline
from alpharl_hub.executors.local import Stopped
from alpharl_hub.manifest import Notice
from alpharl_hub.methods import AUTO
from alpharl_hub.prediction.destination import Destination, PushRequest
from alpharl_hub.prediction.setting import PredictOptions
from alpharl_hub.prediction.targets import TargetOptions
from alpharl_hub.preparation import Prepared, ScopeOptions, prepare
from alpharl_hub.push.model_upload import (
    DEFAULT_BRANCH,
    HubAccess,
    PushHooks,
    PushOptions,
    PushResult,
    push_folder,
)
from alpharl_hub.report_records import records
from alpharl_hub.reporting.extraction import FactorOutput
from alpharl_hub.reporting.report import ReportRequest
from alpharl_hub.reporting.report import report as report_prepared
from alpharl_hub.results import Extraction, Prediction, SpectralReport
from alpharl_hub.sources import opening
from alpharl_hub.sources.opening import RunRequest
from alpharl_hub.windows.devices import one_thread_each
from alpharl_hub.windows.streaming import Compute, Hooks

__all__ = [
    "Run",
    "Stopped",
    "Work",
    "extract",
    "open_trajectory",
    "predict",
    "push",
    "records",
    "report",
]


@dataclass(frozen=True)
class Run:
    """An opened run: headers were read and its base was looked at, no weights yet.

    `steps` are those of the checkpoints that will be read, in rising order; `warnings` what was
    odd about them.
    """

    place: str
    prepared: Prepared
    scope: ScopeOptions
    token: str | None = None

    def __repr__(self) -> str:
        """Say what was opened; a token is shown to nobody."""
        steps = f"steps {self.steps[0]} to {self.steps[-1]}"
        return f"Run({self.place!r}: {len(self.steps)} checkpoints, {steps}; base {self.base!r})"

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the checkpoints that will be read."""
        return self.prepared.trajectory.steps_T

    @property
    def base(self) -> str:
        """The model that the run started from."""
        return self.prepared.trajectory.base.checkpoint.label

    @property
    def warnings(self) -> tuple[Notice, ...]:
        """What was odd, in no order."""
        return self.prepared.notices


@dataclass(frozen=True)
class Work:
    """Where work is done, and who is told of it.

    `devices` such as ("cuda:0", "cuda:1"): all GPUs, else the CPU, when empty. `memory_bytes` is
    the most that may be used. `on_progress(done_bytes, total_bytes)` is called from any thread;
    set `stop` from another thread to end early: the call then raises `Stopped`, which is no
    Exception, as KeyboardInterrupt is none, and the same call goes on later.
    """

    devices: tuple[str, ...] = ()
    memory_bytes: int | None = None
    on_progress: Callable[[int, int], None] | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def compute(self) -> Compute:
        """What the pipeline takes."""
        return Compute(self.devices, self.memory_bytes)

    @property
    def hooks(self) -> Hooks:
        """What the pipeline tells."""
        if self.on_progress is None:
            return Hooks(stop=self.stop)
        return Hooks(self.on_progress, self.stop)


def open_trajectory(
    place: str | Path,
    *,
    base: str | Path | None = None,
    steps: str | Sequence[int] | None = None,
    until: str | int | None = None,
    include: str | None = None,
    exclude: str | None = None,
    force: bool = False,
    token: str | None = None,
    **further: Any,
) -> Run:
    """Open a run: a folder, ORG/NAME, or a pattern with {step}, as RUN of the commands.

    Args:
        place: where the checkpoints are.
        base: the model that the run started from, where the run does not name it.
        steps: which checkpoints, as numbers or in the form of --steps.
        until: the last step to use, or a share such as "40%".
        include, exclude: regular expressions over the names of matrices.
        force: go on though the base looks wrong.
        token: a Hub token; else HF_TOKEN, or the one that was logged in with.
        further: other fields of `alpharl_hub.sources.opening.RunRequest`, such as `scores`.

    Raises:
        SourceError, HeaderError: something cannot be read.
        TrajectoryError: no steps are found, no base, or another model's. ScoreError: no scores.
    """
    listed = steps if steps is None or isinstance(steps, str) else ",".join(map(str, steps))
    request = RunRequest(
        run=str(place),
        base=None if base is None else str(base),
        steps=listed,
        until=None if until is None else str(until),
        token=token,
        **further,
    )
    scope = ScopeOptions(include, exclude, force)
    prepared = prepare(opening.open_trajectory(request), scope, stop_on_wrong_base=True)
    return Run(str(place), prepared, scope, token)


def report(
    run: Run | str | Path,
    *,
    quick: bool = False,
    num_singular_values: int = 1,
    work: Work | None = None,
) -> SpectralReport:
    """Describe the spectrum of a run, or of extracted factors: a folder, or hf://ORG/NAME-factors.

    Reads every matrix at every step once, or with `quick` a fiftieth of that. `records` turns the
    answer into rows for pandas.

    Raises:
        SourceError, HeaderError, TrajectoryError, FitError, ManifestError, ResourceError.
    """
    work = work or Work()
    request = ReportRequest(quick, num_singular_values)
    with one_thread_each():
        if isinstance(run, Run):
            return report_prepared(run.prepared, request, work.compute, work.hooks)
        place = RunRequest(str(run))
        return pipeline.report_run(place, ScopeOptions(), request, work.compute, work.hooks)


def extract(
    run: Run | str | Path,
    output: str | Path | None = None,
    *,
    rank: int = 1,
    push_to: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    overwrite: bool = False,
    work_dir: str | Path | None = None,
    work: Work | None = None,
) -> Extraction:
    """Write the singular triplets of every matrix and step to a folder, a repo, or both.

    `output`, `push_to`, `private`, `create_pr` and `overwrite` are as for `predict`.

    Raises:
        ValueError: neither `output` nor `push_to`.
        SourceError, HeaderError, TrajectoryError, FitError, ResourceError, WriteError, PushError.
    """
    if output is None and push_to is None:
        raise ValueError("say where to: output, push_to, or both")
    work = work or Work()
    opened = run if isinstance(run, Run) else open_trajectory(run)
    asked = PushOptions(private=private, overwrite=overwrite, create_pr=create_pr)
    push = _push_request(push_to, asked, opened.token)
    request = FactorOutput(_path(output), overwrite, _path(work_dir), push)
    with one_thread_each():
        return pipeline.extract_prepared(
            opened.prepared, opened.scope, rank, request, work.compute, work.hooks
        )


def predict(
    run: Run | str | Path,
    output: str | Path | None = None,
    *,
    target_step: float | Sequence[float] = (),
    target_score: float | None = None,
    scale: float | None = None,
    method: str = AUTO,
    push_to: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    overwrite: bool = False,
    work_dir: str | Path | None = None,
    work: Work | None = None,
    **further: Any,
) -> Prediction:
    """Predict a later model and write it to `output`, push it to the repo `push_to`, or both.

    Args:
        run: an opened run, where one is, or extracted factors: a folder, or hf://ORG/NAME-factors.
        output: the new folder.
        target_step: the step to predict; of several, each in a folder step_N of its own.
        target_score, scale: other ways to say how far.
        method: auto, alpharl, relex, linear, ols or average.
        push_to: ORG/NAME. private: None lets the Hub decide; private inputs stay private.
        create_pr: open a pull request on `push_to`, which may be anybody's.
        overwrite: replace what this tool made before.
        work_dir: where unfinished work lies; beside the output by itself.
        further: other fields of `alpharl_hub.prediction.setting.PredictOptions`.

    Raises:
        ValueError: neither `output` nor `push_to`.
        SourceError, HeaderError, TrajectoryError, ScoreError, FitError, ManifestError,
        ResourceError, WriteError, PushError.
    """
    if output is None and push_to is None:
        raise ValueError("say where to: output, push_to, or both")
    work = work or Work()
    steps = (target_step,) if isinstance(target_step, int | float) else tuple(target_step)
    target = TargetOptions(tuple(map(float, steps)), target_score, scale)
    options = PredictOptions(method=method, target=target, **further)
    token = run.token if isinstance(run, Run) else None
    asked = PushOptions(private=private, overwrite=overwrite, create_pr=create_pr)
    request = _push_request(push_to, asked, token)
    destination = Destination(_path(output), overwrite, _path(work_dir), push=request)
    with one_thread_each():
        if isinstance(run, Run):
            return pipeline.predict_prepared(
                run.prepared, run.scope, options, destination, work.compute, work.hooks
            )
        place = RunRequest(str(run))
        return pipeline.predict_run(
            place, ScopeOptions(), options, destination, work.compute, work.hooks
        )


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    branch: str = DEFAULT_BRANCH,
    commit_message: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    create_pr: bool = False,
    token: str | None = None,
) -> PushResult:
    """Push a folder that `predict` or `extract` wrote to the Hub, in one commit or pull request.

    Raises:
        ManifestError, HeaderError: it is no finished output. PushError: the Hub refuses.
    """
    options = PushOptions(private, branch, commit_message, overwrite, dry_run, create_pr)
    return push_folder(Path(folder), repo, options, access=HubAccess(token))


def _push_request(
    push_to: str | None, options: PushOptions, token: str | None
) -> PushRequest | None:
    if push_to is None:
        return None
    return PushRequest(push_to, options, HubAccess(token), PushHooks())


def _path(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)

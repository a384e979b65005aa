"""Answer `report`: the spectrum of every matrix over all steps, and how linear it moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import StatisticsError, correlation, linear_regression, median

from torch import Tensor

from alpharl_hub.errors import TrajectoryError
from alpharl_hub.manifest import Notice, TrustRecord
from alpharl_hub.numerics.factors import Factors, quality_of
from alpharl_hub.numerics.path import plane_path, rank1_products
from alpharl_hub.prediction.factor_places import FactorPlace
from alpharl_hub.prediction.records import pool_trust, share_notice, trust_record
from alpharl_hub.preparation import Prepared, nearest_middle
from alpharl_hub.reporting.analysis import MatrixResult, WindowAnalyser
from alpharl_hub.reporting.sample import quick_sample
from alpharl_hub.results import (
    SCHEMA,
    ModuleSpectrum,
    ReportSummary,
    RunPath,
    ScoreLine,
    SpectralReport,
)
from alpharl_hub.scope import count_matrices
from alpharl_hub.windows.devices import choose_devices, fit_workers
from alpharl_hub.windows.plan import plan_analysis
from alpharl_hub.windows.streaming import Compute, Hooks, Reading, stream

_READ_AT_ONCE = 8
"""How many matrices' factors are read at a time: over a network each costs an answer's wait."""


@dataclass(frozen=True)
class Clockwork:
    """The steps and scores of a history."""

    steps_T: tuple[int, ...]
    scores_T: tuple[float, ...] | None
    score_name: str | None


def _accept(names: Sequence[str]) -> None:
    """Take any matrices."""


@dataclass(frozen=True)
class ReportRequest:
    """How much is read (`quick`: a sample), and how many singular values of each matrix.

    `check` is told the names of the matrices before any of them is read, and raises what it likes
    where they are not those that somebody wants to see.
    """

    quick: bool = False
    num_singular_values: int = 1
    check: Callable[[Sequence[str]], None] = _accept


@dataclass(frozen=True)
class Described:
    """One matrix, and the inner products of its rank-1 parts at all pairs of steps."""

    spectrum: ModuleSpectrum
    products_TT: Tensor


def report(
    prepared: Prepared, request: ReportRequest, compute: Compute, hooks: Hooks
) -> SpectralReport:
    """Read every matrix at every step once (or a sample of them), and describe it.

    Raises:
        ResourceError: memory does not suffice; told before anything is read.
        SourceError, FitError: something cannot be read, or holds NaN.
    """
    num_matrices = count_matrices(prepared.scope.matrices)
    whole, prepared = prepared, quick_sample(prepared) if request.quick else prepared
    trajectory = prepared.trajectory
    clockwork = Clockwork(
        trajectory.steps_T,
        prepared.scores_T,
        trajectory.scores.name if trajectory.scores else None,
    )
    windows = plan_analysis(prepared.scope.matrices)
    request.check([part.name for window in windows for part in window.parts])
    found: dict[str, Described] = {}
    lock = threading.Lock()

    def keep(factors: Mapping[str, Factors]) -> None:
        described = {name: describe(name, of_one, clockwork) for name, of_one in factors.items()}
        with lock:
            found.update(described)

    middle = nearest_middle(trajectory.steps_T)
    workers = fit_workers(windows, choose_devices(compute.devices), 0, 0, compute.memory_bytes)
    rank = request.num_singular_values
    work = WindowAnalyser(trajectory, prepared.scores_T, rank, middle, keep)
    reading = Reading(workers.devices, hooks)
    results = stream(trajectory, windows, work, reading, MatrixResult)
    sums = [result.direction for i in sorted(results) for result in results[i]]
    trust = trust_record(
        pool_trust(sums, trajectory.steps_T, middle), trajectory.steps_T[middle], None
    )
    described = [found[part.name] for window in windows for part in window.parts]
    notices = (*prepared.notices, *reading.moved.notices)
    answer = make_report(described, clockwork, num_matrices, trust, notices)
    return replace(answer, sampled=prepared is not whole)


def report_factors(place: FactorPlace, request: ReportRequest) -> SpectralReport:
    """Describe extracted factors; nothing else is read.

    Raises:
        SourceError, HeaderError, ManifestError: they lack something, or cannot be read.
        TrajectoryError: they are fewer triplets than singular values are asked for.
    """
    manifest = place.read_manifest()
    rank, asked = manifest.rank or 1, request.num_singular_values
    if asked > rank:
        raise TrajectoryError(
            f"{place.label}: {asked} singular values are asked for and {rank} were kept; extract "
            f"again with --rank {asked}, or ask for {rank}"
        )
    records = manifest.run.checkpoints
    scores = [record.score for record in records if record.score is not None]
    clockwork = Clockwork(
        tuple(record.step for record in records if record.step is not None),
        tuple(scores) if len(scores) == len(records) else None,
        manifest.run.score_name,
    )
    factors = place.open(len(records))
    names = factors.names()
    request.check(names)
    described = []
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for first in range(0, len(names), _READ_AT_ONCE):
            some = names[first : first + _READ_AT_ONCE]
            for name, of_one in zip(some, pool.map(factors.read, some), strict=True):
                described.append(describe(name, of_one.truncate(asked), clockwork))
    return make_report(described, clockwork, len(described), manifest.trust, manifest.warnings)


def describe(name: str, factors: Factors, clockwork: Clockwork) -> Described:
    """Describe one matrix by its first triplets."""
    quality = quality_of(factors, clockwork.steps_T, clockwork.scores_T)
    first = factors.truncate(1)
    share = first.rank1_share_T[-1]
    shape = (factors.u_TRM.shape[-1], factors.v_TRN.shape[-1])
    spectrum = ModuleSpectrum(
        name=name,
        shape=shape,
        sigma=tuple(first.sigma_TR[:, 0].tolist()),
        frobenius=tuple(factors.frobenius_T.tolist()),
        rank1_share=first.rank1_share_T,
        drift=factors.drift_T,
        q2_step=quality.q2_step,
        q2_score=quality.q2_score,
        r2_step_in_sample=quality.r2_step_in_sample,
        # A matrix has no more of them than its shorter side, whatever was asked for.
        singular_values=tuple(sorted(factors.sigma_TR[-1].tolist(), reverse=True)[: min(shape)]),
        stable_rank=1 / share if share else None,
    )
    return Described(spectrum, rank1_products(first))


def make_report(
    described: Sequence[Described],
    clockwork: Clockwork,
    num_matrices_in_run: int,
    trust: TrustRecord | None,
    notices: Sequence[Notice],
) -> SpectralReport:
    """Sum matrices up into a report."""
    modules = tuple(one.spectrum for one in described)
    shares = [module.rank1_share[-1] for module in modules]
    summary = ReportSummary(
        num_matrices=len(modules),
        num_matrices_in_run=num_matrices_in_run,
        rank1_share=_median(shares),
        drift_first_to_last=_median([module.drift[0] for module in modules]),
        q2_step=_median([module.q2_step for module in modules]),
        q2_score=_median([module.q2_score for module in modules]),
        r2_step_in_sample=_median([module.r2_step_in_sample for module in modules]),
        trust=trust,
    )
    return SpectralReport(
        schema=SCHEMA,
        steps=clockwork.steps_T,
        sampled=False,
        score_name=clockwork.score_name,
        modules=modules,
        summary=summary,
        path=_path(described),
        score_line=_score_line(clockwork),
        warnings=(*notices, *share_notice(shares)),
    )


def _path(described: Sequence[Described]) -> RunPath | None:
    if not described:
        return None
    # In the order of the report: whichever worker was first, the sum is the same to the bit.
    total_TT = described[0].products_TT.clone()
    for one in described[1:]:
        total_TT += one.products_TT
    path = plane_path(total_TT)
    return RunPath(path.points_T2, path.shares) if path else None


def _score_line(clockwork: Clockwork) -> ScoreLine | None:
    if clockwork.scores_T is None:
        return None
    name = clockwork.score_name or "score"
    steps_T, scores_T = [float(step) for step in clockwork.steps_T], clockwork.scores_T
    if len(set(steps_T)) < 2:
        return ScoreLine(name, scores_T, None, None, None)
    slope, intercept = linear_regression(steps_T, scores_T)
    try:
        r2 = correlation(steps_T, scores_T) ** 2
    except StatisticsError:  # equal scores correlate with nothing
        r2 = None
    return ScoreLine(name, scores_T, slope, intercept, r2)


def _median(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return median(present) if present else None

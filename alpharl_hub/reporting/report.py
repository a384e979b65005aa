"""Answer `report`: the spectrum of every matrix over all steps, and how linear it moves."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from alpharl_hub.manifest import Manifest, Notice, TrustRecord
from alpharl_hub.numerics.factors import Factors, quality_of
from alpharl_hub.output.factor_files import FactorFolder
from alpharl_hub.prediction.records import pool_trust, share_notice, trust_record
from alpharl_hub.preparation import Prepared, nearest_middle
from alpharl_hub.reporting.analysis import MatrixResult, WindowAnalyser
from alpharl_hub.reporting.sample import quick_sample
from alpharl_hub.results import SCHEMA, ModuleSpectrum, ReportSummary, SpectralReport
from alpharl_hub.scope import count_matrices
from alpharl_hub.windows.devices import choose_devices, fit_workers
from alpharl_hub.windows.plan import plan_analysis
from alpharl_hub.windows.streaming import Compute, Hooks, Reading, stream


@dataclass(frozen=True)
class Clockwork:
    """The steps and scores of a history."""

    steps_T: tuple[int, ...]
    scores_T: tuple[float, ...] | None
    score_name: str | None


def report(prepared: Prepared, quick: bool, compute: Compute, hooks: Hooks) -> SpectralReport:
    """Read every matrix at every step once (or a sample of them), and describe it.

    Raises:
        ResourceError: memory does not suffice; told before anything is read.
        SourceError, FitError: something cannot be read, or holds NaN.
    """
    num_matrices = count_matrices(prepared.scope.matrices)
    prepared = quick_sample(prepared) if quick else prepared
    trajectory = prepared.trajectory
    clockwork = Clockwork(
        trajectory.steps_T,
        prepared.scores_T,
        trajectory.scores.name if trajectory.scores else None,
    )
    windows = plan_analysis(prepared.scope.matrices)
    found: dict[str, ModuleSpectrum] = {}
    lock = threading.Lock()

    def keep(factors: Mapping[str, Factors]) -> None:
        described = {name: describe(name, of_one, clockwork) for name, of_one in factors.items()}
        with lock:
            found.update(described)

    middle = nearest_middle(trajectory.steps_T)
    workers = fit_workers(windows, choose_devices(compute.devices), 0, 0, compute.memory_bytes)
    work = WindowAnalyser(trajectory, prepared.scores_T, 1, middle, keep)
    reading = Reading(workers.devices, hooks)
    results = stream(trajectory, windows, work, reading, MatrixResult)
    sums = [result.direction for i in sorted(results) for result in results[i]]
    trust = trust_record(
        pool_trust(sums, trajectory.steps_T, middle), trajectory.steps_T[middle], None
    )
    modules = tuple(found[part.name] for window in windows for part in window.parts)
    notices = (*prepared.notices, *reading.moved.notices)
    return make_report(modules, clockwork, num_matrices, trust, notices)


def report_factors(folder: Path, manifest: Manifest) -> SpectralReport:
    """Describe an extract folder; nothing else is read.

    Raises:
        SourceError, ManifestError: the folder lacks something.
    """
    records = manifest.run.checkpoints
    scores = [record.score for record in records if record.score is not None]
    clockwork = Clockwork(
        tuple(record.step for record in records if record.step is not None),
        tuple(scores) if len(scores) == len(records) else None,
        manifest.run.score_name,
    )
    factors = FactorFolder(folder, len(records))
    modules = tuple(describe(name, factors.read(name), clockwork) for name in factors.names())
    return make_report(modules, clockwork, len(modules), manifest.trust, manifest.warnings)


def describe(name: str, factors: Factors, clockwork: Clockwork) -> ModuleSpectrum:
    """Describe one matrix by its first triplets."""
    quality = quality_of(factors, clockwork.steps_T, clockwork.scores_T)
    return ModuleSpectrum(
        name=name,
        shape=(factors.u_TRM.shape[-1], factors.v_TRN.shape[-1]),
        sigma=tuple(factors.sigma_TR[:, 0].tolist()),
        frobenius=tuple(factors.frobenius_T.tolist()),
        rank1_share=factors.rank1_share_T,
        drift=factors.drift_T,
        q2_step=quality.q2_step,
        q2_score=quality.q2_score,
        r2_step_in_sample=quality.r2_step_in_sample,
    )


def make_report(
    modules: tuple[ModuleSpectrum, ...],
    clockwork: Clockwork,
    num_matrices_in_run: int,
    trust: TrustRecord | None,
    notices: Sequence[Notice],
) -> SpectralReport:
    """Sum matrices up into a report."""
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
        sampled=len(modules) < num_matrices_in_run,
        score_name=clockwork.score_name,
        modules=modules,
        summary=summary,
        warnings=(*notices, *share_notice(shares)),
    )


def _median(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return median(present) if present else None

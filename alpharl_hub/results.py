"""What the library's functions answer with; the command line prints them or writes JSON."""

from __future__ import annotations

from dataclasses import dataclass

from alpharl_hub.manifest import Notice, TrustRecord

SCHEMA = 1


@dataclass(frozen=True)
class BaseAnswer:
    """The base that was found; `chosen_by` is option, step_0 or card."""

    source: str
    revision: str | None
    commit: str | None
    chosen_by: str


@dataclass(frozen=True)
class ListedCheckpoint:
    """One step of the run; what was not read of an unselected one is None."""

    step: int
    source: str
    revision: str | None
    commit: str | None
    folder: str
    selected: bool
    score: float | None
    dtype: str | None
    num_tensors: int | None
    num_bytes: int | None
    num_files: int | None


@dataclass(frozen=True)
class ScopeGroup:
    """Matrices in scope of one module group, such as self_attn.q_proj."""

    group: str
    num_matrices: int


@dataclass(frozen=True)
class ExcludedTensor:
    """A 2-D tensor out of scope, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class PlanCost:
    """What predict would cost; `output_bytes` is also the disk space that it needs."""

    readings: int
    read_bytes: int
    requests: int
    peak_memory_bytes: int
    output_bytes: int


@dataclass(frozen=True)
class Inspection:
    """The answer of `inspect`."""

    schema: int
    layout: str
    pattern: str
    base: BaseAnswer
    checkpoints: tuple[ListedCheckpoint, ...]
    score_name: str | None
    scope: tuple[ScopeGroup, ...]
    excluded: tuple[ExcludedTensor, ...]
    plan: PlanCost
    warnings: tuple[Notice, ...]


@dataclass(frozen=True)
class ModuleSpectrum:
    """One matrix over all steps; the tuples are in the order of steps.

    `drift`: angle in degrees between v_t and v_T, None for a zero delta. `q2_*` are leave-one-out;
    `r2_step_in_sample` is not, and decides nothing.
    """

    name: str
    shape: tuple[int, ...]
    sigma: tuple[float, ...]
    frobenius: tuple[float, ...]
    rank1_share: tuple[float | None, ...]
    drift: tuple[float | None, ...]
    q2_step: float | None
    q2_score: float | None
    r2_step_in_sample: float | None


@dataclass(frozen=True)
class ReportSummary:
    """The run in a few numbers: medians over matrices, at the last step."""

    num_matrices: int
    num_matrices_in_run: int
    rank1_share: float | None
    drift_first_to_last: float | None
    q2_step: float | None
    q2_score: float | None
    r2_step_in_sample: float | None
    trust: TrustRecord | None


@dataclass(frozen=True)
class SpectralReport:
    """The answer of `report`; `sampled`: only some of the layers were read."""

    schema: int
    steps: tuple[int, ...]
    sampled: bool
    score_name: str | None
    modules: tuple[ModuleSpectrum, ...]
    summary: ReportSummary
    warnings: tuple[Notice, ...]


@dataclass(frozen=True)
class PredictedOutput:
    """One predicted model: where it is, and its manifest's place."""

    target_step: float | None
    target_score: float | None
    path: str | None
    url: str | None
    commit: str | None
    manifest: str


@dataclass(frozen=True)
class Prediction:
    """The answer of `predict`."""

    schema: int
    outputs: tuple[PredictedOutput, ...]
    trust: TrustRecord | None
    warnings: tuple[Notice, ...]


@dataclass(frozen=True)
class Extraction:
    """The answer of `extract`."""

    schema: int
    path: str
    manifest: str
    num_matrices: int
    num_bytes: int
    warnings: tuple[Notice, ...]

"""What the library's functions answer with; the command line prints them or writes JSON."""

from __future__ import annotations

from dataclasses import dataclass

from alpharl_hub.manifest import AutoRecord, Notice, TrustRecord

SCHEMA = 1


@dataclass(frozen=True)
class BaseAnswer:
    """The base that was found; `chosen_by` is option, step_0, adapter or card."""

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
class CountCost:
    """About what reading another number of checkpoints would cost."""

    num_checkpoints: int
    read_bytes: int


@dataclass(frozen=True)
class PlanCost:
    """What predict would cost; `output_bytes` is also the disk space that it needs.

    `other_counts` is empty where the cost does not depend on the number of checkpoints.
    """

    readings: int
    read_bytes: int
    requests: int
    peak_memory_bytes: int
    output_bytes: int
    other_counts: tuple[CountCost, ...]


@dataclass(frozen=True)
class MeasuredRate:
    """How fast bytes of the last checkpoint came, over one connection; `num_bytes` were timed."""

    bytes_per_s: float
    num_bytes: int


@dataclass(frozen=True)
class Inspection:
    """The answer of `inspect`; `rate` is None where too little is to be read to measure one."""

    schema: int
    layout: str
    pattern: str
    base: BaseAnswer
    checkpoints: tuple[ListedCheckpoint, ...]
    score_name: str | None
    scope: tuple[ScopeGroup, ...]
    excluded: tuple[ExcludedTensor, ...]
    plan: PlanCost
    rate: MeasuredRate | None
    warnings: tuple[Notice, ...]


@dataclass(frozen=True)
class ModuleSpectrum:
    """One matrix over all steps; the tuples are in the order of steps.

    `drift`: angle in degrees between v_t and v_T, None for a zero delta. `q2_*` are leave-one-out;
    `r2_step_in_sample` is not, and decides nothing. `singular_values`: the largest of the last
    step, as many as were asked for, falling. `stable_rank`: |D|_F^2 / sigma_1^2 there.
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
    singular_values: tuple[float, ...]
    stable_rank: float | None


@dataclass(frozen=True)
class RunPath:
    """Where the run went, in the plane that holds most of it: a point per step, the base at (0, 0).

    It is that of the matrices' rank-1 parts together. `shares`: how much of their summed squared
    lengths lies along each of the two axes.
    """

    points: tuple[tuple[float, float], ...]
    shares: tuple[float, float]


@dataclass(frozen=True)
class ScoreLine:
    """The scores of the checkpoints, and their least-squares line on the step.

    `slope` (per step), `intercept` and `r2_in_sample` are None where no line can be drawn: fewer
    than two steps, or equal scores (then only r2 is).
    """

    name: str
    scores: tuple[float, ...]
    slope: float | None
    intercept: float | None
    r2_in_sample: float | None


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
    """The answer of `report`; `sampled`: only some of the matrices or checkpoints were read."""

    schema: int
    steps: tuple[int, ...]
    sampled: bool
    score_name: str | None
    modules: tuple[ModuleSpectrum, ...]
    summary: ReportSummary
    path: RunPath | None
    score_line: ScoreLine | None
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
class TensorAction:
    """What was done to some tensors: predicted, copied (from the last checkpoint), base or linear.

    `groups` are their module groups, or their names outside the layers, in the order of the model.
    """

    action: str
    num_tensors: int
    num_entries: int
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """The answer of `predict`: one output for each target; `auto` where `--method auto` chose."""

    schema: int
    outputs: tuple[PredictedOutput, ...]
    actions: tuple[TensorAction, ...]
    trust: TrustRecord | None
    warnings: tuple[Notice, ...]
    auto: AutoRecord | None


@dataclass(frozen=True)
class Extraction:
    """The answer of `extract`: where the factors are, in a folder, at a URL, or both."""

    schema: int
    path: str | None
    manifest: str
    num_matrices: int
    num_bytes: int
    warnings: tuple[Notice, ...]
    url: str | None
    commit: str | None


@dataclass(frozen=True)
class ComparedModel:
    """One of the models of a comparison; `dtype` is the code that holds most of its bytes."""

    source: str
    revision: str | None
    commit: str | None
    folder: str
    dtype: str


@dataclass(frozen=True)
class GroupDifference:
    """How A and B differ in the tensors of one module group; C is their base.

    `error_of_weights` is |A - B| / |B|. `error_of_update` is |A - B| / |B - C|, `cosine_of_updates`
    that of A - C and B - C, and `length_of_update` |A - C| / |B - C|, over the tensors that the
    base has too. None without a base, or where a denominator is zero.
    """

    group: str
    num_tensors: int
    num_entries: int
    equal_share: float | None
    error_of_weights: float | None
    error_of_update: float | None
    cosine_of_updates: float | None
    length_of_update: float | None


@dataclass(frozen=True)
class Comparison:
    """The answer of `compare`; `base_chosen_by` is option or manifest, None without a base."""

    schema: int
    first: ComparedModel
    second: ComparedModel
    base: ComparedModel | None
    base_chosen_by: str | None
    groups: tuple[GroupDifference, ...]
    pooled: GroupDifference
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]
    not_in_base: tuple[str, ...]
    not_floating: tuple[str, ...]
    warnings: tuple[Notice, ...]

"""alpharl.json: what was read, what was done to every tensor, and how to do it again.

A manifest is data. It names repos, steps and numbers, and never commands, output paths, push
targets, endpoints, tokens or devices: nothing in somebody else's manifest can act on the reader.
Local folders appear by name and fingerprint, not by path.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpharl_hub import strict_json
from alpharl_hub.errors import ManifestError

MANIFEST_NAME = "alpharl.json"
SCHEMA = 1
KIND_MODEL = "model"
KIND_FACTORS = "factors"


@dataclass(frozen=True)
class Notice:
    """One thing that the user should know; `code` is stable, `message` is for people."""

    code: str
    message: str


@dataclass(frozen=True)
class CheckpointRecord:
    """One checkpoint as it was read.

    `source` is a repo id, or a local folder's name; `fingerprint` stands for `commit` in the latter
    case. `folder` is the path inside the repo.
    """

    step: int | None
    source: str
    revision: str | None
    commit: str | None
    folder: str
    fingerprint: str | None
    score: float | None


@dataclass(frozen=True)
class RunRecord:
    """The trajectory: where the steps were found and which were used.

    `start` is the adapter of step 0, of a LoRA run that began with another product than zero.
    """

    layout: str
    pattern: str
    base: CheckpointRecord
    base_chosen_by: str
    checkpoints: tuple[CheckpointRecord, ...]
    score_name: str | None
    base_model: str | None
    private: bool
    include: str | None
    exclude: str | None
    keep_repeats: bool
    lower_is_better: bool = False
    start: CheckpointRecord | None = None


@dataclass(frozen=True)
class MethodRecord:
    """The method with all of its parameters; those that it does not know are None.

    `times` stand for the steps where another clock was used (cumulative learning rate, in units of
    the first update's), `target_time` then for the target step.
    """

    name: str
    paper: str
    url: str
    response: str
    target_step: float | None
    target_score: float | None
    rescale: bool | None
    scale: float | None
    fit_last: str | None
    anchor: str
    damping: float
    others: str
    dtype: str | None
    rank: int | None = None
    keep_residual: bool | None = None
    times: tuple[float, ...] | None = None
    target_time: float | None = None
    as_adapter: bool | None = None


@dataclass(frozen=True)
class AutoRecord:
    """What `--method auto` saw, and what it made of it.

    `asked_step` is what was asked for, None for as far as is safe; `ratio` how far it goes, as a
    multiple of the last step (1: it would keep the last checkpoint); `bound_by` what set the limit;
    `line` and `vertex` are the limits of the scores' logit line and parabola; `num_problems` the
    number of problems of a score; `forced`: it was told to go on.
    """

    asked_step: float | None
    ratio: float
    bound_by: str
    cosine: float | None
    cosine_all_entries: float | None
    share_of_entries: float | None
    floor: float | None
    speed: float | None
    middle_step: int
    line: float | None
    vertex: float | None
    num_problems: int | None
    clock: str
    forced: bool
    words: tuple[str, ...]


@dataclass(frozen=True)
class SweepRecord:
    """How a size was chosen: the score of every candidate.

    `axis` is scale (a multiple of the predicted increment; 0 is the last checkpoint) or step.
    """

    axis: str
    values: tuple[float, ...]
    scores: tuple[float, ...]
    best_value: float
    last_value: float | None
    last_score: float | None
    lower_is_better: bool


@dataclass(frozen=True)
class TensorRecord:
    """What was done to one tensor, and what was seen.

    `action` is predicted, copied (from the last checkpoint), base or linear. `sigma`,
    `rank1_share` (0 to 1) and `frobenius` are those of the last delta; `rounding_loss` is the norm
    lost in rounding over the norm of the update; `unchanged` the share of entries equal to the base
    """

    name: str
    action: str
    dtype: str
    shape: tuple[int, ...]
    sigma: float | None
    frobenius: float | None
    rank1_share: float | None
    q2_step: float | None
    q2_score: float | None
    r2_step_in_sample: float | None
    certified: bool | None
    rounding_loss: float | None
    unchanged: float | None


@dataclass(frozen=True)
class TrustRecord:
    """How steady the run's direction is, and how far that carries (a ratio of steps)."""

    cosine: float | None
    cosine_all_entries: float | None
    share_of_entries: float | None
    floor: float | None
    speed: float | None
    middle_step: int | None
    cap: float
    requested: float | None
    verdict: str


@dataclass(frozen=True)
class RoundingRecord:
    """Rounding over the whole model, pooled by sums of squares."""

    loss: float | None
    unchanged: float | None


@dataclass(frozen=True)
class VersionsRecord:
    """The software and instruction set that results are reproducible for, to the bit."""

    alpharl_hub: str
    torch: str
    compute: str


@dataclass(frozen=True)
class StatedRecord:
    """What the card of the run or of its base states: words of others, checked where used."""

    license: tuple[str, ...]
    license_name: str | None
    license_link: str | None
    language: tuple[str, ...]
    datasets: tuple[str, ...]


@dataclass(frozen=True)
class CardRecord:
    """What the card says that was not read from weights, so that it can be made anew.

    `license` is the user's own word on it; `files_from_base`: the copied files are the base's.
    """

    license: str | None
    run: StatedRecord
    base: StatedRecord
    files_from_base: bool


@dataclass(frozen=True)
class ScoreRecord:
    """A score that somebody measured of this very model and entered by hand.

    `dataset` is a name, or a data set's id on the Hub; `task` its task of the Hub's leaderboard.
    """

    dataset: str
    task: str | None
    metric: str | None
    value: float


@dataclass(frozen=True)
class BacktestRow:
    """One prediction of a step that exists, from the steps up to `fitted_until`.

    `ratio` is `step` over `fitted_until`; `error` and `cosine` are those of the smallest weights,
    as `backtest` defines them (an error of 1: as far off as the last checkpoint that was fitted).
    """

    fitted_until: int
    step: int
    ratio: float
    method: str
    error: float | None
    cosine: float | None


@dataclass(frozen=True)
class BacktestRecord:
    """What a backtest of the run answered; `steps` are all that it read.

    `horizon` is how far is safe, as a multiple of `last_step`, the last one that it did not keep as
    a truth; `code`, `sentence` and `horizon` are its verdict. `sampled`: it read some layers only.
    """

    steps: tuple[int, ...]
    last_step: int
    sampled: bool
    code: str
    horizon: float
    sentence: str
    rows: tuple[BacktestRow, ...]


@dataclass(frozen=True)
class Manifest:
    """The whole document; `kind` is "model" (of predict) or "factors" (of extract).

    `rank` is the method's; of an adapter the largest of its updates', and `tensors` are then those
    of the base that it changes.
    """

    schema: int
    kind: str
    versions: VersionsRecord
    run: RunRecord
    method: MethodRecord | None
    rank: int | None
    trust: TrustRecord | None
    rounding: RoundingRecord | None
    tensors: tuple[TensorRecord, ...]
    copied_files: tuple[str, ...]
    warnings: tuple[Notice, ...]
    auto: AutoRecord | None = None
    sweep: SweepRecord | None = None
    card: CardRecord | None = None
    scores: tuple[ScoreRecord, ...] = ()
    backtest: BacktestRecord | None = None

    def to_json(self) -> str:
        """Return the document, indented, with a newline at the end."""
        return strict_json.dump(self, indent=1) + "\n"


def read_manifest(text: str | bytes, where: str) -> Manifest:
    """Read a manifest; `where` names it in errors.

    Raises:
        ManifestError: not JSON, not a manifest, or of a schema that this version does not know.
    """
    document = strict_json.parse(text, where)
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA or isinstance(found, bool):
        raise ManifestError(
            f"{where}: schema {strict_json.shown_value(found)} is not {SCHEMA}; it was not written "
            "by this version"
        )
    manifest = strict_json.from_plain(Manifest, document, where)
    if manifest.kind not in (KIND_MODEL, KIND_FACTORS):
        raise ManifestError(
            f"{where}: unknown kind {strict_json.shown(manifest.kind)}; it was not written by this "
            "version"
        )
    return manifest

"""What a backtest answers: every test with its error, the direction of every window, a verdict.

F is the last checkpoint of a window, W a later checkpoint (a truth), W_hat a prediction of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpharl_hub.manifest import Notice

SAFE, KEEP, UNKNOWN = "safe", "keep", "unknown"
"""What a verdict comes down to: extrapolate, keep the last checkpoint, or nobody knows."""

STEPS = "steps"
"""The plain clock."""


@dataclass(frozen=True)
class Closeness:
    """`error` is |W_hat - W| / |W - W_F| (1: as far off as W_F itself, 0: exact).

    `cosine` is that of W_hat - W_F and W - W_F. None where there is nothing to divide by.
    """

    error: float | None
    cosine: float | None


@dataclass(frozen=True)
class MethodTest:
    """One prediction: on the entries that the stored dtype resolves, and over all entries."""

    method: str
    resolved: Closeness
    all_entries: Closeness


@dataclass(frozen=True)
class TruthTest:
    """All predictions of one later checkpoint; `ratio` is its step in units of the window's last.

    `share_of_entries` says how many entries count as resolved (the smallest of each matrix), and
    `floor` how much of |W - W_F| rounding could make up on them; None where there are too few.
    """

    step: int
    ratio: float
    score: float | None
    share_of_entries: float | None
    floor: float | None
    methods: tuple[MethodTest, ...]


@dataclass(frozen=True)
class WindowDirection:
    """What the direction of the update says of checkpoints up to `last_step`, and they alone.

    `cap` is the largest safe multiple of the last step by the weights alone, `auto_ratio` the one
    that `--method auto` would have taken with the scores known until then, and `bound_by` what set
    it.
    """

    first_step: int
    last_step: int
    num_checkpoints: int
    middle_step: int
    score: float | None
    cosine: float | None
    cosine_all_entries: float | None
    share_of_entries: float | None
    floor: float | None
    cap: float
    auto_ratio: float
    bound_by: str


@dataclass(frozen=True)
class WindowTest:
    """One window of early checkpoints, and what was predicted from it; `clock` is auto's."""

    direction: WindowDirection
    clock: str
    truths: tuple[TruthTest, ...]


@dataclass(frozen=True)
class ScoredModel:
    """The score of one model; `log` is what its evaluation printed."""

    model: str
    score: float
    seconds: float
    log: str


@dataclass(frozen=True)
class ScoredTest:
    """Scores of the predictions of one truth, of that truth, and of the last checkpoint before."""

    last_step: int
    truth_step: int
    ratio: float
    lower_is_better: bool
    models: tuple[ScoredModel, ...]


@dataclass(frozen=True)
class Verdict:
    """What follows, in one sentence; `code` is SAFE, KEEP or UNKNOWN.

    `horizon` is how far is safe as a multiple of the last step (1 unless SAFE), `tested_ratio` the
    largest multiple that the run itself could test, None where it could test nothing.
    """

    code: str
    horizon: float
    tested_ratio: float | None
    sentence: str


@dataclass(frozen=True)
class Backtest:
    """The answer of `backtest`; `sampled`: only some of the layers were read.

    `now` is the direction of the whole run, `scored` what --evaluate found.
    """

    schema: int
    steps: tuple[int, ...]
    truth_steps: tuple[int, ...]
    sampled: bool
    num_matrices: int
    num_matrices_in_run: int
    score_name: str | None
    verdict: Verdict
    now: WindowDirection
    windows: tuple[WindowTest, ...]
    scored: ScoredTest | None
    warnings: tuple[Notice, ...]

"""What a method of prediction is, and which ones there are.

T checkpoints of the history, W_0 the base, W_t the weights at step s_t, D_t = W_t - W_0 the delta,
W_hat the predicted weights. A method sees the deltas of one tensor one after another, in the order
of steps, and keeps only what it needs of them; nothing here reads or writes anything.

Importing this module does not import torch; `make_method` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, cast

from alpharl_hub.errors import FitError

if TYPE_CHECKING:
    from torch import Tensor

    from alpharl_hub.methods.combination import Mixture
    from alpharl_hub.numerics.factors import MatrixQuality
    from alpharl_hub.numerics.low_rank import LowRank

AUTO = "auto"
"""Asks for a method and a horizon to be chosen; what it chooses is one of METHODS."""


@dataclass(frozen=True)
class MethodInfo:
    """One published method: its name on the command line, its paper, and the module that has it.

    `options` are the fields of `MethodOptions` that it obeys; the others have no meaning for it.
    `looks_ahead` is False where there is no target to ask for.
    """

    name: str
    paper: str
    url: str
    summary: str
    options: tuple[str, ...]
    module: str
    looks_ahead: bool = True


METHODS: Mapping[str, MethodInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            MethodInfo(
                name="alpharl",
                paper="On Predictability of Reinforcement Learning Dynamics "
                "for Large Language Models",
                url="https://arxiv.org/abs/2510.00553",
                summary="leading singular triplets of every matrix's update, their left vectors "
                "extrapolated by PLS",
                options=("rescale", "rank", "keep_residual", "fit_last"),
                module="alpharl_hub.methods.alpharl",
            ),
            MethodInfo(
                name="relex",
                paper="You Only Need Minimal RLVR Training: Extrapolating LLMs via Rank-1 "
                "Trajectories",
                url="https://arxiv.org/abs/2605.21468",
                summary="every tensor's path in training time reduced to its leading directions, "
                "each on a line",
                options=("rank", "fit_last"),
                module="alpharl_hub.methods.relex",
            ),
            MethodInfo(
                name="linear",
                paper="Not All Steps are Informative: On the Linearity of LLMs' RLVR Training",
                url="https://arxiv.org/abs/2601.04537",
                summary="every weight but the norms follows the line through two checkpoints",
                options=("scale", "fit_last"),
                module="alpharl_hub.methods.linear",
            ),
            MethodInfo(
                name="ols",
                paper="Not All Steps are Informative: On the Linearity of LLMs' RLVR Training",
                url="https://arxiv.org/abs/2601.04537",
                summary="every weight follows its least-squares line over the checkpoints",
                options=("fit_last",),
                module="alpharl_hub.methods.ols",
            ),
            MethodInfo(
                name="average",
                paper="Early Weight Averaging meets High Learning Rates for LLM Pre-training",
                url="https://arxiv.org/abs/2306.03241",
                summary="the mean of the last checkpoints: looks nowhere ahead, and is safe",
                options=("fit_last",),
                module="alpharl_hub.methods.average",
                looks_ahead=False,
            ),
        )
    }
)


@dataclass(frozen=True)
class MethodOptions:
    """What a user may set of a method; `MethodInfo.options` says which fields concern it.

    `rescale`: give the leading part the norm of the whole delta (not with `keep_residual`).
    `rank`: how many directions are kept. `keep_residual`: leave the rest of the last delta where it
    is. `scale`: a multiple of the last delta instead of a target step. `fit_last`: the window that
    is fitted, a count of checkpoints (int) or a share of the span from the first step to the last
    (float in (0, 1]); None: the method's own choice.
    """

    rescale: bool = True
    rank: int = 1
    keep_residual: bool = False
    scale: float | None = None
    fit_last: int | float | None = None


@dataclass(frozen=True)
class Clock:
    """What is extrapolated against: steps, or scores, of the T checkpoints of the history.

    `steps_T` rise strictly and do not contain the base. With `by_score` the response of a fit is
    the score. `scores_T` may be given without: then they only enter the quality of the fit.
    `times_T` stands for the steps where another clock runs more evenly (cumulative learning rate).
    """

    steps_T: tuple[int, ...]
    scores_T: tuple[float, ...] | None = None
    by_score: bool = False
    times_T: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what no caller may pass: raises ValueError, not an error for users."""
        if not self.steps_T or any(
            b <= a for a, b in zip(self.steps_T, self.steps_T[1:], strict=False)
        ):
            raise ValueError(f"steps must rise strictly: {self.steps_T}")
        for values in (self.scores_T, self.times_T):
            if values is not None and len(values) != len(self.steps_T):
                raise ValueError(f"{len(values)} values for {len(self.steps_T)} steps")
        if self.by_score and self.scores_T is None:
            raise ValueError("by_score needs scores_T")

    @property
    def responses_T(self) -> tuple[float, ...]:
        """The steps (or times), or with `by_score` the scores, of the T checkpoints."""
        if self.by_score and self.scores_T is not None:
            return self.scores_T
        if self.times_T is not None:
            return self.times_T
        return tuple(float(step) for step in self.steps_T)

    @property
    def last(self) -> float:
        """The response of the last checkpoint."""
        return self.responses_T[-1]


class Predictor(Protocol):
    """Everything that was learnt of one tensor, ready to answer."""

    def predict_delta(self, response: float) -> Mixture | LowRank:
        """Give W_hat - W_0 at a step (or score): fp32, the tensor's own shape.

        Raises FitError, naming the tensor, where the fit has no answer.
        """
        ...

    def quality(self) -> MatrixQuality | None:
        """Give the spectrum and the quality of fit of a matrix; None where there is none."""
        ...


class TensorFit(Predictor, Protocol):
    """A predictor that is still learning."""

    def observe(self, delta: Tensor | LowRank) -> None:
        """Take in the next delta (fp32, the tensor's own shape, contiguous).

        Called once for each entry of `Method.observed`, in that order. The memory of a dense delta
        is the caller's, who may reuse it afterwards.
        """
        ...


class Method(Protocol):
    """One method with its options and its clock, the same for every tensor of a run."""

    @property
    def observed(self) -> tuple[int, ...]:
        """The positions in the history (0 to T - 1, rising) whose deltas it wants to see."""
        ...

    @property
    def num_deltas_held(self) -> int:
        """How many fp32 copies of a tensor a fit holds while it waits (for planning memory)."""
        ...

    @property
    def meets_entries(self) -> bool:
        """Whether the entries of a tensor meet in the fit, so that it must be seen as a whole."""
        ...

    def covers(self, name: str, shape: tuple[int, ...], is_matrix: bool) -> bool:
        """Whether it predicts this floating tensor; `is_matrix`: within the general scope."""
        ...

    def fit(self, name: str, shape: tuple[int, ...]) -> TensorFit:
        """Start on one tensor, or one slice of a stack; the name seeds and appears in errors."""
        ...


def make_method(name: str, clock: Clock, options: MethodOptions) -> Method:
    """Build the method `name` of `METHODS`.

    Raises KeyError for an unknown name, and FitError when clock and options leave no answer: too
    few checkpoints, a flat or falling response, an empty window.
    """
    module = importlib.import_module(METHODS[name].module)
    return cast(Method, module.make(clock, options))


def first_of_window(
    steps_T: tuple[int, ...], fit_last: int | float | None, min_checkpoints: int
) -> int:
    """Return the position of the first checkpoint of the window `fit_last`; 0 without one.

    Raises:
        FitError: the window is none, or holds too few checkpoints.
    """
    if fit_last is None:
        first = 0
    elif isinstance(fit_last, int):
        first = len(steps_T) - fit_last
    else:
        if not 0 < fit_last <= 1:
            raise FitError(f"--fit-last {fit_last:g}: a share lies between 0 and 100%")
        begin = steps_T[-1] - fit_last * (steps_T[-1] - steps_T[0])
        first = next(i for i, step in enumerate(steps_T) if step >= begin - 1e-9)
    if not 0 <= first <= len(steps_T) - min_checkpoints:
        named = "one" if min_checkpoints == 1 else "two"
        raise FitError(
            f"--fit-last {fit_last:g}: the window needs {named} of the {len(steps_T)} checkpoints"
            if fit_last is not None
            else f"at least {min_checkpoints} checkpoints are needed and there is {len(steps_T)}; "
            "select more with --steps, or take --method linear"
        )
    return first

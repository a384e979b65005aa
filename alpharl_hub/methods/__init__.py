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

if TYPE_CHECKING:
    from torch import Tensor

    from alpharl_hub.numerics.factors import MatrixQuality


@dataclass(frozen=True)
class MethodInfo:
    """One published method: its name on the command line, its paper, and the module that has it.

    `options` are the fields of `MethodOptions` that it obeys; the others have no meaning for it.
    """

    name: str
    paper: str
    url: str
    summary: str
    options: tuple[str, ...]
    module: str


METHODS: Mapping[str, MethodInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            MethodInfo(
                name="alpharl",
                paper="On Predictability of Reinforcement Learning Dynamics "
                "for Large Language Models",
                url="https://arxiv.org/abs/2510.00553",
                summary="rank-1 part of every matrix's update, its left vector extrapolated by PLS",
                options=("rescale",),
                module="alpharl_hub.methods.alpharl",
            ),
            MethodInfo(
                name="linear",
                paper="Not All Steps are Informative: On the Linearity of LLMs' RLVR Training",
                url="https://arxiv.org/abs/2601.04537",
                summary="every weight but the norms follows the line through two checkpoints",
                options=("scale", "fit_last"),
                module="alpharl_hub.methods.linear",
            ),
        )
    }
)


@dataclass(frozen=True)
class MethodOptions:
    """What a user may set of a method; `MethodInfo.options` says which fields concern it.

    `rescale`: give the rank-1 part the norm of the whole delta. `scale`: a multiple of the last
    delta instead of a target step. `fit_last`: the window of the line, a count of checkpoints (int)
    or a share of the span from the first step to the last (float in (0, 1]).
    """

    rescale: bool = True
    scale: float | None = None
    fit_last: int | float | None = None


@dataclass(frozen=True)
class Clock:
    """What is extrapolated against: steps, or scores, of the T checkpoints of the history.

    `steps_T` rise strictly and do not contain the base. `target` is a step, or a score when
    `by_score` is set; with `MethodOptions.scale` it is scale times the last step. `scores_T` may be
    given without `by_score`: then they only enter the quality of the fit.
    """

    steps_T: tuple[int, ...]
    target: float
    scores_T: tuple[float, ...] | None = None
    by_score: bool = False

    def __post_init__(self) -> None:
        """Refuse what no caller may pass: raises ValueError, not an error for users."""
        if not self.steps_T or any(
            b <= a for a, b in zip(self.steps_T, self.steps_T[1:], strict=False)
        ):
            raise ValueError(f"steps must rise strictly: {self.steps_T}")
        if self.scores_T is not None and len(self.scores_T) != len(self.steps_T):
            raise ValueError(f"{len(self.scores_T)} scores for {len(self.steps_T)} steps")
        if self.by_score and self.scores_T is None:
            raise ValueError("by_score needs scores_T")

    @property
    def responses_T(self) -> tuple[float, ...]:
        """The steps, or with `by_score` the scores, of the T checkpoints."""
        if self.by_score and self.scores_T is not None:
            return self.scores_T
        return tuple(float(step) for step in self.steps_T)

    @property
    def last(self) -> float:
        """The response of the last checkpoint."""
        return self.responses_T[-1]


class Predictor(Protocol):
    """Everything that was learnt of one tensor, ready to answer."""

    def predict_delta(self, response: float) -> Tensor:
        """Give W_hat - W_0 at a step (or score): fp32, the tensor's own shape.

        Raises FitError, naming the tensor, where the fit has no answer.
        """
        ...

    def quality(self) -> MatrixQuality | None:
        """Give the spectrum and the quality of fit of a matrix; None where there is none."""
        ...


class TensorFit(Predictor, Protocol):
    """A predictor that is still learning."""

    def observe(self, delta: Tensor) -> None:
        """Take in the next delta (fp32, the tensor's own shape, contiguous).

        Called once for each entry of `Method.observed`, in that order. The memory of the delta is
        the caller's, who may reuse it afterwards.
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

    def covers(self, name: str, shape: tuple[int, ...], is_matrix: bool) -> bool:
        """Whether it predicts this floating tensor; `is_matrix`: within the general scope."""
        ...

    def fit(self, name: str, shape: tuple[int, ...]) -> TensorFit:
        """Start on one tensor, or one slice of a stack; the name seeds and appears in errors."""
        ...


def make_method(name: str, clock: Clock, options: MethodOptions) -> Method:
    """Build the method `name` of `METHODS`.

    Raises KeyError for an unknown name, and FitError when clock and options leave no answer: too
    few checkpoints, a target before the history, a flat or falling response, an empty window.
    """
    module = importlib.import_module(METHODS[name].module)
    return cast(Method, module.make(clock, options))

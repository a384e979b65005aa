"""The options that say how to predict; `inspect` takes them too, to plan the same thing."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from alpharl_hub.cli.help import HOW, OUTPUT, Command, in_group
from alpharl_hub.cli.options import add_options
from alpharl_hub.errors import did_you_mean
from alpharl_hub.methods import AUTO, METHODS


class FitLast(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A count of checkpoints such as 5, or a share of the step span such as 50%."""

    name = "count or share"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> int | float:
        """Parse into a count (int) or a share (float)."""
        if isinstance(value, int | float):
            return value
        text = str(value).strip()
        try:
            if text.endswith("%"):
                return float(text[:-1]) / 100
            return int(text) if text.isdecimal() else float(text)
        except ValueError:
            self.fail(f"{text!r}: write a count such as 5 or a share such as 50%", param, context)


class NumberList(click.ParamType):  # type: ignore[type-arg]
    """One number such as 500, or several such as 100,200,500; `what` they are called."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.name = f"{what},..."

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> tuple[float, ...]:
        """Parse into steps in the order given."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: write one {self.what}, or several as 1,2,5", param, context)
        if min(numbers) < 0:
            self.fail(f"{value!r}: a {self.what} is not negative", param, context)
        return numbers


class MethodName(click.Choice[str]):
    """One of the methods; of others the nearest is offered."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Say which there are, and which was perhaps meant."""
        said = super().get_invalid_choice_message(value, ctx).removesuffix(".")
        return said + did_you_mean(str(value), self.choices)


def predict_options(command: Command) -> Command:
    """Add target, method and what surrounds the method."""
    return target_options(method_options(surrounding_options(command)))


def target_options(command: Command) -> Command:
    """Add what says how far."""
    return add_options(
        (
            click.option(
                "--target-step",
                type=NumberList("step"),
                default=(),
                help="Predict this step; of several, DIR/step_N or branch step_N each.",
            ),
            click.option("--target-score", type=float, help="Predict where this score is reached."),
            click.option(
                "--method",
                type=MethodName([AUTO, *METHODS]),
                default=AUTO,
                show_default=True,
                help="How to go on; auto looks first how far is safe.",
            ),
        ),
        command,
        HOW,
    )


def method_options(command: Command) -> Command:
    """Add what some of the methods take."""
    return add_options(
        (
            click.option(
                "--rank",
                type=click.IntRange(min=1),
                default=1,
                show_default=True,
                help="alpharl, relex: how many directions are kept.",
            ),
            click.option(
                "--rescale/--no-rescale",
                default=True,
                help="alpharl: give the kept part the norm of the whole update.",
            ),
            click.option(
                "--keep-residual",
                is_flag=True,
                help="alpharl: leave the rest of the last update where it is.",
            ),
            click.option("--scale", type=float, help="linear: base + SCALE x the last update."),
            click.option(
                "--fit-last",
                type=FitLast(),
                help="Fit the last 5 checkpoints, or those of the last 50% of the steps.  [all]",
            ),
        ),
        command,
        HOW,
    )


def surrounding_options(command: Command) -> Command:
    """Add what follows every method."""
    return add_options(
        (
            click.option(
                "--anchor",
                type=click.Choice(["base", "last"]),
                default="base",
                show_default=True,
                help="Predict from the base, or add the increment to the last checkpoint.",
            ),
            click.option(
                "--damping",
                type=click.FloatRange(0, 1, min_open=True),
                default=1.0,
                show_default=True,
                help="Go only this share of the way from the last checkpoint.",
            ),
            click.option(
                "--others",
                type=click.Choice(["last", "base", "linear"]),
                default="last",
                show_default=True,
                help="Where tensors out of the method's scope come from.",
            ),
            click.option(
                "--dtype",
                type=click.Choice(["float32", "float16", "bfloat16"]),
                help="Store the result like this.  [as the last checkpoint]",
            ),
            click.option(
                "--force",
                is_flag=True,
                help="Go on though the base looks wrong, or auto would keep the last checkpoint.",
            ),
        ),
        command,
        HOW,
    )


as_adapter_option = in_group(
    OUTPUT,
    click.option(
        "--as-adapter",
        is_flag=True,
        help="Write a LoRA adapter instead of a model, where the prediction has a low rank.",
    ),
)
"""What `predict` and `inspect` take beside the others."""


REPEATED_OPTIONS = (
    "as_adapter",
    "target_step",
    "target_score",
    "method",
    "rescale",
    "rank",
    "keep_residual",
    "scale",
    "fit_last",
    "anchor",
    "damping",
    "others",
    "dtype",
    "steps",
    "until",
    "at",
    "scores",
    "score_key",
    "include",
    "exclude",
)
"""What a manifest says by itself."""


def refuse_given(names: tuple[str, ...], why: str) -> None:
    """Refuse options that the user gave though they can have no effect.

    Raises:
        click.UsageError: names the first.
    """
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{why}: leave out --{name.replace('_', '-')}")

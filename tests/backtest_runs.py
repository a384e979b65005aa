"""Runs on disk with enough weights for a backtest, and what numpy says of predictions of them.

Everything here is computed in float64 from the weights as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import Tensor
from trajectories import alpharl_truth, linear_truth, model_config, write_run

from alpharl_hub.cli import AlphaRLGroup
from alpharl_hub.cli.backtest import backtest

STEPS = (8, 15, 30, 36, 50, 64, 80, 100)
"""Uneven, as public runs are."""

SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (300, 500),
    "model.layers.0.mlp.up_proj.weight": (450, 320),
    "model.layers.1.self_attn.q_proj.weight": (320, 500),
}
"""454,000 weights: 2 % of them, and half as many, are enough to be read."""

Course = Callable[[float], tuple[float, ...]]
"""How far along each of a few random directions the weights have gone at a step."""

MAIN = AlphaRLGroup("alpharl-hub")
MAIN.add_command(backtest)


def straight(step: float) -> tuple[float, ...]:
    """A line: as far as the step."""
    return (step,)


def bending(step: float) -> tuple[float, ...]:
    """A direction that turns slowly, and a part that levels off."""
    return (step, 0.004 * step**2, 20 * step / (step + 40))


def turning_at(turn: float) -> Course:
    """A line that ends at a step and goes on at a right angle, a little back as well."""
    return lambda step: (min(step, turn) - 0.4 * max(0.0, step - turn), max(0.0, step - turn))


def write(
    where: Path,
    course: Course = straight,
    dtype: torch.dtype = torch.float32,
    noise: float = 0.0,
    size: float = 2e-6,
    steps: Sequence[int] = STEPS,
) -> list[str]:
    """Write a run; returns RUN and --base as typed.

    `size` is the distance of a weight at each step of a line, `noise` that of every checkpoint from
    its place on the course.
    """
    rng = np.random.default_rng(3)
    base = {name: 0.02 * rng.normal(size=shape) for name, shape in SHAPES.items()}
    directions = {name: rng.normal(size=(3, *shape)) for name, shape in SHAPES.items()}

    def at(step: int) -> dict[str, Tensor]:
        shake = np.random.default_rng(1000 + step)
        tensors = {"model.norm.weight": torch.ones(8)}
        for name, start in base.items():
            moved = start
            if step:
                ways = zip(course(step), directions[name], strict=False)
                moved = moved + size * sum(far * way for far, way in ways)
                moved = moved + noise * shake.normal(size=start.shape)
            tensors[name] = torch.from_numpy(moved)
        return tensors

    run = write_run(where, steps, at, dtype=dtype, config=model_config())
    return run.arguments()


def backtest_command(*arguments: str | Path) -> Result:
    """Run `backtest` as a shell would."""
    return CliRunner().invoke(MAIN, ["backtest", *(str(argument) for argument in arguments)])


def wanted(
    method: str, base: np.ndarray, fitted: Sequence[np.ndarray], steps: Sequence[int], target: int
) -> np.ndarray:
    """The prediction of a method."""
    last = fitted[-1]
    since_half = [i for i, s in enumerate(steps) if s >= steps[-1] - (steps[-1] - steps[0]) / 2]
    if method == "last":
        return last
    if method == "average":
        return np.mean([fitted[i] for i in since_half], axis=0)
    if method == "linear":
        return linear_truth(base, fitted, steps, target)
    if method == "linear-half":
        return linear_truth(base, fitted, steps, target, first=since_half[0])
    if method == "ols":
        slope, mean, mean_step = _line(fitted, steps)
        return mean + (target - mean_step) * slope
    if method == "auto":
        middle = min(range(len(steps)), key=lambda i: abs(steps[i] - steps[-1] / 2))
        slope, _, _ = _line(fitted[middle:], steps[middle:])
        return last + (target - steps[-1]) * slope
    if method == "relex":
        return _relex(base, fitted, steps, target)
    assert method == "alpharl"
    return alpharl_truth(base, fitted, steps, target)


def _line(
    weights: Sequence[np.ndarray], steps: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Slope, mean and mean step of every weight's line."""
    design = np.vander(np.asarray(steps, dtype=np.float64), 2)
    rows = np.stack([w.ravel() for w in weights])
    solution = np.linalg.lstsq(design, rows, rcond=None)[0]
    mean = np.mean(weights, axis=0)
    return solution[0].reshape(mean.shape), mean, float(np.mean(steps))


def _relex(
    base: np.ndarray, fitted: Sequence[np.ndarray], steps: Sequence[int], target: int
) -> np.ndarray:
    """The first right singular vector of the deltas, its coefficients on a line."""
    rows = np.stack([(w - base).ravel() for w in fitted])
    direction = np.linalg.svd(rows, full_matrices=False)[2][0]
    line = np.polyfit(steps, rows @ direction, 1)
    return base + (np.polyval(line, target) * direction).reshape(base.shape)


def bf16_spacing(values: np.ndarray) -> np.ndarray:
    """Distance of bf16 numbers to their neighbours, by counting bits up by one."""
    bits = torch.from_numpy(np.abs(values)).to(torch.bfloat16).view(torch.int16)
    upper, lower = (bits + 1).view(torch.bfloat16), bits.view(torch.bfloat16)
    return (upper.double() - lower.double()).numpy()


def smallest(base: np.ndarray, share: float) -> np.ndarray:
    """Flat indices of the weights of smallest magnitude."""
    return np.argsort(np.abs(base).ravel(), kind="stable")[: round(share * base.size)]


def distance(
    method: str,
    matrices: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]],
    steps: Sequence[int],
    fitted: Sequence[int],
    truth: int,
    share: float | None = None,
) -> tuple[float, float]:
    """Error and cosine of one prediction, pooled over matrices; positions index `steps`."""
    error = truth_move = move = product = 0.0
    for base, weights in matrices:
        here = [weights[i] for i in fitted]
        found = wanted(method, base, here, [steps[i] for i in fitted], steps[truth])
        chosen: Any = slice(None) if share is None else smallest(base, share)
        last, goal, guess = (w.ravel()[chosen] for w in (here[-1], weights[truth], found))
        error += np.sum((guess - goal) ** 2)
        truth_move += np.sum((goal - last) ** 2)
        move += np.sum((guess - last) ** 2)
        product += np.sum((guess - last) * (goal - last))
    cosine = product / np.sqrt(truth_move * move) if move > 0 else float("nan")
    return float(np.sqrt(error / truth_move)), float(cosine)


def save(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write the weights of a model folder again."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

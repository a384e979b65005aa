"""The rank-1 kernel against torch, one thread, cold; and whether its error estimate holds.

Letters: M rows, N columns, K planted directions.
Convention: matrices fp32, orthonormal directions made in fp32; true errors against fp64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from alpharl_hub.numerics.spectral import leading_triplets
from tests.bench.figures import Figure, Table, Target, at_least, at_most
from tests.bench.measuring import median, spread
from tests.bench.rivals import SKETCHES, angle, cheapest, lowrank, truth, try_sketches, worst_angle
from tests.bench.workspace import Workspace

NUM_DIRECTIONS = 64
"""More than any sketch of svd_lowrank is wide: one that covers all of them is exact at once."""

RATIO = 0.9
REPEATS = 5
GOOD_ANGLE = 1e-4

SHAPES = ((896, 4864, at_least(50), None), (4096, 4096, at_least(300), at_least(4)))
"""M, N, and what is asked over torch.linalg.svd and over svd_lowrank."""

ESTIMATE_SHAPES = ((96, 384), (256, 256), (384, 128), (128, 1024))
ESTIMATE_RATIOS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)


def planted(rows: int, columns: int, ratio: float, seed: int) -> Tensor:
    """Return 64 directions, sigma_2/sigma_1 = ratio and 3 % less each after that, and noise.

    At a ratio of 0.9 sigma_1^2 is 6 % of the squared norm, the low end of what RL runs show.
    """
    source = torch.Generator().manual_seed(seed)
    left_MK = torch.linalg.qr(torch.randn(rows, NUM_DIRECTIONS, generator=source)).Q
    right_NK = torch.linalg.qr(torch.randn(columns, NUM_DIRECTIONS, generator=source)).Q
    sigma_K = ratio * 0.97 ** (torch.arange(NUM_DIRECTIONS) - 1.0)
    sigma_K[0] = 1.0
    noise_MN = torch.randn(rows, columns, generator=source) * (3.0 / (rows * columns)) ** 0.5
    return torch.addmm(noise_MN, left_MK * sigma_K, right_NK.T)


def measure(workspace: Workspace) -> Table:
    """Time the kernel and its rivals; judge the estimate."""
    quick = workspace.quick
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures: list[Figure] = []
        notes = [
            f"One thread, no start vector, sigma_2/sigma_1 = {RATIO}, medians of {REPEATS}, in "
            "turn; angles of u and v (the larger) against fp64. The svd_lowrank of equal accuracy "
            f"is the cheapest of {len(SKETCHES)} pairs q, niter whose angle is not above ours."
        ]
        for rows, columns, over_svd, over_lowrank in SHAPES:
            with_svd = not quick or rows * columns < 1 << 23
            found = _Race(rows, columns)
            figures += found.figures(over_svd if with_svd else None, over_lowrank)
            notes += found.notes
        figures += _estimates(40 if quick else 400)
    finally:
        torch.set_num_threads(threads)
    return Table("kernel", "rank 1 of one matrix", tuple(figures), tuple(notes))


class _Race:
    """One shape: the kernel and its rivals on the same matrix."""

    def __init__(self, rows: int, columns: int) -> None:
        self._name = f"{rows} x {columns}"
        self._delta_MN = planted(rows, columns, RATIO, seed=rows)
        self.notes: list[str] = []

    def figures(self, over_svd: Target | None, over_lowrank: Target | None) -> list[Figure]:
        """Time all and set them against the targets."""
        ours = leading_triplets(self._delta_MN, 1, seed="race")
        true = truth(self._delta_MN)
        own_angle = worst_angle(ours.u_RM[0], ours.v_RN[0], true)
        trials = try_sketches(self._delta_MN, true)
        good = cheapest(trials, GOOD_ANGLE)
        equal = cheapest(trials, min(own_angle, GOOD_ANGLE))
        runners: dict[str, Callable[[], object]] = {
            "ours": lambda: leading_triplets(self._delta_MN, 1, seed="race")
        }
        for name, sketch in (("equal", equal), ("good", good)):
            if sketch is not None:
                runners[name] = partial(lowrank, self._delta_MN, *sketch)
        if over_svd is not None:
            runners["svd"] = lambda: torch.linalg.svd(self._delta_MN, full_matrices=False)
        seconds = _in_turn(runners)
        self._note(own_angle, ours.sweeps, equal, good)
        return list(self._rows(seconds, over_svd, over_lowrank))

    def _rows(
        self, seconds: dict[str, list[float]], over_svd: Target | None, over_lowrank: Target | None
    ) -> Iterator[Figure]:
        own = seconds["ours"]
        milliseconds = [1e3 * value for value in own]
        yield Figure(
            f"{self._name}: kernel", median(milliseconds), "ms", None, spread(milliseconds)
        )
        names = {
            "svd": ("linalg.svd / kernel", over_svd),
            "equal": ("svd_lowrank of equal accuracy / kernel", over_lowrank),
            "good": (f"svd_lowrank of {GOOD_ANGLE:g} rad / kernel", None),
        }
        for key, (name, target) in names.items():
            if key in seconds:
                ratios = [s / o for s, o in zip(seconds[key], own, strict=True)]
                value = median(seconds[key]) / median(own)
                yield Figure(f"{self._name}: {name}", value, "x", target, spread(ratios))

    def _note(
        self,
        own_angle: float,
        sweeps: int,
        equal: tuple[int, int] | None,
        good: tuple[int, int] | None,
    ) -> None:
        self.notes.append(
            f"{self._name}: ours {own_angle:.1e} rad in {sweeps} sweeps; equal svd_lowrank "
            f"(q, niter) = {equal}, of {GOOD_ANGLE:g} rad {good}."
        )


def _in_turn(runners: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Time all runners, one after the other, in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(REPEATS):
        for name, run in runners.items():
            started_s = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started_s)
    return seconds


def _estimates(num_matrices: int) -> list[Figure]:
    """How often the estimated angle bounds the true one, and by how much it overstates it."""
    settings = list(product(ESTIMATE_SHAPES, ESTIMATE_RATIOS))
    held, overestimates = 0, []
    for i in range(num_matrices):
        (rows, columns), ratio = settings[i % len(settings)]
        delta_MN = planted(rows, columns, ratio, seed=1000 + i)
        found = leading_triplets(delta_MN, 1, seed=str(i))
        u_MK, _, vt_KN = torch.linalg.svd(delta_MN.double(), full_matrices=False)
        true = max(angle(found.u_RM[0], u_MK[:, 0]), angle(found.v_RN[0], vt_KN[0]))
        held += found.angle_R[0] >= true
        overestimates.append(found.angle_R[0] / true)
    return [
        Figure("estimate bounds the error", 100 * held / num_matrices, "%", at_least(95)),
        Figure("estimate / error", median(overestimates), "x", at_most(10), spread(overestimates)),
    ]

"""Reports with planted numbers, for what draws or writes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alpharl_hub.manifest import Notice, TrustRecord
from alpharl_hub.results import (
    ModuleSpectrum,
    ReportSummary,
    RunPath,
    ScoreLine,
    SpectralReport,
)

STEPS = (20, 40, 80, 160, 200)
GROUPS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
HOSTILE = (
    '"><img src=x onerror=alert(1)>',
    "</style></script><script>alert(2)</script>",
    "<!--",
    "]]>&amp;\x1b[2J\u202e\ud800\r\n",
    "$\\frac{1}$ \u6b65 {x}",
    "=cmd|' /C calc'!A0",
)


def planted_names(num_layers: int = 3, groups: Sequence[str] = GROUPS) -> list[str]:
    """Names as transformers gives them."""
    return [f"model.layers.{i}.{group}.weight" for i in range(num_layers) for group in groups]


def planted_report(
    names: Sequence[str] | None = None,
    *,
    steps: Sequence[int] = STEPS,
    num_values: int = 4,
    score_name: str = "accuracy",
    message: str = "the base looks odd",
) -> SpectralReport:
    """Make a report of random numbers that are possible; one drift and one Q^2 are unknown."""
    rng = np.random.default_rng(7)
    names = planted_names() if names is None else names
    modules = [_spectrum(rng, name, len(steps), num_values) for name in names]
    if modules:
        fields = vars(modules[-1])
        modules[-1] = ModuleSpectrum(
            **{**fields, "q2_step": None, "drift": (None, *fields["drift"][1:])}
        )
    scores = tuple(np.sort(rng.uniform(0.1, 0.9, len(steps))).tolist())
    slope, intercept = np.polyfit(steps, scores, 1) if len(steps) > 1 else (0.0, scores[0])
    return SpectralReport(
        schema=1,
        steps=tuple(steps),
        sampled=False,
        score_name=score_name,
        modules=tuple(modules),
        summary=ReportSummary(
            num_matrices=len(modules),
            num_matrices_in_run=len(modules),
            rank1_share=0.62 if modules else None,
            drift_first_to_last=26.2,
            q2_step=0.97 if len(steps) > 3 else None,
            q2_score=0.88,
            r2_step_in_sample=0.991,
            trust=TrustRecord(0.95, 0.2, 0.02, 0.03, 1.1, 80, 2.5, None, "steady: safe to 2.5 x"),
        ),
        path=RunPath(tuple(zip(np.cumsum(scores), scores, strict=True)), (0.9, 0.08)),
        score_line=ScoreLine(score_name, scores, float(slope), float(intercept), 0.93),
        warnings=(Notice("odd", message),),
    )


def bare_report() -> SpectralReport:
    """Make a report of one step: no path, no scores, no Q^2, a matrix that did not move."""
    whole = planted_report(steps=(20,), num_values=1)
    still = ModuleSpectrum(
        "layers.0.mlp.up_proj", (4, 3), (0.0,), (0.0,), (None,), (None,), *(None,) * 3, (0.0,), None
    )
    fields = {**vars(whole), "modules": (*whole.modules, still), "path": None, "score_line": None}
    return SpectralReport(**fields)


def _spectrum(
    rng: np.random.Generator, name: str, num_steps: int, num_values: int
) -> ModuleSpectrum:
    sigma = np.sort(rng.uniform(0.001, 0.1, num_steps))
    share = rng.uniform(0.2, 0.9, num_steps)
    values = sigma[-1] * np.concatenate([[1.0], np.sort(rng.uniform(0, 0.9, num_values - 1))[::-1]])
    drift = np.sort(rng.uniform(0, 80, num_steps))[::-1] - 0.0
    return ModuleSpectrum(
        name=name,
        shape=(64, 32),
        sigma=tuple(sigma.tolist()),
        frobenius=tuple((sigma / np.sqrt(share)).tolist()),
        rank1_share=tuple(share.tolist()),
        drift=tuple(drift.tolist()),
        q2_step=float(rng.uniform(-0.5, 1)),
        q2_score=float(rng.uniform(-0.5, 1)),
        r2_step_in_sample=float(rng.uniform(0.9, 1)),
        singular_values=tuple(values.tolist()),
        stable_rank=float(1 / share[-1]),
    )

"""Manifests for tests of the card and of pushing, with everything in them settable."""

from __future__ import annotations

from alpharl_hub.manifest import (
    CheckpointRecord,
    Manifest,
    MethodRecord,
    Notice,
    RoundingRecord,
    RunRecord,
    TensorRecord,
    TrustRecord,
    VersionsRecord,
)
from alpharl_hub.methods import METHODS

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def checkpoint(
    step: int | None,
    source: str = "org/run",
    revision: str | None = None,
    score: float | None = None,
    folder: str = "",
) -> CheckpointRecord:
    """A checkpoint on the Hub."""
    name = revision or f"step_{step}"
    return CheckpointRecord(step, source, name, COMMIT, folder, None, score)


def local_checkpoint(step: int | None, name: str) -> CheckpointRecord:
    """A checkpoint in a local folder of that name."""
    return CheckpointRecord(step, name, None, None, "", "fedcba9876543210" * 4, None)


def run(**changes: object) -> RunRecord:
    """A run of three branches with scores, from a base in another repo."""
    values: dict[str, object] = {
        "layout": "branches",
        "pattern": "step_{step}",
        "base": checkpoint(None, "org/base", "main"),
        "base_chosen_by": "card",
        "checkpoints": (
            checkpoint(10, score=0.5),
            checkpoint(20, score=0.55),
            checkpoint(40, score=0.6),
        ),
        "score_name": "accuracy",
        "base_model": "org/base",
        "private": False,
        "include": None,
        "exclude": None,
        "keep_repeats": False,
    }
    return RunRecord(**{**values, **changes})  # type: ignore[arg-type]


def method(name: str = "alpharl", **changes: object) -> MethodRecord:
    """A method aimed at step 100."""
    values: dict[str, object] = {
        "name": name,
        "paper": METHODS[name].paper,
        "url": METHODS[name].url,
        "response": "step",
        "target_step": 100.0,
        "target_score": None,
        "rescale": True if name == "alpharl" else None,
        "scale": None,
        "fit_last": None,
        "anchor": "base",
        "damping": 1.0,
        "others": "last",
        "dtype": None,
    }
    return MethodRecord(**{**values, **changes})  # type: ignore[arg-type]


def tensor(name: str, **changes: object) -> TensorRecord:
    """A predicted 8 x 4 matrix."""
    values: dict[str, object] = {
        "name": name,
        "action": "predicted",
        "dtype": "BF16",
        "shape": (8, 4),
        "sigma": 0.25,
        "frobenius": 0.5,
        "rank1_share": 0.25,
        "q2_step": 0.9,
        "q2_score": 0.8,
        "r2_step_in_sample": 0.97,
        "certified": True,
        "rounding_loss": 0.1,
        "unchanged": 0.4,
    }
    return TensorRecord(**{**values, **changes})  # type: ignore[arg-type]


def copied_tensor(name: str, dtype: str = "BF16", shape: tuple[int, ...] = (8,)) -> TensorRecord:
    """A tensor without a spectrum, taken from the last checkpoint."""
    return TensorRecord(
        name, "copied", dtype, shape, None, None, None, None, None, None, None, None, None
    )


TRUST = TrustRecord(
    cosine=0.95,
    cosine_all_entries=0.26,
    share_of_entries=0.02,
    floor=0.03,
    speed=1.1,
    middle_step=20,
    cap=2.5,
    requested=3.0,
    verdict="steady: safe to about 2.5 x the last step",
)


def manifest(**changes: object) -> Manifest:
    """The manifest of a model predicted from that run by that method."""
    layers = [f"model.layers.{i}.{module}.weight" for i in range(2) for module in ("mlp.up_proj",)]
    values: dict[str, object] = {
        "schema": 1,
        "kind": "model",
        "versions": VersionsRecord("0.1.0", "2.13.0", "cpu"),
        "run": run(),
        "method": method(),
        "rank": 1,
        "trust": TRUST,
        "rounding": RoundingRecord(0.12, 0.4),
        "tensors": (*(tensor(name) for name in layers), copied_tensor("model.norm.weight")),
        "copied_files": ("config.json", "tokenizer.json"),
        "warnings": (Notice("far", "step 100 is far ahead"),),
    }
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]

"""What a tensor's name says: its layer, its module group, and whether it is in scope."""

from __future__ import annotations

import re

BLOCK_COMPONENTS = frozenset(
    {
        "self_attn",
        "attention",
        "attn",
        "linear_attn",
        "mixer",
        "mlp",
        "feed_forward",
        "ffn",
        "block_sparse_moe",
        "experts",
    }
)
"""A matrix is in scope when a component of its path is one of these."""

_ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
_TOWERS = ("vision", "visual", "audio", "image")
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.(.+)$")
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
"""dtype codes that are predicted; the rest is copied."""


def layer_and_group(name: str) -> tuple[int | None, str]:
    """Split a name into its layer number and its module group.

    model.layers.3.self_attn.q_proj.weight is (3, self_attn.q_proj); numbers of experts become `*`.
    """
    match = _LAYER.search(name)
    layer, rest = (int(match[1]), match[2]) if match else (None, name)
    rest = rest.removesuffix(".weight")
    return layer, ".".join("*" if part.isdecimal() else part for part in rest.split("."))


def why_not_a_matrix(name: str, dtype: str, shape: tuple[int, ...]) -> str | None:
    """Return why a tensor is out of the general scope, or None when it is a matrix in scope.

    A stack of experts (experts x rows x columns) is one matrix for each of them.
    """
    if dtype not in FLOATING:
        return "not floating point"
    components = name.split(".")
    is_stack = len(shape) == 3 and "experts" in components
    if not (len(shape) == 2 or is_stack) or min(shape[-2:]) < 2 or min(shape) < 1:
        return "not a matrix"
    if any(tower in component for component in components for tower in _TOWERS):
        return "another tower"
    if not BLOCK_COMPONENTS.intersection(components):
        return "outside the attention and MLP blocks"
    module = (
        components[-2] if components[-1] == "weight" and len(components) > 1 else components[-1]
    )
    if module in _ROUTERS:
        return "a router"
    if "norm" in module or components[-1] == "bias":
        return "a norm or bias"
    return None

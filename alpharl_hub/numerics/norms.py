"""Norms of large fp32 tensors that do not lose digits in adding up.

Letters: P entries, C chunks.

Convention: squares are accumulated in fp32 within a chunk (1e-7 relative), in fp64 across.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 32768


def sum_of_squares(values: Tensor) -> Tensor:
    """Sum the squares of an fp32 tensor (any shape, contiguous): fp64 scalar on its device."""
    flat_P = values.view(-1)
    whole = flat_P.numel() // _CHUNK * _CHUNK
    # vector_norm reads without a copy of the squares; its root costs one rounding per chunk.
    norm_C = torch.linalg.vector_norm(flat_P[:whole].view(-1, _CHUNK), dim=1)
    rest = torch.linalg.vector_norm(flat_P[whole:]).double()
    total: Tensor = norm_C.double().square().sum() + rest.square()
    return total

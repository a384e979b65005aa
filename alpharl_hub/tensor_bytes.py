"""Between tensors and their bytes: dtypes by their safetensors code, memory without a copy."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def memory_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, writable, without a copy and without numpy.

    The caller keeps the tensor alive as long as the view is used.
    """
    num_bytes = tensor.numel() * tensor.element_size()
    array = (ctypes.c_uint8 * num_bytes).from_address(tensor.data_ptr())
    return memoryview(array).cast("B")

"""The nouns of the project: tensors in files, checkpoints at steps, trajectories of one run.

Standard library only; everything is frozen. Bytes are counted from the start of a file and ranges
are half-open, everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class TensorRef:
    """Where one tensor lies: `filename` within its checkpoint, bytes `start` to `stop` of it.

    `dtype` is the safetensors code ("BF16", "F32", ...).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    filename: str
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        """Stored size in bytes."""
        return self.stop - self.start

    @property
    def num_elements(self) -> int:
        """Number of entries; 1 for a scalar."""
        return prod(self.shape)

"""A candidate between two models on disk, or beyond them: low + fraction * (high - low).

Letters: P entries of a chunk.

Numerical convention: both endpoints are stored in fp32, the mixture is fp32 and rounded once to the
dtype of the output; fraction 0 gives `low` and 1 gives `high` to the bit. What is no float in the
output is copied from `low` as bytes. Sums of squares are fp64.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from alpharl_hub import safetensors_header
from alpharl_hub.errors import WriteError
from alpharl_hub.methods.correction import Rounder, Rounding
from alpharl_hub.output.shards import OutputFile, ShardWriter
from alpharl_hub.sources.local import LocalFolder
from alpharl_hub.sources.patience import Cancelled
from alpharl_hub.tensor_bytes import TORCH_DTYPES, memory_of
from alpharl_hub.trajectory import TensorRef

_CHUNK_ELEMENTS = 1 << 20
_CHUNK_BYTES = 4 << 20
_MAX_WORKERS = 8
"""Each holds a few chunks; 100 million entries take 1.4 s of one core (fp32 to bf16)."""

_ENDPOINT_DTYPE = "F32"


def mix(low_P: Tensor, high_P: Tensor, fraction: float) -> Tensor:
    """Return low + fraction * (high - low) of fp32 tensors, exact at both ends."""
    if fraction == 0:
        return low_P
    if fraction == 1:
        return high_P
    return low_P + fraction * (high_P - low_P)


@dataclass(frozen=True)
class _Endpoint:
    """A model folder whose headers have been read."""

    folder: LocalFolder
    tensors: dict[str, TensorRef]

    @classmethod
    def read(cls, path: Path) -> _Endpoint:
        folder = LocalFolder(path)
        tensors: dict[str, TensorRef] = {}
        for filename, stored in folder.files().items():
            if filename.endswith(".safetensors"):
                prefix = bytearray(min(safetensors_header.PREFIX_NUM_BYTES, stored.num_bytes))
                folder.read_into(filename, 0, memoryview(prefix))
                header = bytearray(
                    safetensors_header.header_num_bytes(bytes(prefix), stored.num_bytes, filename)
                )
                folder.read_into(filename, len(prefix), memoryview(header))
                parsed = safetensors_header.parse_header(bytes(header), stored.num_bytes, filename)
                tensors.update((ref.name, ref) for ref in parsed.tensors)
        return cls(folder, tensors)

    def find(self, wanted: TensorRef, dtype: str) -> TensorRef:
        """Return where a tensor of the output lies here.

        Raises:
            WriteError: this is no endpoint of that output.
        """
        found = self.tensors.get(wanted.name)
        if found is None or (found.shape, found.dtype) != (wanted.shape, dtype):
            raise WriteError(
                f"{self.folder.path}: holds no {dtype} tensor {wanted.name} of the right shape; "
                "delete the work folder and start again"
            )
        return found

    def read_chunk(self, ref: TensorRef, start: int, count: int) -> Tensor:
        """Read entries of an fp32 tensor."""
        chunk_P = torch.empty(count, dtype=torch.float32)
        self.folder.read_into(ref.filename, ref.start + 4 * start, memory_of(chunk_P))
        return chunk_P


class Mixer:
    """Writes candidates from two endpoints, a few megabytes of each in memory at a time.

    Args:
        low: the folder of the model at fraction 0: safetensors files, floating tensors in fp32.
        high: the same of the model at fraction 1.
        files: the layout of every candidate, with its final dtypes.
        stop: set to end soon.

    Raises:
        HeaderError, SourceError: an endpoint cannot be read.
    """

    def __init__(
        self, low: Path, high: Path, files: Sequence[OutputFile], stop: threading.Event
    ) -> None:
        self._low = _Endpoint.read(low)
        self._high = _Endpoint.read(high)
        self._files = files
        self._stop = stop

    def write(self, fraction: float, result: Path) -> dict[str, Rounding]:
        """Write the weight files of one candidate into an existing folder.

        Returns what rounding did to each floating tensor; its updates are those from `low`.

        Raises:
            FitError: NaN or infinity after rounding. WriteError: the disk refuses.
            Cancelled: `stop` was set.
        """
        roundings: dict[str, Rounding | None] = {}
        writer = ShardWriter(result, self._files)
        write = partial(self._write_tensor, fraction=fraction, writer=writer)
        try:
            writer.open()
            with ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1)) as pool:
                for file in self._files:
                    names = (ref.name for ref in file.tensors)
                    roundings.update(zip(names, pool.map(write, file.tensors), strict=True))
                    writer.complete(file.filename)
        finally:
            writer.close()
        return {name: rounding for name, rounding in roundings.items() if rounding is not None}

    def _write_tensor(
        self, ref: TensorRef, fraction: float, writer: ShardWriter
    ) -> Rounding | None:
        dtype = TORCH_DTYPES.get(ref.dtype)
        if dtype is None:
            self._copy(ref, writer)
            return None
        low, high = (e.find(ref, _ENDPOINT_DTYPE) for e in (self._low, self._high))
        rounder = Rounder(dtype, ref.name)
        for start in range(0, ref.num_elements, _CHUNK_ELEMENTS):
            self._raise_if_stopped()
            count = min(_CHUNK_ELEMENTS, ref.num_elements - start)
            low_P = self._low.read_chunk(low, start, count)
            high_P = self._high.read_chunk(high, start, count)
            weights_P, rounded_P = mix(low_P, high_P, fraction), torch.empty(count, dtype=dtype)
            rounder.round(weights_P, low_P, rounded_P, torch.empty_like(weights_P))
            position = ref.start + start * rounded_P.element_size()
            writer.write(ref.filename, position, memory_of(rounded_P))
        return rounder.finish()

    def _copy(self, ref: TensorRef, writer: ShardWriter) -> None:
        source = self._low.find(ref, ref.dtype)
        for start in range(0, ref.num_bytes, _CHUNK_BYTES):
            self._raise_if_stopped()
            buffer = memoryview(bytearray(min(_CHUNK_BYTES, ref.num_bytes - start)))
            self._low.folder.read_into(source.filename, source.start + start, buffer)
            writer.write(ref.filename, ref.start + start, buffer)

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise Cancelled

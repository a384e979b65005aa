"""factors.safetensors: where every matrix's factors lie, written in place and read back.

NAME.u is T x R x M, NAME.sigma T x R, NAME.v T x R x N, NAME.frobenius T; all fp32.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alpharl_hub import strict_json
from alpharl_hub.errors import ManifestError, SourceError
from alpharl_hub.numerics.factors import Factors
from alpharl_hub.output.factor_names import FACTOR_FILE, LOCAL_PLACES, SINGLE_FILE
from alpharl_hub.output.read_back import Run, crc_of
from alpharl_hub.output.shards import OutputFile, OutputTensor, ShardWriter, lay_out
from alpharl_hub.safetensors_header import header_num_bytes, parse_header
from alpharl_hub.strict_json import shown
from alpharl_hub.tensor_bytes import memory_of
from alpharl_hub.trajectory import CheckpointStore, TensorRef

MAX_FILE_BYTES = 5_000_000_000
FIELDS = ("u", "sigma", "v", "frobenius")

_MAX_PLACES_BYTES = 16 << 20


@dataclass(frozen=True)
class MatrixShape:
    """Name and sides of one matrix."""

    name: str
    shape: tuple[int, int]


def factor_tensors(
    matrix: MatrixShape, num_steps: int, rank: int
) -> tuple[OutputTensor, OutputTensor, OutputTensor, OutputTensor]:
    """Return the four tensors that hold one matrix's factors."""
    rows, columns = matrix.shape

    def named(field: str, *shape: int) -> OutputTensor:
        return OutputTensor(f"{matrix.name}.{field}", "F32", shape)

    return (
        named("u", num_steps, rank, rows),
        named("sigma", num_steps, rank),
        named("v", num_steps, rank, columns),
        named("frobenius", num_steps),
    )


def plan_factor_files(
    matrices: Sequence[MatrixShape], num_steps: int, rank: int
) -> tuple[OutputFile, ...]:
    """Lay out the factors of all matrices, in several files where one would pass 5 GB."""
    groups: list[list[OutputTensor]] = [[]]
    total = 0
    for matrix in matrices:
        tensors = factor_tensors(matrix, num_steps, rank)
        num_bytes = 4 * num_steps * (rank * (sum(matrix.shape) + 1) + 1)
        if groups[-1] and total + num_bytes > MAX_FILE_BYTES:
            groups.append([])
            total = 0
        groups[-1].extend(tensors)
        total += num_bytes
    names = [SINGLE_FILE]
    if len(groups) > 1:
        count = len(groups)
        names = [f"factors-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    metadata = {"format": "pt"}
    return tuple(lay_out(n, group, metadata) for n, group in zip(names, groups, strict=True))


class FactorWriter:
    """Writes factors at their planned places as matrices finish; safe to share between threads."""

    def __init__(self, writer: ShardWriter, files: Sequence[OutputFile]) -> None:
        self._writer = writer
        self._refs = {ref.name: ref for file in files for ref in file.tensors}

    def write(self, factors: Mapping[str, Factors]) -> None:
        """Write the factors of matrices; they are on the disk when this returns."""
        for name, of_one in factors.items():
            self._write_one(name, of_one)
        for filename in {self._refs[f"{name}.u"].filename for name in factors}:
            self._writer.sync(filename)

    def _write_one(self, name: str, factors: Factors) -> None:
        for field, host in zip(FIELDS, _stored(factors), strict=True):
            ref = self._refs[f"{name}.{field}"]
            assert tuple(host.shape) == ref.shape, (
                f"{name}.{field}: {host.shape} planned {ref.shape}"
            )
            self._writer.write(ref.filename, ref.start, memory_of(host))


def _stored(factors: Factors) -> tuple[torch.Tensor, ...]:
    """What is written of a matrix, one behind the other, in the order of FIELDS."""
    values = (factors.u_TRM, factors.sigma_TR, factors.v_TRN, factors.frobenius_T)
    return tuple(value.contiguous() for value in values)


def factors_crc(factors: Factors) -> int:
    """Return the CRC-32 of what is written of a matrix."""
    return crc_of(memory_of(host) for host in _stored(factors))


def factor_runs(file: OutputFile, crcs: Mapping[str, int]) -> list[Run]:
    """Return the runs of a file, one for each of its matrices, from the CRC-32 of all matrices."""
    refs = {ref.name: ref for ref in file.tensors}
    return [
        Run(refs[f"{name}.{FIELDS[0]}"].start, refs[f"{name}.{FIELDS[-1]}"].stop, crc32)
        for name, crc32 in crcs.items()
        if f"{name}.{FIELDS[0]}" in refs
    ]


class FactorFolder:
    """Reads the factors of an extract folder, or of a commit of a repo, one matrix at a time.

    Args:
        store: where `extract` wrote them, or where they were pushed to.
        label: how messages name that place.
        num_steps: the number of checkpoints that its manifest lists.

    Raises:
        SourceError: a file is missing. HeaderError: one is no safetensors file.
        ManifestError: a part of a matrix's factors is missing, or of another kind or shape.
    """

    def __init__(self, store: CheckpointStore, label: str, num_steps: int) -> None:
        self._store = store
        self._refs: dict[str, TensorRef] = {}
        files = store.files()
        for name in factor_filenames(files, label):
            size = files[name].num_bytes
            where = f"{label}/{name}"
            length = header_num_bytes(self._read(name, 0, min(8, size)), size, where)
            header = parse_header(self._read(name, 8, 8 + length), size, where)
            for t in header.tensors:
                if t.name in self._refs:
                    raise ManifestError(
                        f"{where}: holds {shown(t.name)}, as {self._refs[t.name].filename} does; "
                        "one of them is stale, extract again"
                    )
                self._refs[t.name] = TensorRef(t.name, t.dtype, t.shape, name, t.start, t.stop)
        for matrix in self.names():
            self._check(matrix, num_steps)

    def _check(self, name: str, num_steps: int) -> None:
        shapes = [r.shape if r and r.dtype == "F32" else () for r in self._fields(name)]
        u, sigma, v, frobenius = shapes
        good = len(u) == 3 and len(v) == 3 and sigma == u[:2] == v[:2] and u[1] > 0
        if not good or frobenius != sigma[:1] or frobenius != (num_steps,):
            raise ManifestError(
                f"the factors of {shown(name)} are not u, sigma, v and frobenius of {num_steps} "
                "steps in fp32; extract again"
            )

    def _fields(self, name: str) -> list[TensorRef | None]:
        return [self._refs.get(f"{name}.{field}") for field in FIELDS]

    def _read(self, filename: str, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        if not buffer:
            return b""
        self._store.read_into(filename, start, memoryview(buffer))
        return bytes(buffer)

    def names(self) -> tuple[str, ...]:
        """Return the names of the matrices, in the order of the file."""
        return tuple(n.removesuffix(".sigma") for n in self._refs if n.endswith(".sigma"))

    def shape(self, name: str) -> tuple[int, int]:
        """Return the sides of a matrix."""
        return self._refs[f"{name}.u"].shape[-1], self._refs[f"{name}.v"].shape[-1]

    def read(self, name: str) -> Factors:
        """Read one matrix's factors, in one request where they lie side by side."""
        refs = [ref for ref in self._fields(name) if ref is not None]
        start, stop = min(ref.start for ref in refs), max(ref.stop for ref in refs)
        if len({r.filename for r in refs}) > 1 or stop - start > sum(r.num_bytes for r in refs):
            # Not as extract writes them; what lies between them may be large.
            u, sigma, v, frobenius = (
                _tensor(ref, bytearray(self._read(ref.filename, ref.start, ref.stop)), ref.start)
                for ref in refs
            )
        else:
            data = bytearray(self._read(refs[0].filename, start, stop))
            u, sigma, v, frobenius = (_tensor(ref, data, start) for ref in refs)
        return Factors(u, sigma, v, frobenius)


def _tensor(ref: TensorRef, data: bytearray, start: int) -> torch.Tensor:
    """View a tensor in bytes of its file that begin at `start` there."""
    if ref.num_elements == 0:
        return torch.zeros(ref.shape)
    values = torch.frombuffer(
        data, dtype=torch.float32, count=ref.num_elements, offset=ref.start - start
    )
    return values.view(ref.shape)


def factor_filenames(files: Collection[str], label: str) -> list[str]:
    """Return which of the files of a place hold factors, in order.

    Raises:
        SourceError: there are none, or one of several is missing.
    """
    names = sorted(name for name in files if FACTOR_FILE.fullmatch(name))
    if not names:
        raise SourceError(f"{label}: no {SINGLE_FILE}; extract again")
    matches = [FACTOR_FILE.fullmatch(name) for name in names]
    counts = {int(match["count"]) for match in matches if match and match["count"]}
    numbers = {int(match["number"]) for match in matches if match and match["number"]}
    for count in counts:
        missing = next((i for i in range(1, count + 1) if i not in numbers), None)
        if missing is not None:
            raise SourceError(
                f"{label}: factors-{missing:05d}-of-{count:05d}.safetensors is missing; is the "
                "upload or copy complete?"
            )
    return names


def make_factor_index(files: Sequence[OutputFile]) -> bytes:
    """Write the index of factors in several files."""
    weight_map = {ref.name: file.filename for file in files for ref in file.tensors}
    total_size = sum(ref.num_bytes for file in files for ref in file.tensors)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    return (json.dumps(index, indent=2) + "\n").encode()


def read_local_places(folder: Path) -> Mapping[str, str]:
    """Return where local checkpoints lie, by their fingerprint; empty when nothing is written.

    Raises:
        ManifestError: the file is damaged.
    """
    path = folder / LOCAL_PLACES
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PLACES_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); extract again") from error
    found = strict_json.parse(data, str(path)) if len(data) <= _MAX_PLACES_BYTES else None
    if not isinstance(found, dict) or not all(map(_is_place, found.values())):
        raise ManifestError(f"{path}: not a list of places; extract again")
    return found


def _is_place(value: object) -> bool:
    """Whether a value is a text that can be asked for on the disk."""
    return (
        isinstance(value, str)
        and "\0" not in value
        and all(len(part.encode()) <= 255 for part in value.split("/"))
        and len(value) < 4096
    )

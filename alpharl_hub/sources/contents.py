"""Open one checkpoint: find its weights, read its headers and config, refuse what is no model.

Reads the headers (8 bytes, then exactly their length), the index and config.json, and of local
files a few blocks for the fingerprint: well under 1 MB for a checkpoint of the common sizes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from alpharl_hub import safetensors_header
from alpharl_hub.errors import HeaderError, SourceError, TrajectoryError
from alpharl_hub.sources.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    adapter_tensors,
    parse_settings,
)
from alpharl_hub.sources.file_names import find_collision, is_portable
from alpharl_hub.strict_json import read_int, require_unicode, shown, why_not_json
from alpharl_hub.trajectory import (
    Checkpoint,
    CheckpointContents,
    CheckpointStore,
    LowRankRef,
    StoredFile,
    StoredRef,
    TensorRef,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
WEIGHT_FOLDERS = ("", "hf_model", "huggingface", "actor/huggingface", "policy")
"""Where trainers put the weights of one step: TRL, NExt, verl (two), SkyRL."""
ADAPTER_FOLDERS = (*WEIGHT_FOLDERS, "actor/lora_adapter", "lora_adapter")
"""Where adapters lie; verl keeps them in a folder of their own."""

_MAX_SMALL_FILE_BYTES = 64 << 20
# A header takes 25 times its size in memory while it is read (measured: 20 MB of `[],` 490 MB). The
# format allows 100 MB a file; 100,000 tensors, as many as any model has, take 12 MB.
_MAX_HEADERS_NUM_BYTES = 64 << 20
_MAX_TENSOR_NAME_CHARS = 1000  # everything below matches, sorts and prints names
_MAX_ELEMENTS = 1 << 60  # of a tensor without the sides that are 0; torch counts to 2^63
_MAX_JSON_DEPTH = 100  # the deepest configs of transformers nest below ten
_MAX_CARD_BYTES = 1 << 20
_FINGERPRINT_BLOCKS = 32
_FINGERPRINT_BLOCK_BYTES = 4096
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".distcp")
_STATE = re.compile(r"(^|/)(optimizer|scheduler|scaler|rng_state|training_args|.*optim_states)")


def open_contents(checkpoint: Checkpoint, store: CheckpointStore) -> CheckpointContents:
    """Read the headers of one checkpoint.

    Raises:
        SourceError: no readable safetensors weights (the message says what there is instead).
        HeaderError: a weight file whose header is not valid.
        TrajectoryError: quantized weights, or an adapter of a kind that is not read.
    """
    files = store.files()
    folder = find_weights_folder(files)
    if folder is None:
        raise _no_weights(checkpoint, files)
    reader = _Reader(checkpoint, store, files, folder)
    if is_adapter(files):
        return _open_adapter(reader, folder)
    config = reader.json_object("config.json")
    _refuse_quantized(checkpoint, config)
    weight_files = reader.weight_files()
    tensors: dict[str, StoredRef] = {}
    metadata: dict[str, Mapping[str, str]] = {}
    headers: list[bytes] = []
    for stored in weight_files:
        raw, header = reader.header(stored)
        headers.append(raw)
        metadata[stored.filename] = header.metadata
        _enter_tensors(checkpoint, tensors, header.tensors)
    absent = sorted(reader.indexed - set(tensors))
    if absent:
        raise SourceError(
            f"{reader.where(INDEX_FILE)}: no file holds {shown(absent[0])[1:-1]}, which it names; "
            "is the upload complete?"
        )
    return CheckpointContents(
        checkpoint=checkpoint,
        store=store,
        weights_folder=folder,
        weight_files=weight_files,
        tensors=tensors,
        metadata=metadata,
        config=config,
        identity=reader.identity(weight_files, headers),
        num_bytes_read=reader.num_bytes_read,
        config_bytes=reader.json_bytes.get("config.json"),
    )


def _open_adapter(reader: _Reader, folder: str) -> CheckpointContents:
    config = reader.json_object(ADAPTER_CONFIG)
    if not config:
        raise SourceError(
            f"{reader.where(ADAPTER_FILE)}: has no {ADAPTER_CONFIG} beside it, which tells the "
            "scale; is the upload complete?"
        )
    settings = parse_settings(config, reader.where(ADAPTER_CONFIG))
    stored = replace(reader.files[reader.prefix + ADAPTER_FILE], filename=ADAPTER_FILE)
    raw, header = reader.header(stored)
    tensors = adapter_tensors(header.tensors, settings, reader.where(ADAPTER_FILE))
    scales = [f"{n}:{t.scale!r}" for n, t in tensors.items() if isinstance(t, LowRankRef)]
    return CheckpointContents(
        checkpoint=reader.checkpoint,
        store=reader.store,
        weights_folder=folder,
        weight_files=(stored,),
        tensors=tensors,
        metadata={ADAPTER_FILE: header.metadata},
        config=reader.json_object("config.json"),
        identity=reader.identity((stored,), [raw], "\n".join(scales)),
        num_bytes_read=reader.num_bytes_read,
        adapter=config,
    )


def find_weights_folder(files: Mapping[str, StoredFile]) -> str | None:
    """Return where below a checkpoint's folder safetensors weights lie, or None.

    A whole model goes before an adapter beside it.
    """
    model = _folder_with(files, WEIGHT_FOLDERS, (SINGLE_FILE, INDEX_FILE))
    return _folder_with(files, ADAPTER_FOLDERS, (ADAPTER_FILE,)) if model is None else model


def is_adapter(files: Mapping[str, StoredFile]) -> bool:
    """Whether the weights of a checkpoint are an adapter's."""
    model = _folder_with(files, WEIGHT_FOLDERS, (SINGLE_FILE, INDEX_FILE))
    return model is None and find_weights_folder(files) is not None


def _folder_with(
    files: Mapping[str, StoredFile], folders: Sequence[str], names: Sequence[str]
) -> str | None:
    for folder in folders:
        prefix = f"{folder}/" if folder else ""
        if any(prefix + name in files for name in names):
            return folder
    return None


class _Reader:
    """Reads small things of one checkpoint and counts their bytes."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        store: CheckpointStore,
        files: Mapping[str, StoredFile],
        folder: str,
    ) -> None:
        self.checkpoint = checkpoint
        self.store = store
        self.files = files
        self.prefix = f"{folder}/" if folder else ""
        self.num_bytes_read = 0
        self.headers_num_bytes = 0
        self.json_bytes: dict[str, bytes] = {}
        self.indexed: frozenset[str] = frozenset()

    def where(self, name: str) -> str:
        return f"{self.checkpoint.label}: {self.prefix}{name}"

    def read(self, name: str, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        self.store.read_into(self.prefix + name, start, memoryview(buffer))
        self.num_bytes_read += len(buffer)
        return bytes(buffer)

    def json_object(self, name: str) -> Mapping[str, object]:
        """Read a small JSON file; an absent one is empty (prime-rl writes weights only)."""
        stored = self.files.get(self.prefix + name)
        if stored is None:
            return {}
        if stored.num_bytes > _MAX_SMALL_FILE_BYTES:
            raise SourceError(
                f"{self.where(name)}: {stored.num_bytes} bytes are too many for it; is it the file?"
            )
        try:
            # As lenient as transformers: configs of Mamba 2 say "time_step_limit": [0, Infinity],
            # and the last one of duplicate keys counts.
            data = self.read(name, 0, stored.num_bytes)
            value = json.loads(data.decode("utf-8"), parse_int=read_int)
            require_unicode(value)
            _require_shallow(value)
        except (ValueError, RecursionError) as error:
            raise SourceError(
                f"{self.where(name)}: no valid JSON ({why_not_json(error)}); store it again"
            ) from error
        if not isinstance(value, dict):
            raise SourceError(f"{self.where(name)}: not a JSON object; store it again")
        self.json_bytes[name] = data
        return value

    def weight_files(self) -> tuple[StoredFile, ...]:
        """Name the weight files, relative to the weights' folder."""
        # A single file wins over an index beside it: that is the one transformers would load.
        names = [SINGLE_FILE]
        if self.prefix + SINGLE_FILE not in self.files:
            names = self._indexed_files()
        missing = [name for name in names if self.prefix + name not in self.files]
        if missing:
            raise SourceError(
                f"{self.where(missing[0])}: named by the index but missing; is the upload complete?"
            )
        found = (self.files[self.prefix + name] for name in names)
        return tuple(
            StoredFile(f.filename.removeprefix(self.prefix), f.num_bytes, f.sha256) for f in found
        )

    def _indexed_files(self) -> list[str]:
        weight_map = self.json_object(INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise SourceError(f"{self.where(INDEX_FILE)}: has no weight_map; store it again")
        self.indexed = frozenset(weight_map)
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if not is_portable(name) or not name.endswith(".safetensors"):
                raise SourceError(
                    f"{self.where(INDEX_FILE)}: {shown(name)} is no file beside it with weights as "
                    "safetensors; mend the index"
                )
        same = find_collision(names)
        if same is not None:
            raise SourceError(
                f"{self.where(INDEX_FILE)}: {shown(same[0])} and {shown(same[1])} are one file "
                "where case does not count; rename one"
            )
        return names

    def header(self, stored: StoredFile) -> tuple[bytes, safetensors_header.Header]:
        """Read the header of one weight file: as it stands, and parsed."""
        where = self.where(stored.filename)
        size = stored.num_bytes
        prefix = self.read(stored.filename, 0, min(8, size))
        num_bytes = safetensors_header.header_num_bytes(prefix, size, where)
        self.headers_num_bytes += num_bytes
        if self.headers_num_bytes > _MAX_HEADERS_NUM_BYTES:
            raise HeaderError(
                f"{where}: with it the checkpoint's headers take {self.headers_num_bytes} bytes, "
                f"more than {_MAX_HEADERS_NUM_BYTES}; that is no model, choose another checkpoint"
            )
        raw = self.read(stored.filename, 8, 8 + num_bytes)
        header = safetensors_header.parse_header(raw, size, where)
        for tensor in header.tensors:
            _require_usual(tensor, where)
        tensors = tuple(
            TensorRef(t.name, t.dtype, t.shape, stored.filename, t.start, t.stop)
            for t in header.tensors
        )
        return raw, safetensors_header.Header(tensors, header.metadata)

    def identity(
        self, weight_files: tuple[StoredFile, ...], headers: list[bytes], scales: str = ""
    ) -> str:
        """Digest the Hub's sha256 of every file, or for local files sizes, headers and blocks.

        `scales` is what an adapter's file does not hold and its weights depend on.
        """
        digest = hashlib.sha256(scales.encode())
        for stored, header in zip(weight_files, headers, strict=True):
            if stored.sha256 is not None:
                digest.update(stored.sha256.encode())
                continue
            digest.update(f"{stored.num_bytes}:".encode() + header)
            last = max(0, stored.num_bytes - _FINGERPRINT_BLOCK_BYTES)
            for i in range(_FINGERPRINT_BLOCKS):
                start = last * i // (_FINGERPRINT_BLOCKS - 1)
                stop = min(stored.num_bytes, start + _FINGERPRINT_BLOCK_BYTES)
                digest.update(self.read(stored.filename, start, stop))
        return digest.hexdigest()


def _require_shallow(document: object) -> None:
    """Refuse what is nested so deeply that writing it again could fail.

    Raises:
        ValueError: it is.
    """
    level = [document]
    for _ in range(_MAX_JSON_DEPTH):
        inside = [item for item in level if isinstance(item, dict | list)]
        level = [child for i in inside for child in (i.values() if isinstance(i, dict) else i)]
        if not level:
            return
    raise ValueError("nested too deeply")


def _require_usual(tensor: TensorRef, where: str) -> None:
    """Refuse names and shapes that the format allows and no model has."""
    flaw = None
    if len(tensor.name) > _MAX_TENSOR_NAME_CHARS:
        flaw = f"a name of {len(tensor.name)} characters"
    elif math.prod(max(side, 1) for side in tensor.shape) > _MAX_ELEMENTS:
        flaw = f"the shape {list(tensor.shape)}"
    if flaw is not None:
        raise HeaderError(
            f"{where}: tensor {shown(tensor.name)} has {flaw}; that is no model, choose another "
            "checkpoint"
        )


def _enter_tensors(
    checkpoint: Checkpoint, tensors: dict[str, StoredRef], found: tuple[TensorRef, ...]
) -> None:
    for ref in found:
        if ref.name in tensors:
            raise SourceError(
                f"{checkpoint.label}: tensor {shown(ref.name)} stands in "
                f"{tensors[ref.name].filename} and in {ref.filename}; one of them is stale"
            )
        tensors[ref.name] = ref


def _no_weights(checkpoint: Checkpoint, files: Mapping[str, StoredFile]) -> Exception:
    pickles = [n for n in files if n.endswith(_PICKLES) and not _STATE.search(n)]
    if any("world_size" in name for name in pickles):
        return SourceError(
            f"{checkpoint.label}: holds verl's sharded state and no safetensors; merge it first "
            "(python -m verl.model_merger merge --backend fsdp)"
        )
    if pickles:
        return SourceError(
            f"{checkpoint.label}: weights only as pickles ({pickles[0]}), which are never opened; "
            "convert them to safetensors first"
        )
    advice = "" if checkpoint.step is None else ", or leave this step out with --steps"
    return SourceError(
        f"{checkpoint.label}: no {SINGLE_FILE} and no {INDEX_FILE}; name the place that has one"
        f"{advice}"
    )


def _refuse_quantized(checkpoint: Checkpoint, config: Mapping[str, object]) -> None:
    if config_value(config, "quantization_config"):
        what = (
            "name its unquantized original with --base"
            if checkpoint.step is None
            else "name a run whose weights are floating point"
        )
        raise TrajectoryError(f"{checkpoint.label}: quantized weights; {what}")


def trainer_state_text(contents: CheckpointContents, max_bytes: int) -> str | None:
    """Return the text of the checkpoint's trainer_state.json, or None without one so small."""
    return _text(contents, "trainer_state.json", max_bytes)


def card_text(contents: CheckpointContents) -> str | None:
    """Return the text of the README.md of the checkpoint's folder, or None without one."""
    return _text(contents, "README.md", _MAX_CARD_BYTES)


def _text(contents: CheckpointContents, name: str, max_bytes: int) -> str | None:
    stored = contents.store.files().get(name)
    if stored is None or stored.num_bytes > max_bytes:
        return None
    buffer = bytearray(stored.num_bytes)
    contents.store.read_into(name, 0, memoryview(buffer))
    return buffer.decode("utf-8", errors="replace")


def config_value(config: Mapping[str, object], key: str) -> object:
    """Look a key up in a config, then in its text_config (multimodal models nest it)."""
    if key in config:
        return config[key]
    nested = config.get("text_config")
    return nested.get(key) if isinstance(nested, dict) else None


def dump_config(config: Mapping[str, object]) -> bytes:
    """Write a config as transformers does: two spaces, keys as they stand, a newline."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()

"""What a model folder holds beside its weights: which files are copied, and the one edit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alpharl_hub.errors import SourceError
from alpharl_hub.manifest import MANIFEST_NAME, Notice
from alpharl_hub.sources.contents import config_value, dump_config
from alpharl_hub.sources.file_names import folded, is_portable, leads_out
from alpharl_hub.trajectory import CheckpointContents, StoredFile

MAX_COPIED_BYTES = 50_000_000

TORCH_NAMES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}
"""How config.json spells a dtype."""

# A deny list, not an allow list: chat templates and tokenizer files get new names every year, and
# losing one is the commonest complaint about tools that merge models (mergekit#589, #367).
_NOT_COPIED = re.compile(
    r"^\."
    r"|\.(safetensors|bin|pt|pth|ckpt|distcp|pkl|pickle|h5|msgpack|onnx|gguf|npz|npy|ot|tflite)$"
    r"|\.(joblib|dill|pt2|keras|pdparams|nemo)$"
    r"|\.(safetensors|bin)\.index\.json$"
    r"|\.(log|jsonl|csv|lock|tmp|partial)$"
    r"|^mergekit_.*config\.ya?ml$"  # how another model than the predicted one was made
    r"|^(trainer_state|training_info|training_args|metrics|scores|recipe|all_results|eval_results"
    r"|train_results|adapter_config)\.json$"
    r"|^(optimizer|scheduler|rng_state|scaler|events\.out)"
    r"|^(README\.md|SHA256SUMS|STABLE|latest|zero_to_fp32\.py|latest_checkpointed_iteration\.txt)$"
    rf"|^{re.escape(MANIFEST_NAME)}$|^local-places\.json$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class CopiedFile:
    """A file that goes into the output; `replacement` are its bytes where they are known."""

    source: CheckpointContents
    stored: StoredFile
    replacement: bytes | None

    @property
    def name(self) -> str:
        """The file's name in the output."""
        return self.stored.filename.rsplit("/", 1)[-1]

    def read(self) -> bytes:
        """Return its bytes."""
        if self.replacement is not None:
            return self.replacement
        buffer = bytearray(self.stored.num_bytes)
        self.source.store.read_into(self.stored.filename, 0, memoryview(buffer))
        return bytes(buffer)


def described_by(last: CheckpointContents, base: CheckpointContents) -> CheckpointContents:
    """Return whose files describe the model: the last checkpoint's, beside its weights.

    A trainer that writes weights only (prime-rl) leaves none; then they are the base's.
    """
    return last if last.config else base


def copied_files(
    last: CheckpointContents, base: CheckpointContents, dtype: str | None
) -> tuple[CopiedFile, ...]:
    """Choose the files that describe the model.

    `dtype` is the safetensors code asked for, which config.json then names. Of names that differ in
    case only the one in small letters is taken: those are the names that libraries look for.

    Raises:
        SourceError: one of them is a link out of its folder, to what may be nobody else's business.
    """
    source = described_by(last, base)
    weights = {source.path_of(f.filename) for f in source.weight_files}
    prefix = source.path_of("")
    chosen: dict[str, StoredFile] = {}
    for path, stored in sorted(source.store.files().items()):
        name = path.removeprefix(prefix)
        if not path.startswith(prefix) or not is_portable(name) or path in weights:
            continue
        if _NOT_COPIED.search(name) or stored.num_bytes > MAX_COPIED_BYTES:
            continue
        chosen[folded(name)] = stored
    found = []
    for stored in chosen.values():
        name = stored.filename.removeprefix(prefix)
        _refuse_link(source, stored)
        replacement = source.config_bytes if name == "config.json" else None
        if name == "config.json" and dtype is not None:
            replacement = dump_config(with_dtype(source.config, TORCH_NAMES[dtype]))
        found.append(CopiedFile(source, stored, replacement))
    return tuple(found)


def _refuse_link(source: CheckpointContents, stored: StoredFile) -> None:
    """Refuse to copy what a checkpoint only points at: anything of this machine could be there."""
    checkpoint = source.checkpoint
    if checkpoint.commit is None and leads_out(Path(checkpoint.source), stored.filename):
        raise SourceError(
            f"{checkpoint.label}/{stored.filename}: a link out of its folder, which is not copied "
            "into a model; put the file there itself, or remove the link"
        )


def with_dtype(config: Mapping[str, object], dtype: str) -> Mapping[str, object]:
    """Return a config that names another dtype, wherever it named one."""
    edited = {
        key: dtype if key in ("dtype", "torch_dtype") else value for key, value in config.items()
    }
    if not {"dtype", "torch_dtype"} & set(edited):
        edited["dtype"] = dtype
    nested = edited.get("text_config")
    if isinstance(nested, dict):
        edited["text_config"] = {
            key: dtype if key in ("dtype", "torch_dtype") else value
            for key, value in nested.items()
        }
    return edited


def dtype_notice(source: CheckpointContents, stored_dtype: str) -> tuple[Notice, ...]:
    """Warn when config.json names another dtype than the weights have: a load will cast."""
    named = config_value(source.config, "dtype") or config_value(source.config, "torch_dtype")
    stored = TORCH_NAMES.get(stored_dtype)
    if not isinstance(named, str) or stored is None or named == stored:
        return ()
    message = (
        f"weights are stored as {stored} and config.json says {named}: loading casts them; "
        f"--dtype {named} writes what is loaded"
    )
    return (Notice("dtype_differs", message),)

"""What predict or extract left behind, checked before it is pushed: whole, and as described.

The manifest may have been written by anybody. It can only name files that lie in this very folder
under plain names, and nothing in it is obeyed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alpharl_hub import safetensors_header, strict_json
from alpharl_hub.card.make import CARD_NAME, EVAL_FILE, PICTURE
from alpharl_hub.errors import ManifestError, PushError
from alpharl_hub.manifest import KIND_FACTORS, MANIFEST_NAME, Manifest, read_manifest
from alpharl_hub.output import factor_names
from alpharl_hub.output.model_files import MAX_COPIED_BYTES
from alpharl_hub.sources.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    adapter_tensors,
    parse_settings,
)
from alpharl_hub.sources.contents import INDEX_FILE, SINGLE_FILE
from alpharl_hub.sources.local_run import near_folder
from alpharl_hub.trajectory import TensorRef

WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|ot|gguf|onnx|distcp|pkl|pickle)$"
    r"|\.(safetensors|bin|h5|msgpack)\.index\.json$"
    r"|^adapter_",
    re.IGNORECASE,
)
"""Names at the root of a repo that hold weights, list them, or change what is loaded."""


@dataclass(frozen=True)
class FinishedFolder:
    """What goes up: the weight files, and every other file by its name."""

    manifest: Manifest
    weights: tuple[Path, ...]
    others: Mapping[str, Path]


def read_finished_folder(folder: Path) -> FinishedFolder:
    """Read what predict or extract wrote; nothing else that lies there is part of the answer.

    Of factors that is no place on this machine, and no card, which is made when they are sent.

    Raises:
        ManifestError: alpharl.json is missing, unreadable, or names what it must not.
        PushError: a file is missing, incomplete, or not what alpharl.json describes.
        HeaderError: a weight file that is damaged. TrajectoryError: an adapter that is none.
    """
    path = folder / MANIFEST_NAME
    if not folder.exists():
        near = near_folder(str(folder))
        hint = f"did you mean {near}?" if near else "name what predict or extract wrote"
        raise ManifestError(f"{folder}: no such folder; {hint}")
    if not _is_regular(path):
        raise ManifestError(
            f"{folder}: has no {MANIFEST_NAME}; only what predict or extract wrote is pushed"
        )
    manifest = read_manifest(strict_json.read_file(path), str(path))
    others = {MANIFEST_NAME: path}
    if manifest.kind == KIND_FACTORS:
        return _finished_factors(folder, manifest, others)
    for name in (CARD_NAME, *manifest.copied_files):
        if not is_plain_name(name) or WEIGHTS.search(name):
            raise ManifestError(f"{path}: {name!r} is no file that predict copies; nothing is sent")
        others[name] = _small(folder, name)
    for name in filter(lambda name: _is_there(folder, name), (PICTURE, EVAL_FILE)):
        others[name] = _small(folder, name)
    if manifest.method is not None and manifest.method.as_adapter:
        return _finished_adapter(folder, manifest, others)
    index = folder / INDEX_FILE
    if index.exists() or index.is_symlink():
        filenames = _read_index(folder, INDEX_FILE, SINGLE_FILE)
        others[INDEX_FILE] = index
    else:
        filenames = frozenset({SINGLE_FILE})
    weights = tuple(_present(folder, name) for name in sorted(filenames))
    _check_tensors(manifest, {path.name: _tensors(path) for path in weights}, others)
    return FinishedFolder(manifest, weights, others)


def _finished_factors(folder: Path, manifest: Manifest, others: dict[str, Path]) -> FinishedFolder:
    """Take factors, if they are those of every matrix that the manifest lists."""
    index = folder / factor_names.INDEX_FILE
    names = [factor_names.SINGLE_FILE]
    if index.exists() or index.is_symlink():
        names = sorted(_read_index(folder, factor_names.INDEX_FILE, factor_names.SINGLE_FILE))
        others[factor_names.INDEX_FILE] = index
    weights = tuple(_present(folder, name) for name in names)
    found = {ref.name.rpartition(".")[0] for path in weights for ref in _tensors(path)}
    differing = sorted(found ^ {tensor.name for tensor in manifest.tensors})
    if differing:
        raise PushError(
            f"{folder}: the factors are not those that {MANIFEST_NAME} describes (first "
            f"difference: {differing[0]!r}); extract again"
        )
    return FinishedFolder(manifest, weights, others)


def _finished_adapter(folder: Path, manifest: Manifest, others: dict[str, Path]) -> FinishedFolder:
    """Take an adapter and its config, after a look whether they change what the manifest says."""
    weights = _present(folder, ADAPTER_FILE)
    path = others[ADAPTER_CONFIG] = _small(folder, ADAPTER_CONFIG)
    config = strict_json.parse(strict_json.read_file(path), str(path))
    settings = parse_settings(config if isinstance(config, dict) else {}, str(folder))
    refs = adapter_tensors(_tensors(weights), settings, str(weights))
    recorded = {t.name: (t.dtype, sorted(t.shape)) for t in manifest.tensors}
    if isinstance(config, dict) and config.get("ensure_weight_tying"):
        # A head that stays tied is stored beside its embedding, and is no tensor of its own.
        refs = {n: r for n, r in refs.items() if n in recorded or not n.endswith("lm_head.weight")}
    # The model's name may have a component in front that the base's files lack.
    named = {n if n in recorded else n.partition(".")[2]: ref for n, ref in refs.items()}
    if {n: (ref.dtype, sorted(ref.shape)) for n, ref in named.items()} != recorded:
        raise PushError(
            f"{folder}: the adapter does not change what {MANIFEST_NAME} describes; predict again"
        )
    return FinishedFolder(manifest, (weights,), others)


def is_plain_name(name: str) -> bool:
    """Whether a text names a visible file in the folder itself, on every system."""
    return (
        name.isprintable()
        and name[:1] not in ("", ".", "-")
        and not any(char in name for char in '/\\:*?"<>|')
    )


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _present(folder: Path, name: str) -> Path:
    path = folder / name
    if not _is_regular(path):
        raise PushError(f"{path}: missing, or no regular file; predict again, or name its folder")
    return path


def _is_there(folder: Path, name: str) -> bool:
    """Whether the folder has this file of the card, which not every model has, in itself."""
    path = folder / name
    return path.exists() and not path.parent.is_symlink()


def _small(folder: Path, name: str) -> Path:
    """Take a file that is sent whole from memory, if predict would have copied one so large."""
    path = _present(folder, name)
    num_bytes = path.stat().st_size
    if num_bytes > MAX_COPIED_BYTES:
        raise PushError(
            f"{path}: {num_bytes} bytes, more than predict copies ({MAX_COPIED_BYTES}); nothing is "
            "sent"
        )
    return path


def _read_index(folder: Path, filename: str, single: str) -> frozenset[str]:
    """Return the weight files that the index names, each a plain name."""
    path = _present(folder, filename)
    if (folder / single).exists():
        raise PushError(f"{folder}: has {single} beside {filename}; remove the stray one")
    weight_map = _index_field(path, "weight_map")
    names = frozenset(str(name) for name in weight_map.values())
    for name in names:
        if not is_plain_name(name) or not name.endswith(".safetensors"):
            raise PushError(f"{path}: {name!r} is no weight file of this folder; nothing is sent")
    return names


def _index_field(path: Path, field: str) -> Mapping[str, object]:
    document = strict_json.parse(strict_json.read_file(path), str(path))
    found = document.get(field) if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise PushError(f"{path}: has no {field}; predict again")
    return found


def _tensors(path: Path) -> tuple[TensorRef, ...]:
    """Return a weight file's tensors; the header says how long the file must be."""
    file_num_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(safetensors_header.PREFIX_NUM_BYTES)
        header_bytes = safetensors_header.header_num_bytes(prefix, file_num_bytes, str(path))
        header = file.read(header_bytes)
    return safetensors_header.parse_header(header, file_num_bytes, str(path)).tensors


def _check_tensors(
    manifest: Manifest,
    by_file: Mapping[str, tuple[TensorRef, ...]],
    others: Mapping[str, Path],
) -> None:
    """Compare what the weight files hold with the index and with the manifest."""
    found = {ref.name: (ref.dtype, ref.shape) for refs in by_file.values() for ref in refs}
    recorded = {tensor.name: (tensor.dtype, tensor.shape) for tensor in manifest.tensors}
    if found != recorded:
        names = sorted(n for n in {*found, *recorded} if found.get(n) != recorded.get(n))
        raise PushError(
            f"{others[MANIFEST_NAME].parent}: the weights are not those that {MANIFEST_NAME} "
            f"describes (first difference: {names[0]!r}); predict again"
        )
    index = others.get(INDEX_FILE)
    if index is None:
        return
    in_files = {ref.name: name for name, refs in by_file.items() for ref in refs}
    num_bytes = sum(ref.num_bytes for refs in by_file.values() for ref in refs)
    if (
        in_files != _index_field(index, "weight_map")
        or _index_field(index, "metadata").get("total_size") != num_bytes
    ):
        raise PushError(f"{index}: does not fit the weight files beside it; predict again")

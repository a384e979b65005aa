"""Every reader of a file that strangers may have written: bytes in, an answer or one error out."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from alpharl_hub.card.make import card_metadata
from alpharl_hub.errors import AlphaRLError
from alpharl_hub.manifest import read_manifest
from alpharl_hub.output.factor_files import FactorFolder, read_local_places
from alpharl_hub.output.journal import JOURNAL_NAME, LOCK_NAME, RESULT_FOLDER, open_journal
from alpharl_hub.output.model_files import copied_files
from alpharl_hub.safetensors_header import (
    Header,
    encode_header,
    header_num_bytes,
    parse_header,
)
from alpharl_hub.scores.learning_rates import read_learning_rates, read_schedule
from alpharl_hub.scores.table import parse_scores, scores_from_trainer_state
from alpharl_hub.sources.base_choice import base_of_adapter
from alpharl_hub.sources.contents import open_contents
from alpharl_hub.sources.local import LocalFolder
from alpharl_hub.trajectory import Checkpoint, CheckpointContents, StoredFile

MAX_LINE_CHARS = 2000
"""Longer than any line that a user should have to read; most are below 200."""

CHECKPOINT = Checkpoint(10, "lab/run", "step_10", "0" * 40, "")
NAMES = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


class MemoryStore:
    """The files of one checkpoint, in memory."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def files(self) -> Mapping[str, StoredFile]:
        """List them."""
        return {name: StoredFile(name, len(data), None) for name, data in self._files.items()}

    def read_into(self, filename: str, start: int, buffer: memoryview) -> None:
        """Fill the buffer."""
        data = self._files[filename][start : start + len(buffer)]
        assert len(data) == len(buffer), "more is read than there is"
        buffer[:] = data

    def is_private(self) -> bool:
        """Nobody is let in."""
        return False


def weights(*entries: tuple[str, tuple[int, ...]]) -> bytes:
    """A safetensors file of zeros in fp32."""
    header = encode_header([(name, "F32", shape) for name, shape in entries], {"format": "pt"})
    return header + b"".join(bytes(4 * rows * columns) for _, (rows, columns) in entries)


WHOLE = weights(*((name, (4, 3)) for name in NAMES))
ADAPTER = weights((_LORA.format("A"), (2, 3)), (_LORA.format("B"), (4, 2)))
ADAPTER_CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": False}


def opened(files: Mapping[str, bytes]) -> CheckpointContents:
    """Open a checkpoint of these files."""
    return open_contents(CHECKPOINT, MemoryStore(files))


def read_header(data: bytes) -> Header:
    """A whole safetensors file."""
    length = header_num_bytes(data[:8], len(data), "x.safetensors")
    return parse_header(data[8 : 8 + length], len(data), "x.safetensors")


def read_index(data: bytes) -> object:
    """model.safetensors.index.json beside two shards."""
    shards = {s: weights((n, (4, 3))) for s, n in zip(SHARDS, NAMES, strict=True)}
    return opened({"model.safetensors.index.json": data, "config.json": b"{}", **shards})


def read_config(data: bytes) -> object:
    """config.json, which is copied, and written anew where another dtype is asked for."""
    contents = opened({"config.json": data, "model.safetensors": WHOLE})
    for dtype in (None, "BF16"):
        for file in copied_files(contents, contents, dtype):
            json.loads(file.read().decode())
    return contents


def read_adapter_config(data: bytes) -> object:
    """adapter_config.json, and the base that it names."""
    files = {"adapter_config.json": data, "adapter_model.safetensors": ADAPTER}
    contents = opened(files)
    return base_of_adapter(contents.adapter or {}, contents.checkpoint)


def read_adapter(data: bytes) -> object:
    """The weights of an adapter."""
    config = json.dumps(ADAPTER_CONFIG).encode()
    return opened({"adapter_config.json": config, "adapter_model.safetensors": data})


def read_trainer_state(data: bytes) -> object:
    """trainer_state.json, for scores and for the learning rate."""
    text = data.decode("utf-8", errors="replace")
    reading = read_schedule(text, 10)
    for clock in (reading.clock, read_learning_rates(text).clock):
        if clock is not None:
            clock.step_at(clock.time(20.5))
    return scores_from_trainer_state({10: text}, None)


def _scores_reader(filename: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        return parse_scores(data.decode("utf-8", errors="replace"), filename, None)

    return read


def read_alpharl_json(data: bytes) -> object:
    """alpharl.json, which can be written again."""
    return read_manifest(data, "alpharl.json").to_json().encode()


def _in_folder(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def read_there(data: bytes) -> object:
        with TemporaryDirectory() as folder:
            Path(folder, name).write_bytes(data)
            return read(Path(folder))

    return read_there


def read_factors(folder: Path) -> object:
    """The factors of a folder of `extract`, of two checkpoints."""
    factors = FactorFolder(LocalFolder(folder), str(folder), 2)
    return [factors.read(name) for name in factors.names()]


def read_card(data: bytes) -> object:
    """The front matter of a card."""
    return card_metadata(data.decode("utf-8", errors="replace"))


JOURNAL_IDENTITY = {"run": ["lab/run", 10], "method": {"rank": 1}}


def sealed(data: bytes) -> bytes:
    """The lines of a journal, each with the checksum that belongs before it."""
    checksum, lines = 0, b""
    for line in data.split(b"\n"):
        checksum = zlib.crc32(line, checksum)
        lines += b"%08x %s\n" % (checksum, line)
    return lines


def read_journal(folder: Path) -> object:
    """The journal of an earlier start: as it stands, and as if its checksums were right."""
    path = folder / JOURNAL_NAME
    data = path.read_bytes()
    answers = []
    for content in (data, sealed(data)):
        (folder / LOCK_NAME).touch()
        (folder / RESULT_FOLDER).mkdir()
        path.write_bytes(content)
        with open_journal(folder, JOURNAL_IDENTITY) as journal:
            answers.append(dict(journal.results))
        folder.mkdir(exist_ok=True)  # a journal that has served its purpose goes with its folder
    return answers


READERS: dict[str, Callable[[bytes], object]] = {
    "header": read_header,
    "index": read_index,
    "config": read_config,
    "adapter_config": read_adapter_config,
    "adapter": read_adapter,
    "trainer_state": read_trainer_state,
    "scores_csv": _scores_reader("scores.csv"),
    "scores_json": _scores_reader("scores.json"),
    "scores_jsonl": _scores_reader("scores.jsonl"),
    "manifest": read_alpharl_json,
    "local_places": _in_folder("local-places.json", read_local_places),
    "factors": _in_folder("factors.safetensors", read_factors),
    "card": read_card,
    "journal": _in_folder(JOURNAL_NAME, read_journal),
}


def refusal(name: str, data: bytes) -> str | None:
    """Let a reader read: None when it has an answer, else the one line of its refusal.

    Any other exception than ours, and a line that is none, is a finding.
    """
    try:
        READERS[name](data)
    except AlphaRLError as error:
        line = str(error)
        assert line, name
        assert len(line) <= MAX_LINE_CHARS, f"{name}: {len(line)} characters"
        return line
    return None

"""Runs the user's evaluation of one candidate, and finds the score that it leaves.

The command is the user's own and runs in a shell of its own session. Whatever it started ends with
it, and with this program, even where that is killed: a candidate's folder is deleted afterwards,
and a forgotten server would hold the GPU of the next one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from alpharl_hub.errors import ScoreError
from alpharl_hub.output.shards import write_error
from alpharl_hub.sources.patience import Cancelled
from alpharl_hub.strict_json import read_int, why_not_json

LOG_NAME = "log.txt"
OUT_NAME = "out"
_PLACEHOLDER = re.compile(r"\{model\}|\{out\}")
_SCORE_LINE = re.compile(r"score=(\S+)")
_MAX_LAST_LINES = 20
_MAX_KEYS = 20  # within each other, to be looked at for an error's words
_MAX_SHOWN = 200
_POLL_S = 0.05
_GRACE_S = 2.0
"""From TERM to KILL; the command line waits four seconds for everything to end."""

_GUARD = (
    'read -r word; test "$word" = done || '
    '{ kill -s TERM -- -"$1"; sleep 2; kill -s KILL -- -"$1"; } 2>/dev/null'
)
"""Ends the process group $1 when its standard input closes without a word, as a killed owner's."""


class EvaluationError(ScoreError):
    """An evaluation without a usable score; `last_lines` are the last that it printed."""

    def __init__(self, message: str, last_lines: tuple[str, ...]) -> None:
        super().__init__(message)
        self.last_lines = last_lines


@dataclass(frozen=True)
class ScorePlace:
    """A number in a JSON file: `pattern` names the file below {out}, `keys` the way to it."""

    pattern: str
    keys: str


@dataclass(frozen=True)
class Evaluation:
    """How candidates are scored: a shell command, and where its score stands (None: printed)."""

    command: str
    score_place: ScorePlace | None = None

    @property
    def digest(self) -> str:
        """A short name that is equal for equal evaluations."""
        text = json.dumps([self.command, self.score_place and vars(self.score_place)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Measurement:
    """The score of one candidate, and how long that took."""

    score: float
    seconds: float


def make_evaluation(command: str, score_json: str | None = None) -> Evaluation:
    """Read what the user gave as --evaluate and --score-json FILE:KEY.PATH.

    Raises:
        ScoreError: no {model} in the command, or a place that no file below {out} can be.
    """
    if "{model}" not in command:
        raise ScoreError(
            "--evaluate: the command does not say {model}, which is replaced by the folder of the "
            "model to score; put it where the model's name belongs"
        )
    if score_json is None:
        return Evaluation(command)
    pattern, _, keys = score_json.partition(":")
    path = PurePosixPath(pattern)
    is_below = not path.is_absolute() and ".." not in path.parts
    if not pattern or not keys or not is_below or "**" in pattern:
        raise ScoreError(
            f"--score-json {score_json}: give FILE:KEY.PATH, where FILE lies below {{out}} "
            "at any depth and may hold * (results_*.json:results.gsm8k.exact_match)"
        )
    if "{out}" not in command:
        raise ScoreError(
            "--score-json: the command does not say {out}, which is replaced by the folder where "
            "the file is looked for; tell it to write there"
        )
    return Evaluation(command, ScorePlace(pattern, keys))


def fill_in(command: str, model: Path, out: Path) -> str:
    """Replace {model} and {out} so that each stays within one argument of the shell.

    Inside quotes that the user has set, the path is escaped for these; all other braces stay.
    """
    paths = {"{model}": str(model), "{out}": str(out)}
    pieces, quote, position = [], "", 0
    for match in _PLACEHOLDER.finditer(command):
        before = command[position : match.start()]
        quote = _open_quote(before, quote)
        pieces += [before, _quoted(paths[match[0]], quote)]
        position = match.end()
    return "".join([*pieces, command[position:]])


def _open_quote(text: str, quote: str) -> str:
    """Return which quotes are open after a piece of a command, given which were before it."""
    is_escaped = False
    for letter in text:
        if is_escaped:
            is_escaped = False
        elif letter == "\\" and quote != "'":
            is_escaped = True
        elif letter == quote:
            quote = ""
        elif not quote and letter in "'\"":
            quote = letter
    return quote


def _quoted(path: str, quote: str) -> str:
    if quote == "'":
        return path.replace("'", "'\\''")
    if quote == '"':
        return re.sub(r'([\\"$`])', r"\\\1", path)
    return shlex.quote(path)


def evaluate(
    evaluation: Evaluation, model: Path, folder: Path, stop: threading.Event
) -> Measurement:
    """Score the model in a folder.

    Args:
        evaluation: how.
        model: the candidate.
        folder: where the log goes and, in a fresh folder, what the command writes to {out}.
        stop: set to end the command and everything that it has started.

    Raises:
        EvaluationError: it failed, or left no finite score.
        WriteError: the folder cannot be written. Cancelled: `stop` was set.
    """
    out, log = folder / OUT_NAME, folder / LOG_NAME
    try:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        sink = open(log, "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise write_error(folder, error) from error
    started_s = time.monotonic()
    with sink:
        status = _run(fill_in(evaluation.command, model.absolute(), out.absolute()), sink, stop)
    seconds = time.monotonic() - started_s
    if status != 0:
        raise _failure(log, f"ended with {_status_text(status)}")
    place = evaluation.score_place
    score = _printed_score(log) if place is None else _stored_score(place, out, log)
    return Measurement(score, seconds)


def _run(command: str, sink: IO[bytes], stop: threading.Event) -> int:
    """Run a command to its end and return its status, minus the signal that ended it."""
    if stop.is_set():
        raise Cancelled
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=sink,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    with _guarded(process.pid):
        try:
            while process.poll() is None:
                if stop.wait(_POLL_S):
                    raise Cancelled
        finally:
            _end_group(process)
    return process.wait()


@contextmanager
def _guarded(group: int) -> Iterator[None]:
    """Have a process group ended if this process is killed in the meantime."""
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "guard", str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        guard.communicate(b"done\n")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process group: kindly, then not."""
    # ESRCH: nobody is left. EPERM is what macOS answers when all that is left are zombies.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline_s:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(_POLL_S)
        os.killpg(process.pid, signal.SIGKILL)


def _status_text(status: int) -> str:
    return f"status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"


def _lines(log: Path) -> Iterator[str]:
    """Read what was printed, with the states of a progress bar as lines of their own."""
    with open(log, encoding="utf-8", errors="backslashreplace") as file:
        for line in file:  # universal newlines: a lone carriage return ends a line too
            yield line.strip()


def _failure(log: Path, what: str) -> EvaluationError:
    last = deque((line for line in _lines(log) if line), maxlen=_MAX_LAST_LINES)
    shown = f" ({last[-1][:_MAX_SHOWN]})" if last else ""
    message = (
        f"the evaluation {what}{shown}; all that it printed is in {log}; mend the command, then "
        "start again to go on"
    )
    return EvaluationError(message, tuple(last))


def _printed_score(log: Path) -> float:
    found = None
    for line in _lines(log):
        found = _SCORE_LINE.fullmatch(line) or found
    if found is None:
        raise _failure(log, "printed no line score=NUMBER and there is no --score-json")
    try:
        score = float(found[1])
    except ValueError:
        raise _failure(log, f"printed {found[0][:_MAX_SHOWN]}, which is no number") from None
    return _finite(score, log)


def _stored_score(place: ScorePlace, out: Path, log: Path) -> float:
    paths = [path for path in out.rglob(place.pattern) if path.is_file()]
    if not paths:
        raise _failure(log, f"left no file {place.pattern} below {out}")
    newest = max(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))
    try:
        document = json.loads(newest.read_bytes(), parse_int=read_int)
    except (OSError, ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, OSError) else why_not_json(error)
        raise _failure(log, f"left a file {newest} that is no JSON ({why})") from error
    found = _look_up(document, place.keys.split("."))
    if found is None:
        there = ", ".join(_key_paths(document))
        raise _failure(log, f"left no number {place.keys} in {newest}, which has {there}")
    return _finite(found, log)


def _look_up(document: object, parts: list[str]) -> float | None:
    """Follow keys that may themselves hold dots: the longest that leads to a number wins."""
    if not parts:
        is_number = isinstance(document, int | float) and not isinstance(document, bool)
        return float(document) if is_number else None  # type: ignore[arg-type]
    if not isinstance(document, Mapping):
        return None
    for length in range(len(parts), 0, -1):
        key = ".".join(parts[:length])
        if key in document:
            found = _look_up(document[key], parts[length:])
            if found is not None:
                return found
    return None


def _key_paths(document: object, max_shown: int = 8) -> list[str]:
    """Name the numbers of a document, the first few, for an error."""
    found: list[str] = []

    def walk(value: object, path: str, depth: int = 0) -> None:
        if isinstance(value, Mapping) and depth < _MAX_KEYS:
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else str(key), depth + 1)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append(path)

    walk(document, "")
    more = [f"and {len(found) - max_shown} more"] if len(found) > max_shown else []
    return [*found[:max_shown], *more] or ["no number"]


def _finite(score: float, log: Path) -> float:
    if not math.isfinite(score):
        raise _failure(log, f"gave the score {score}")
    return score

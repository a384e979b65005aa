"""Files of strangers are read to the end or refused in one line, whatever bytes they hold."""

from __future__ import annotations

import json
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import manifest_maker
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trajectories import command, rank_one_line, succeed, write_run

from alpharl_hub.errors import HeaderError, TrajectoryError
from alpharl_hub.sources.contents import open_contents
from alpharl_hub.sweeping.evaluation import EvaluationError, evaluate, make_evaluation
from alpharl_hub.trajectory import StoredFile
from tests.fuzz.targets import (
    ADAPTER,
    ADAPTER_CONFIG,
    CHECKPOINT,
    JOURNAL_IDENTITY,
    NAMES,
    READERS,
    SHARDS,
    WHOLE,
    opened,
    refusal,
    sealed,
    weights,
)

FACTORS_SHAPES = {"u": (2, 1, 4), "sigma": (2, 1), "v": (2, 1, 3), "frobenius": (2,)}
MARKS = {
    '"@digits"': "9" * 5000,
    '"@deep"': "[" * 100_000 + "]" * 100_000,
    '"@nested"': "[" * 150 + "]" * 150,
    '"@objects"': '{"a":' * 5000 + "1" + "}" * 5000,
    '"@huge"': "1e999",
    '"@million"': "1" + "0" * 290,
    '"@minus"': "-9223372036854775809",
    '"@zero"': "-0",
    '"@nan"': "NaN",
    '"@infinity"': "-Infinity",
    '"@half"': '"\\ud800"',
    '"@nul"': '"a\\u0000b"',
    '"@long"': '"' + "x" * 5000 + '"',
    '"@bidi"': '"\\u202egpj.exe"',
}
"""What stands in a mutated document, and the text that takes its place: json writes none of it."""


def header_of(file: bytes) -> dict[str, Any]:
    """The JSON header of a safetensors file."""
    length = int.from_bytes(file[:8], "little")
    found: dict[str, Any] = json.loads(file[8 : 8 + length])
    return found


def with_header(file: bytes, header: bytes) -> bytes:
    """The data of a file behind another header."""
    length = int.from_bytes(file[:8], "little")
    return len(header).to_bytes(8, "little") + header + file[8 + length :]


def factors_file() -> bytes:
    """The factors of one matrix at two checkpoints."""
    header: dict[str, Any] = {}
    start = 0
    for field, shape in FACTORS_SHAPES.items():
        size = 4
        for side in shape:
            size *= side
        offsets = [start, start + size]
        header[f"a.{field}"] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        start += size
    return with_header(bytes(8) + bytes(start), json.dumps(header).encode())


FILES = {"header": WHOLE, "adapter": ADAPTER, "factors": factors_file()}
STATE = {
    "global_step": 10,
    "max_steps": 100,
    "log_history": [
        *({"step": s, "learning_rate": 1e-6 * (100 - s), "loss": 0.1} for s in range(1, 10)),
        {"step": 10, "eval_reward": 0.5},
    ],
}
PATTERNS = {"rank_pattern": {".*q_proj": 2}, "alpha_pattern": {"layers.0.self_attn.q_proj": 4}}
DOCUMENTS: dict[str, Any] = {
    **{name: header_of(file) for name, file in FILES.items()},
    "index": {"metadata": {"total_size": 96}, "weight_map": dict(zip(NAMES, SHARDS, strict=True))},
    "config": {"dtype": "float32", "text_config": {"torch_dtype": "float32"}, "n": [1, 2]},
    "adapter_config": {**ADAPTER_CONFIG, **PATTERNS, "base_model_name_or_path": "lab/base"},
    "trainer_state": STATE,
    "scores_json": {"10": 0.5, "20": {"score": 0.6}},
    "scores_jsonl": {"step": 10, "data": {"score": 0.5}},
    "manifest": json.loads(manifest_maker.manifest().to_json()),
    "local_places": {"ab" * 32: "runs/grpo/step_10"},
}
TEXTS = {
    "scores_csv": b'step,score\n10,0.5\n20,"0.6"\n',
    "journal": sealed(
        json.dumps({"identity": JOURNAL_IDENTITY}).encode() + b'\n{"key": "window 0", "result": 1}'
    ),
    "card": b"---\nlicense: mit\nbase_model: lab/base\ntags: [a, b]\n---\nwords\n",
}


def stored(name: str, text: str) -> bytes:
    """The file of a reader that holds this JSON, which may stand behind a length."""
    data = text.encode("utf-8", "surrogatepass")
    return with_header(FILES[name], data) if name in FILES else data


def seed(name: str) -> bytes:
    """A file that the reader takes."""
    return TEXTS[name] if name in TEXTS else stored(name, json.dumps(DOCUMENTS[name]))


@pytest.mark.parametrize("name", READERS)
def test_the_valid_files_are_read(name: str) -> None:
    """What the tests below change is a good file as it stands."""
    assert refusal(name, seed(name)) is None


SCALARS = st.one_of(
    st.sampled_from([mark.strip('"') for mark in MARKS]),
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 10**18]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(), max_size=12),
    st.sampled_from(
        ["..", "/etc/passwd", "a/b", "", "step_10", "LORA", "F32", "(a+)+$", "a{9}{9}"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A document with one to three of its parts replaced, left out, renamed or added."""
    for _ in range(draw(st.integers(1, 3))):
        document = draw(changed_once(document))
    return document


@st.composite
def changed_once(draw: st.DrawFn, document: Any) -> Any:
    """A document with one part changed, anywhere."""
    if isinstance(document, dict) and document and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(document)))
        rest = {k: v for k, v in document.items() if k != key}
        kind = draw(st.integers(0, 9))
        if kind == 0:
            return rest
        name = draw(st.text(st.characters(), max_size=8)) if kind == 1 else key
        value = document[key] if kind == 1 else draw(changed_once(document[key]))
        return {**document, name: value} if kind == 2 else {**rest, name: value}
    if isinstance(document, list) and document and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(document) - 1))
        part = [] if draw(st.integers(0, 9)) == 0 else [draw(changed_once(document[place]))]
        return [*document[:place], *part, *document[place + 1 :]]
    return draw(VALUES)


def as_text(document: Any) -> str:
    """Write a changed document, with what json would not write in the place of its marks."""
    text = json.dumps(document)
    for mark, raw in MARKS.items():
        text = text.replace(mark, raw)
    return text


RELAXED = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_changed_documents_end_in_an_answer_or_one_line(name: str) -> None:
    """Other values, missing keys, huge numbers, halves of characters, deep nesting: no crash."""

    @RELAXED
    @given(changed(DOCUMENTS[name]))
    def check(document: Any) -> None:
        refusal(name, stored(name, as_text(document)))

    check()


def test_changed_lines_of_a_journal_end_in_an_answer_or_one_line() -> None:
    """Also where their checksums are right, as only somebody who means harm would make them."""
    lines = [{"identity": JOURNAL_IDENTITY}, *({"key": f"w{i}", "result": [i]} for i in range(3))]

    @RELAXED
    @given(changed(lines))
    def check(found: Any) -> None:
        found = found if isinstance(found, list) else [found]
        text = "\n".join(as_text(line) for line in found)
        refusal("journal", sealed(text.encode("utf-8", "surrogatepass")))

    check()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("[" * 100_000, "is no JSON (nested too deeply)"),
        ('{"a":' * 900 + "1" + "}" * 900, "left no number score in "),
        ('{"score": 1' + "0" * 310 + "}", "is no JSON (a number of 311 digits is out of range)"),
        ('{"score": 1e999}', "gave the score inf"),
        ('{"score": NaN}', "gave the score nan"),
        ('{"score": true}', "left no number score in "),
        ("\ud800", "is no JSON"),
        ("", "is no JSON"),
    ],
)
def test_results_of_an_evaluation_give_a_number_or_one_line(
    tmp_path: Path, document: str, words: str
) -> None:
    """What an evaluation writes is JSON like any other."""
    written = tmp_path / "written.json"
    written.write_bytes(document.encode("utf-8", "surrogatepass"))
    asked = make_evaluation(f"cp '{written}' {{out}}/x.json # {{model}}", "x.json:score")
    with pytest.raises(EvaluationError) as caught:
        evaluate(asked, tmp_path, tmp_path / "evaluation", threading.Event())
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", READERS)
def test_changed_bytes_end_in_an_answer_or_one_line(name: str) -> None:
    """Bytes replaced, cut out and put in anywhere, or nothing but arbitrary bytes: no crash."""
    whole = seed(name)
    edits = st.lists(
        st.tuples(st.integers(0, len(whole)), st.integers(0, 4), st.binary(max_size=4)),
        max_size=4,
    )

    @RELAXED
    @given(edits, st.none() | st.binary(max_size=200))
    def check(edits: list[tuple[int, int, bytes]], instead: bytes | None) -> None:
        data = whole
        for place, length, new in edits:
            data = data[:place] + new + data[place + length :]
        refusal(name, data if instead is None else instead)

    check()


BOMBS = {
    "a hundred thousand brackets": "[" * 100_000,
    "closed brackets": "[" * 100_000 + "]" * 100_000,
    "objects in objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "objects in one key": '{"log_history":' + '{"step":' * 50_000 + "1" + "}" * 50_001,
    "a number of a million digits": '{"r":' + "9" * 1_000_000 + "}",
    "a byte order mark": '\ufeff{"a": 1}',
    "a NUL byte": '{"a": "\x00"}',
    "half a character": '{"a": "\\udcff"}',
    "nothing": "",
    "two documents": "{} {}",
}
JSON_READERS = sorted(set(DOCUMENTS) - {"scores_jsonl"})


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", JSON_READERS)
def test_bombs_are_refused_soon_and_in_little_memory(name: str, bomb: str) -> None:
    """Every reader of JSON refuses what can be no document, without a traceback or a long wait."""
    data = stored(name, BOMBS[bomb])
    tracemalloc.start()
    started_s = time.monotonic()
    line = refusal(name, data)
    elapsed_s = time.monotonic() - started_s
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    excel = (name, bomb) == ("scores_json", "a byte order mark")
    assert (line is not None) or excel
    assert elapsed_s < 10
    assert peak_bytes < 100_000_000


@pytest.mark.parametrize("name", ["config", "index", "adapter_config"])
def test_other_encodings_than_utf8_are_refused(name: str) -> None:
    """Libraries read these files as UTF-8; what only we could read would not load elsewhere."""
    for encoding in ("utf-16", "utf-32-le", "utf-8-sig"):
        line = refusal(name, json.dumps(DOCUMENTS[name]).encode(encoding))
        assert line is not None
        assert "no valid JSON" in line


LINES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "digits in a config": (
        "config",
        lambda: b'{"vocab_size": ' + b"9" * 5000 + b"}",
        "config.json: no valid JSON (a number of 5000 digits is out of range); store it again",
    ),
    "depth in a config": (
        "config",
        lambda: MARKS['"@nested"'].join(('{"a":', "}")).encode(),
        "config.json: no valid JSON (nested too deeply); store it again",
    ),
    "half a character in a config": (
        "config",
        lambda: b'{"a": "\\ud800"}',
        "config.json: no valid JSON ('\\ud800' is half a character); store it again",
    ),
    "digits in scores": (
        "scores_json",
        lambda: b'{"10": ' + b"9" * 5000 + b"}",
        "scores.json: not valid JSON (a number of 5000 digits is out of range); mend it",
    ),
    "digits in a manifest": (
        "manifest",
        lambda: b'{"schema": ' + b"1" * 5000 + b"}",
        "alpharl.json: not valid JSON (a number of 5000 digits is out of range); write it anew",
    ),
    "a key twice in a manifest": (
        "manifest",
        lambda: b'{"schema": 1, "schema": 1}',
        "alpharl.json: not valid JSON (the same key stands twice in one object); write it anew",
    ),
    "depth in a manifest": (
        "manifest",
        lambda: b"[" * 100_000,
        "alpharl.json: not valid JSON (nested too deeply); write it anew",
    ),
    "a long schema": (
        "manifest",
        lambda: json.dumps({"schema": "x" * 9999}).encode(),
        "...' is not 1; it was not written by this version",
    ),
    "a long kind": (
        "manifest",
        lambda: json.dumps({**DOCUMENTS["manifest"], "kind": "x" * 9999}).encode(),
        "...'; it was not written by this version",
    ),
    "an infinite rank": (
        "adapter_config",
        lambda: b'{"peft_type": "LORA", "r": 2, "lora_alpha": Infinity}',
        "r is 2 and lora_alpha inf, which no LoRA has",
    ),
    "a rank beyond floats": (
        "adapter_config",
        lambda: b'{"peft_type": "LORA", "r": 1' + b"0" * 299 + b', "lora_alpha": 1}',
        "which no LoRA has; mend it, or leave this step out with --steps",
    ),
    "a switch that is neither on nor off": (
        "adapter_config",
        lambda: json.dumps({**ADAPTER_CONFIG, "use_rslora": 1}).encode(),
        "adapter_config.json: use_rslora is 1, neither true nor false; mend it",
    ),
    "a base that is no name": (
        "adapter_config",
        lambda: json.dumps({**ADAPTER_CONFIG, "base_model_name_or_path": "a\0b"}).encode(),
        "base_model_name_or_path is 'a\\x00b', which names nothing; mend it",
    ),
    "a base too long for the disk": (
        "adapter_config",
        lambda: json.dumps({**ADAPTER_CONFIG, "base_model_name_or_path": "/" + "x" * 999}).encode(),
        "which names nothing; mend it",
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_refusals_say_what_is_wrong(case: str) -> None:
    """The line names file, flaw and the next step, and quotes no interpreter's settings."""
    name, data, words = LINES[case]
    line = refusal(name, data())
    assert line is not None
    assert words in line


def test_the_last_of_duplicate_keys_counts_where_it_does_for_transformers() -> None:
    """Configs are read as the libraries read them that load the model."""
    assert refusal("config", b'{"dtype": "float32", "dtype": "bfloat16"}') is None
    doubled = json.dumps(DOCUMENTS["index"]).replace("{", '{"weight_map": {}, ', 1)
    assert refusal("index", doubled.encode()) is None


def adapter_with(patterns: dict[str, Any]) -> bytes:
    """An adapter_config.json with these patterns."""
    return json.dumps({**ADAPTER_CONFIG, "rank_pattern": patterns}).encode()


@pytest.mark.parametrize(
    "expression",
    [
        "(a+)+$",
        "(.*)*x",
        "(?:a|aa)+$",
        ".*.*.*.*x",
        "a?a?a?a?a?a?a?a?aaaaaaaa",
        r"(.*)\1\1\1",
        "(?=.*).*",
        "(?i)q_proj",
        "a)(b",
        "[[a]",
        "[",
        "a{4294967296}",
        "x" * 501,
    ],
)
def test_expressions_that_could_match_for_ever_are_refused(expression: str) -> None:
    """rank_pattern is somebody else's regular expression, and Python's have no time limit."""
    started_s = time.monotonic()
    line = refusal("adapter_config", adapter_with({expression: 2}))
    assert line is not None
    assert "rank_pattern has " in line
    assert time.monotonic() - started_s < 2


@pytest.mark.parametrize(
    "expression",
    [
        "q_proj",
        ".*q_proj",
        r"model\.layers\.\d+\.self_attn\..*q_proj",
        "^model.layers.0.self_attn.q_proj",
        "layers.(0|1).self_attn.(?:q|k)_proj",
        "model.layers.[0-9]+.self_attn.q_proj",
    ],
)
def test_expressions_that_people_write_are_read(expression: str) -> None:
    """Paths, wildcards, choices and numbers, as in peft's own documentation and tests."""
    assert refusal("adapter_config", adapter_with({expression: 2})) is None


def test_long_names_make_expressions_too_costly() -> None:
    """Expressions that are harmless alone are refused for modules chosen to make them slow."""
    module = "a." * 150
    names = [f"base_model.model.{module}{i}.lora_{p}.weight" for i in range(40) for p in "AB"]
    shapes = [(2, 3) if "_A" in name else (4, 2) for name in names]
    files = {
        "adapter_config.json": adapter_with({"a.*a.*a.*b": 3, "c.*q": 3}),
        "adapter_model.safetensors": weights(*zip(names, shapes, strict=True)),
    }
    started_s = time.monotonic()
    with pytest.raises(TrajectoryError, match="2 patterns for 40 modules take too long to match"):
        opened(files)
    assert time.monotonic() - started_s < 5


def test_a_tensor_name_without_end_is_refused() -> None:
    """Names are matched, sorted and printed everywhere; none of a model has a thousand letters."""
    with pytest.raises(HeaderError, match="has a name of 1001 characters; that is no model"):
        opened({"model.safetensors": weights(("x" * 1001, (2, 2)))})


class HollowStore:
    """Says of files that they are large, and gives nothing but the lengths of their headers."""

    def __init__(self, num_bytes: dict[str, int]) -> None:
        self._num_bytes = num_bytes
        self.asked_bytes: list[int] = []

    def files(self) -> dict[str, StoredFile]:
        """List them, beside an index that names all."""
        index = StoredFile("model.safetensors.index.json", len(self._index()), None)
        shards = {name: StoredFile(name, size + 8, None) for name, size in self._num_bytes.items()}
        return {index.filename: index, **shards}

    def _index(self) -> bytes:
        weight_map = {f"t{i}": name for i, name in enumerate(self._num_bytes)}
        return json.dumps({"weight_map": weight_map}).encode()

    def read_into(self, filename: str, start: int, buffer: memoryview) -> None:
        """Give the index, or the length of a header."""
        self.asked_bytes.append(len(buffer))
        if filename.endswith(".json"):
            buffer[:] = self._index()
        else:
            assert start == 0, "a header is asked for that is too large"
            buffer[:] = self._num_bytes[filename].to_bytes(8, "little")

    def is_private(self) -> bool:
        """Nobody is let in."""
        return False


@pytest.mark.parametrize("length", [65 << 20, 100_000_000, 100_000_001, 2**63, 2**64 - 1])
def test_nothing_is_read_or_allocated_for_a_header_that_is_too_large(length: int) -> None:
    """The stated length is judged first, also where the file is said to be as long."""
    store = HollowStore({SHARDS[0]: length})
    tracemalloc.start()
    with pytest.raises(HeaderError, match="bytes, more than"):
        open_contents(CHECKPOINT, store)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(store.asked_bytes) < 1000
    assert peak_bytes < 1_000_000


def test_small_headers_of_many_shards_have_a_limit_together() -> None:
    """What one file may not hold, many may not either."""
    header = b"{}".ljust(33 << 20)
    file = len(header).to_bytes(8, "little") + header
    index = {"weight_map": dict(zip(NAMES, SHARDS, strict=True))}
    files = {"model.safetensors.index.json": json.dumps(index).encode()}
    with pytest.raises(HeaderError, match="headers take 69206016 bytes, more than 67108864"):
        opened({**files, SHARDS[0]: file, SHARDS[1]: file})


def test_changed_manifests_end_in_a_model_or_one_line(tmp_path: Path) -> None:
    """Repeating a stranger's run, and predicting from a stranger's factors, never crashes."""
    run = write_run(tmp_path, (10, 20, 30, 40), rank_one_line())
    places = {"from": tmp_path / "model", "factors": tmp_path / "factors"}
    succeed("predict", *run.arguments("--target-step", "80", "-o", str(places["from"])))
    succeed("extract", *run.arguments("-o", str(places["factors"])))
    paths = {name: place / "alpharl.json" for name, place in places.items()}
    documents = {name: json.loads(path.read_text()) for name, path in paths.items()}
    output = ["-o", str(tmp_path / "out"), "--overwrite"]
    arguments = {
        "from": [*run.arguments(), "--from", str(paths["from"]), *output],
        "factors": [str(places["factors"]), "--target-step", "80", *output],
    }
    parts = st.sampled_from([(n, p) for n in paths for p in ("run", "method", "trust", "tensors")])

    @settings(max_examples=60, deadline=None, database=None)
    @given(parts, st.data())
    def check(part: tuple[str, str], data: st.DataObject) -> None:
        name, key = part
        changed_part = data.draw(changed(documents[name][key]))
        paths[name].write_text(as_text({**documents[name], key: changed_part}))
        result = command("predict", *arguments[name])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        if result.exit_code:
            (line,) = result.stderr.splitlines()
            assert line.isprintable()

    check()

"""The loopback Hub's reading of model cards, against PyYAML and the real client."""

import json
import string
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCardData, close_session
from huggingface_hub.utils import yaml_dump
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alpharl_hub.local_hub import LocalHub
from alpharl_hub.local_hub.card_scalars import CardYamlError
from alpharl_hub.local_hub.card_yaml import parse_yaml

TOKEN = "hf_alice"
BODY = "\n# A model\n"
# Letters, and the marks that YAML gives a meaning to.
TEXTS = st.text(
    string.ascii_letters + string.digits + " :#-_'\"[]{},&*!|>%@`?~.\\/\n\täé日👀", max_size=60
)
# YAML 1.2 reads 1e5 and 0o7 as numbers; PyYAML, which follows 1.1, writes such texts bare.
SCALARS = st.one_of(
    TEXTS.filter(lambda text: not text.strip()[:2].strip("+-.")[:1].isdigit()),
    st.integers(-(10**9), 10**9),
    st.booleans(),
    st.none(),
    st.floats(-1e6, 1e6).filter(lambda x: "e" not in repr(x)),
)
KEYS = st.text(string.ascii_letters + "_- :#'", min_size=1, max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub with one user and one repo."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with LocalHub(tmp_path / "hub", {TOKEN: "alice"}) as served:
        served.add_commit("alice/model", files={"a.txt": b"a"})
        yield served
    close_session()


def push_card(hub: LocalHub, metadata: str) -> None:
    """Commit a card with the real client, which asks for its validation first."""
    card = f"---\n{metadata}\n---{BODY}".encode()
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    operations = [CommitOperationAdd("README.md", card)]
    api.create_commit("alice/model", operations, commit_message="card")


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
@example({"text": "word " * 60, "list": [{"a": "long " * 40, "b": ["x", ["y", "z"]]}]})
@example({"a": "line one\nline two\n\n  indented", "b": "ends with break\n", "c": " 'q' "})
def test_yaml_as_the_client_writes_it_is_read_as_it_was_meant(value: dict[str, Any]) -> None:
    """What PyYAML dumps for any card-like data comes back as that data."""
    assert parse_yaml(yaml_dump(value, sort_keys=False)) == value


WRITTEN_BY_HAND = """
# A comment
license: apache-2.0   # trailing comment
language: [en, "zh", 'de']
tags:
  - rl
  - "quoted: colon"
  -   spaced out
base_model:
- org/base
widget: {text: hello, options: {a: 1, b: [true, null]}}
description: |
  First line.
    Indented: kept # so is this

  Last line.
summary: >-
  folded into
  one line
long: a plain text that
  goes on here
url: https://example.org/a#b
empty:
tilde: ~
"quoted key": 'it''s'
nested:
- - 1
  - 2.5
- name: x
  value: -3
flow: [
  a, b,
]
"""


def test_yaml_written_by_hand_is_read_as_pyyaml_reads_it() -> None:
    """Comments, flow and block styles, folding and types agree with PyYAML."""
    assert parse_yaml(WRITTEN_BY_HAND) == yaml.safe_load(WRITTEN_BY_HAND)


def test_norway_is_a_text_and_dates_are_texts() -> None:
    """As in YAML 1.2, which the Hub uses, `no` is not false; a date is left as it is written."""
    read = parse_yaml("language: no\ndate: 2025-01-02\nbig: 1e5\noctal: 0o17\nhex: 0xff\n")
    assert read == {
        "language": "no",
        "date": "2025-01-02",
        "big": 1e5,
        "octal": 15,
        "hex": 255,
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("title: AlphaRL: a method", 1),
        ("a: 1\na: 2", 2),
        ("a: 1\n\tb: 2", 2),
        ("a: 1\n  b: 2", 2),
        ("a: [1, 2", 1),
        ('a: "open', 1),
        ("a: @home", 1),
        ("a: *anchor", 1),
        ("a: !!python/object x", 1),
        ("a:\n- 1\n  - 2\n  b: 3", 4),
        ("a: 1\n---\nb: 2", 2),
        ("just text\nlicense: mit", 2),
        ("a: - b", 1),
        ('a: "b" c', 1),
        ("? a\n: b", 1),
    ],
)
def test_yaml_that_is_wrong_or_too_much_is_refused_with_its_line(text: str, line: int) -> None:
    """Nothing is guessed: the error says where the reader stopped."""
    with pytest.raises(CardYamlError, match=f"^line {line}: "):
        parse_yaml(text)


def test_card_of_a_predicted_model_is_accepted_without_a_warning(hub: LocalHub) -> None:
    """A card as the client's own ModelCardData writes it, with results, passes."""
    result = EvalResult(
        task_type="text-generation",
        dataset_type="sums",
        dataset_name="Sums",
        metric_type="accuracy",
        metric_value=0.91,
    )
    data = ModelCardData(
        base_model=["org/base"],
        base_model_relation="finetune",
        license="apache-2.0",
        language="en",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["alpharl", "reinforcement-learning"],
        datasets=["org/sums"],
        model_name="predicted",
        eval_results=[result],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        push_card(hub, data.to_yaml())
    info = HfApi(endpoint=hub.endpoint, token=False).model_info("alice/model")
    assert info.card_data.to_dict() == data.to_dict()
    assert (info.pipeline_tag, info.library_name) == ("text-generation", "transformers")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: my-own", '"license" must be one of'),
        ("license:\n- mit\n- unheard-of", '"license" must be one of'),
        ("base_model: ./outputs/run 1", '"base_model" with value'),
        ("base_model:\n- org/base\n- 7", '"base_model" with value "7"'),
        ("base_model: org/base\nbase_model_relation: child", "base_model_relation"),
        ("tags: rl", '"tags" must be an array of strings'),
        ("tags:\n- 1", '"tags" must be an array of strings'),
        ("language:\n  en: true", '"language" must be a string'),
        ("library_name: 3", '"library_name" must be a string'),
        ("- mit", "must be a mapping"),
        ("title: one: two", "not valid YAML: line 1"),
        ("model-index:\n- name: x", '"name" and "results"'),
        ("model-index:\n- name: x\n  results:\n  - task: {type: t}", "dataset.type"),
    ],
)
def test_wrong_metadata_is_refused_before_and_in_the_commit(
    hub: LocalHub, metadata: str, message: str
) -> None:
    """The client hears of it before it uploads, and a commit without the check is refused too."""
    before = hub.refs("alice/model")
    with pytest.raises(ValueError, match=message):
        push_card(hub, metadata)
    header = {"key": "header", "value": {"summary": "card"}}
    content = f"---\n{metadata}\n---{BODY}"
    lines = [header, {"key": "file", "value": {"path": "README.md", "content": content}}]
    url = f"{hub.endpoint}/api/models/alice/model/commit/main"
    body = "\n".join(json.dumps(line) for line in lines).encode()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with pytest.raises(OSError, match="400"):
        urlopen(Request(url, body, headers, method="POST"), timeout=10)
    assert hub.refs("alice/model") == before


@pytest.mark.parametrize(
    ("card", "message"),
    [("# No metadata\n", "empty or missing"), ("---\nlicense: other\n---\n", "license_name")],
)
def test_incomplete_metadata_gets_a_warning_only(hub: LocalHub, card: str, message: str) -> None:
    """A card without metadata, or with a license that has no name, is taken with a warning."""
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    operations = [CommitOperationAdd("README.md", card.encode())]
    with pytest.warns(UserWarning, match=message):
        api.create_commit("alice/model", operations, commit_message="card")
    assert hub.read_file("alice/model", "README.md") == card.encode()

"""Scores entered into a card: read as typed, kept, shown, and found by the Hub's own readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, get_session, parse_eval_result_entries
from manifest_maker import manifest

from alpharl_hub.card.make import EVAL_FILE, CardFacts, card_files, make_card
from alpharl_hub.card.scores import ScoreEntry, enter, parse_score
from alpharl_hub.errors import CardError
from alpharl_hub.local_hub import LocalHub
from alpharl_hub.manifest import ScoreRecord, read_manifest

FACTS = CardFacts("me/model")
PLAIN = ScoreRecord("gsm8k", None, None, 0.81)
WITH_METRIC = ScoreRecord("openai/gsm8k", None, "exact_match", 0.5)
ON_BOARD = ScoreRecord("Idavidrein/gpqa", "gpqa_diamond", "accuracy", 0.41)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub that answers validate-yaml."""
    with LocalHub(tmp_path_factory.mktemp("hub")) as started:
        yield started


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gsm8k=0.81", ScoreEntry("gsm8k", None, None, 0.81)),
        ("gsm8k:exact_match=81", ScoreEntry("gsm8k", None, "exact_match", 81.0)),
        ("cais/hle#hle=2e-1", ScoreEntry("cais/hle", "hle", None, 0.2)),
        ("a/b#c:pass@1=-1", ScoreEntry("a/b", "c", "pass@1", -1.0)),
        ("gsm8k=", ScoreEntry("gsm8k", None, None, None)),
    ],
)
def test_scores_are_read_as_typed(text: str, expected: ScoreEntry) -> None:
    """Data set, task, metric and value are told apart."""
    assert parse_score(text) == expected


@pytest.mark.parametrize(
    "text",
    ["gsm8k", "=0.5", "gsm8k=high", "gsm8k=nan", "gsm8k=inf", "a b=1", "a/b/c=1", "a#=1", "../x=1"],
)
def test_what_is_no_score_is_refused(text: str) -> None:
    """One line says what was typed and how a score is written."""
    with pytest.raises(CardError, match="--score") as refused:
        parse_score(text)
    assert "\n" not in str(refused.value)


def test_scores_are_added_replaced_and_taken_out() -> None:
    """A name counts once: its newest value holds, and an empty one takes it away."""
    scores = enter((), [parse_score("gsm8k=0.8"), parse_score("math:accuracy=0.3")])
    scores = enter(scores, [parse_score("gsm8k=0.81"), parse_score("math:accuracy=")])
    assert scores == (PLAIN,)
    with pytest.raises(CardError, match=r"no such score.*known: gsm8k"):
        enter(scores, [parse_score("gsm8k:accuracy=")])


def test_hub_reads_the_scores(hub: LocalHub) -> None:
    """The client's reader of model-index finds each score, and the Hub takes the metadata."""
    text = make_card(manifest(scores=(PLAIN, WITH_METRIC, ON_BOARD)), FACTS)
    data = ModelCard(text).data
    assert data.model_name == "me/model"
    found = [
        (r.dataset_type, r.dataset_name, r.dataset_config, r.metric_type, r.metric_value)
        for r in data.eval_results
    ]
    assert found == [
        ("gsm8k", "gsm8k", None, "score", 0.81),
        ("openai/gsm8k", "openai/gsm8k", None, "exact_match", 0.5),
        ("Idavidrein/gpqa", "Idavidrein/gpqa", "gpqa_diamond", "accuracy", 0.41),
    ]
    assert {result.task_type for result in data.eval_results} == {"text-generation"}
    body = {"content": text, "repoType": "model"}
    answer = get_session().post(f"{hub.endpoint}/api/validate-yaml", json=body).json()
    assert answer == {"errors": [], "warnings": []}


def test_leaderboards_get_what_names_a_task(tmp_path: Path) -> None:
    """Only a data set of the Hub with its task goes into .eval_results, as the client reads it."""
    files = card_files(manifest(scores=(PLAIN, WITH_METRIC, ON_BOARD)), FACTS)
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[EVAL_FILE]))
    assert (entry.dataset_id, entry.task_id, entry.value) == (
        "Idavidrein/gpqa",
        "gpqa_diamond",
        0.41,
    )
    assert entry.notes == "accuracy"
    assert EVAL_FILE not in card_files(manifest(scores=(PLAIN, WITH_METRIC)), FACTS)


def test_headline_says_what_was_measured() -> None:
    """The first paragraph tells the scores in place of the warning; the limits stay."""
    text = make_card(manifest(scores=(PLAIN, ON_BOARD)), FACTS)
    first = text.split("\n# ", 1)[1].split("\n\n")[1]
    assert "not evaluated" not in text
    assert first.endswith(
        "**measured: `gsm8k` 0.81, `Idavidrein/gpqa#gpqa_diamond:accuracy` 0.41**."
    )
    section = text.split("## Scores")[1].split("\n## ")[0]
    assert "| `Idavidrein/gpqa#gpqa_diamond` | `accuracy` | 0.41 |" in section
    assert "the tool has not checked them" in section
    assert "Nobody trained these weights" in text.split("## Limits")[1]


def test_many_scores_fit_the_headline() -> None:
    """Three are named above the fold, the others counted; the table holds all of them."""
    scores = tuple(ScoreRecord(f"set{i}", None, None, i / 10) for i in range(5))
    text = make_card(manifest(scores=scores), FACTS)
    assert "`set2` 0.2 and 2 more**." in text
    assert all(f"| `set{i}` | `score` | {i / 10:g} |" in text for i in range(5))


def test_scores_live_in_the_manifest() -> None:
    """alpharl.json with scores and the record of its card is read back as the same manifest."""
    run_card = "---\nlicense: mit\nlanguage: [en, no]\ndatasets: org/sums\n---\n"
    files = card_files(manifest(scores=(PLAIN, ON_BOARD)), CardFacts("me/m", run_card=run_card))
    found = read_manifest(files["alpharl.json"], "alpharl.json")
    assert found.scores == (PLAIN, ON_BOARD)
    again = card_files(found, CardFacts("me/m"))
    assert again == files


def test_hostile_scores_of_a_manifest_reach_no_metadata(hub: LocalHub) -> None:
    """A name that nobody could have typed is shown as it is and stays out of what the Hub reads."""
    bad = ScoreRecord("x`](https://evil.example)\n---\nlicense: mit", "t|", "<script>", 1.0)
    files = card_files(manifest(scores=(bad, PLAIN)), FACTS)
    text = files["README.md"].decode()
    data = ModelCard(text).data
    assert [result.dataset_type for result in data.eval_results] == ["gsm8k"]
    assert data.license == "other"
    assert "<script>" not in text
    assert EVAL_FILE not in files

"""Whole cards as files to look at; a change of the card shows up as a change of these.

`UPDATE_GOLDEN=1 python -m pytest tests/test_card_golden.py` writes them anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import get_session
from manifest_maker import (
    checkpoint,
    copied_tensor,
    local_checkpoint,
    manifest,
    method,
    run,
    tensor,
)

from alpharl_hub.card.make import CardFacts, make_card
from alpharl_hub.local_hub import LocalHub
from alpharl_hub.manifest import AutoRecord, Manifest, ScoreRecord, SweepRecord

GOLDEN = Path(__file__).parent / "golden"
RUN_CARD = "---\nlicense: apache-2.0\nlanguage: en\ndatasets: [lab/sums]\n---\n"
MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
TENSORS = (
    *(
        tensor(
            f"model.layers.{layer}.{module}.weight",
            rank1_share=(3 * layer + 2 * number) % 10 / 10,
            sigma=0.01 * (1 + layer),
        )
        for layer in range(12)
        for number, module in enumerate(MODULES)
    ),
    copied_tensor("model.norm.weight"),
)


def plain_model() -> Manifest:
    """A model from branches on the Hub, predicted and not evaluated."""
    return manifest(tensors=TENSORS)


def measured_model() -> Manifest:
    """The same with scores that were entered, and a picture."""
    scores = (
        ScoreRecord("gsm8k", None, "exact_match", 0.81),
        ScoreRecord("Idavidrein/gpqa", "gpqa_diamond", "accuracy", 0.41),
    )
    return replace(plain_model(), scores=scores)


def local_adapter() -> Manifest:
    """An adapter from folders, chosen by auto and a sweep, without tokenizer or trust."""
    found = run(
        layout="local",
        pattern="checkpoint-{step}",
        base=local_checkpoint(None, "base"),
        base_model=None,
        checkpoints=(local_checkpoint(10, "checkpoint-10"), local_checkpoint(40, "checkpoint-40")),
        score_name=None,
    )
    auto = AutoRecord(
        100.0, 2.5, "cosine", 0.9, 0.5, 0.1, 0.01, 1.0, 20, None, None, None, "steps", False,
        ("the direction holds to 2.5 x the last step",),
    )  # fmt: skip
    sweep = SweepRecord("scale", (0.0, 0.5, 1.0), (0.5, 0.625, 0.5625), 0.5, 0.0, 0.5, False)
    return manifest(
        run=found,
        method=method("linear", as_adapter=True),
        rank=6,
        trust=None,
        rounding=None,
        auto=auto,
        sweep=sweep,
        tensors=TENSORS[:8],
        copied_files=(),
        warnings=(),
    )


CARDS = {
    "card_model.md": (plain_model(), CardFacts("lab/model", run_card=RUN_CARD), False),
    "card_measured.md": (measured_model(), CardFacts("lab/model", run_card=RUN_CARD), True),
    "card_adapter.md": (
        local_adapter(),
        CardFacts("my adapter", license_override="mit", files_from_base=True),
        False,
    ),
    "card_step_folders.md": (
        manifest(
            run=run(
                layout="folders",
                pattern="checkpoint-{step}",
                checkpoints=(checkpoint(10, folder="checkpoint-10"), checkpoint(40, folder="x y")),
            ),
            method=method("average", target_step=None),
        ),
        CardFacts("lab/mean", run_card=RUN_CARD, base_card="---\nlicense: gemma\n---\n"),
        False,
    ),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub that answers validate-yaml."""
    with LocalHub(tmp_path_factory.mktemp("hub")) as started:
        yield started


@pytest.mark.parametrize("name", CARDS)
def test_card_is_the_one_that_was_looked_at(hub: LocalHub, name: str) -> None:
    """The card of each kind of model is, byte for byte, the file in golden; the Hub takes it."""
    made, facts, has_picture = CARDS[name]
    text = make_card(made, facts, has_picture=has_picture)
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    body = {"content": text, "repoType": "model"}
    answer = get_session().post(f"{hub.endpoint}/api/validate-yaml", json=body).json()
    assert answer == {"errors": [], "warnings": []}

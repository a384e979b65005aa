"""The picture of a card's evidence: small, always the same, and never worth a model."""

from __future__ import annotations

import struct
import sys

import pytest
from manifest_maker import checkpoint, manifest, method, run, tensor

from alpharl_hub.card.make import PICTURE, CardFacts, card_files
from alpharl_hub.drawing.card_figure import FIT, SCORES, SHARES, draw_evidence, panels_of
from alpharl_hub.manifest import Manifest, SweepRecord

FACTS = CardFacts("me/model")
HOSTILE = "$\\frac$ \x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}\N{GRINNING FACE}\n" * 20


def large_manifest(num_layers: int = 80, num_modules: int = 40) -> Manifest:
    """A model larger than any, with another number in every matrix."""
    return manifest(
        tensors=tuple(
            tensor(
                f"model.layers.{layer}.mlp.part_{module}.weight",
                rank1_share=(7 * layer + 11 * module) % 100 / 100,
                q2_step=1 - (3 * layer + module) % 170 / 100,
            )
            for layer in range(num_layers)
            for module in range(num_modules)
        )
    )


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height in pixels: http://www.libpng.org/pub/png/spec/1.2/PNG-Structure.html"""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert png[12:16] == b"IHDR"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_picture_is_small_whatever_the_model() -> None:
    """Under 100 KB and as wide as a page, for the largest models too."""
    png = draw_evidence(large_manifest())
    assert png is not None
    assert len(png) < 100_000
    width, height = size_of(png)
    assert width == 770
    assert height < 2 * width


def test_same_numbers_give_the_same_bytes() -> None:
    """A card that is made again changes nothing in a repo; other numbers are another picture."""
    first = draw_evidence(manifest())
    assert first is not None
    assert draw_evidence(manifest()) == first
    assert draw_evidence(manifest(tensors=(tensor("model.layers.0.mlp.up_proj.weight"),))) != first


def test_only_what_there_is_gets_a_panel() -> None:
    """Shares, fit and scores are shown where the manifest has them; of none nothing is drawn."""
    bare = run(checkpoints=(checkpoint(10), checkpoint(40)))
    assert panels_of(manifest()) == (SHARES, FIT, SCORES)
    assert panels_of(manifest(run=bare)) == (SHARES, FIT)
    assert panels_of(manifest(tensors=())) == (SCORES,)
    swept = SweepRecord("scale", (0.0, 1.0), (0.5, 0.6), 1.0, 0.0, 0.5, False)
    assert panels_of(manifest(tensors=(), run=bare, sweep=swept)) == (SCORES,)
    assert draw_evidence(manifest(tensors=(), run=bare, sweep=swept)) is not None
    assert draw_evidence(manifest(tensors=(), run=bare)) is None


@pytest.mark.parametrize("target_step", [None, 500.0])
def test_hostile_names_are_drawn_as_names(target_step: float | None) -> None:
    """Formulas, escapes, emoji and endless names neither stop the drawing nor blow it up."""
    made = manifest(
        run=run(score_name=HOSTILE),
        tensors=(tensor(f"model.layers.3.{HOSTILE}"), tensor(HOSTILE)),
        method=method(target_step=target_step),
    )
    png = draw_evidence(made)
    assert png is not None
    assert len(png) < 100_000


def test_numbers_of_a_stranger_do_not_stop_it() -> None:
    """A manifest may claim any layer and any share; the picture stays a picture."""
    tensors = (
        tensor("model.layers.999999999.mlp.up_proj.weight", rank1_share=1e300, q2_step=-1e300),
        tensor("model.layers.0.mlp.up_proj.weight", rank1_share=-5.0, q2_step=1e300),
    )
    scored = run(checkpoints=(checkpoint(10**15, score=1e300), checkpoint(10**16, score=-1e300)))
    png = draw_evidence(manifest(tensors=tensors, run=scored))
    assert png is not None
    assert len(png) < 100_000


def test_card_without_matplotlib_draws_in_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra a map in text stands for the picture, and all else is the same."""
    with_it = card_files(manifest(), FACTS)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    without = card_files(manifest(), FACTS)
    assert set(with_it) - set(without) == {PICTURE}
    assert without["alpharl.json"] == with_it["alpharl.json"]
    text = without["README.md"].decode()
    assert "Rank-1 share of every matrix:\n\n```text\n" in text
    assert PICTURE not in text
    pictured = with_it["README.md"].decode()
    assert "Rank-1 share of every matrix:" not in pictured
    # One drawn elsewhere stays.
    kept = card_files(manifest(), FACTS, old_picture=with_it[PICTURE])
    assert kept[PICTURE] == with_it[PICTURE]
    assert kept["README.md"] == with_it["README.md"]


def test_picture_is_told_in_words() -> None:
    """Who cannot see it learns of how many matrices it is, and which shares and fits they have."""
    shares = (0.2, 0.4, 0.9)
    tensors = tuple(
        tensor(f"model.layers.{i}.mlp.up_proj.weight", rank1_share=share, q2_step=0.5 + i / 10)
        for i, share in enumerate(shares)
    )
    text = card_files(manifest(tensors=tensors), FACTS)["README.md"].decode()
    alt = text.split("![", 1)[1].split(f"]({PICTURE})")[0]
    assert alt == (
        "Rank-1 share of the update of 3 matrices by module and layer, from 0.20 to 0.90, median "
        "0.40; Q² of each matrix by module, median 0.60; score of the checkpoints (`accuracy`) by "
        "step"
    )

"""The model card (README.md) of a predicted model, from its manifest and a few facts more.

The front matter is data for the Hub and is written by a YAML library; the page below it is made by
`page`, or by a template of the user's. What is said of the model is read from the manifest, so that
the card can be made anew from that alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from alpharl_hub.card.evidence import PICTURE
from alpharl_hub.card.licenses import StatedBy, choose_license
from alpharl_hub.card.loading import example_place, serving_line
from alpharl_hub.card.markdown import hub_url
from alpharl_hub.card.metadata import EVAL_FILE, card_metadata, eval_file, front_matter, stated
from alpharl_hub.card.page import Place, sections, title
from alpharl_hub.card.template import CardTemplate, TemplateInput
from alpharl_hub.drawing.card_figure import draw_evidence
from alpharl_hub.manifest import MANIFEST_NAME, CardRecord, CheckpointRecord, Manifest

__all__ = [
    "CARD_NAME",
    "EVAL_FILE",
    "PICTURE",
    "CardFacts",
    "card_files",
    "card_metadata",
    "is_as_made",
    "is_from_template",
    "make_card",
    "place_of",
    "with_place",
    "with_record",
]

CARD_NAME = "README.md"

_NAME_LINE = r'name = (?P<name>"(?:[^"\\\n]|\\.)*")(?:  # [^\n]*)?'
_EXAMPLE = re.compile(rf'^{_NAME_LINE}\nrevision = (?P<branch>"(?:[^"\\\n]|\\.)*")$', re.MULTILINE)
_MODEL_INDEX_NAME = re.compile(r"^(model-index:\n- name: ).*$", re.MULTILINE)
# A definition of a link that nothing uses shows nowhere, and is no HTML:
# https://spec.commonmark.org/0.31.2/#link-reference-definitions
_MARK = re.compile(
    r"\n*\[//\]: # \(alpharl-hub made this card(?P<template> from a template)?: "
    r"(?P<print>[0-9a-f]{16})\)\s*\Z"
)


@dataclass(frozen=True)
class CardFacts:
    """What the card needs and the manifest does not hold.

    `model_name` is the repo it will be pushed to, or the name of its folder. `run_card` and
    `base_card` are the texts of those README.md, for license, language and data sets; they,
    `license_override` and `files_from_base` (the copied files are the base's) count only where the
    manifest has no record of its card yet. `template`: the user's own page.
    """

    model_name: str
    license_override: str | None = None
    run_card: str | None = None
    base_card: str | None = None
    branch: str = "main"
    files_from_base: bool = False
    template: CardTemplate | None = None


def with_record(manifest: Manifest, facts: CardFacts) -> Manifest:
    """Return the manifest with a record of what its card is made from."""
    record = CardRecord(
        license=facts.license_override,
        run=stated(facts.run_card),
        base=stated(facts.base_card),
        files_from_base=facts.files_from_base,
    )
    return replace(manifest, card=record)


def card_files(
    manifest: Manifest, facts: CardFacts, old_picture: bytes | None = None
) -> Mapping[str, bytes]:
    """Return the files that say what a model is: manifest, card, picture and scores, by name.

    The picture is drawn where matplotlib is installed, else `old_picture` stays.

    Raises:
        CardError: the template cannot be filled in.
    """
    if manifest.card is None:
        manifest = with_record(manifest, facts)
    drawn = draw_evidence(manifest) or old_picture
    files = {
        CARD_NAME: make_card(manifest, facts, has_picture=drawn is not None).encode(),
        PICTURE: drawn,
        EVAL_FILE: eval_file(manifest),
        MANIFEST_NAME: manifest.to_json().encode(),
    }
    return {name: data for name, data in files.items() if data is not None}


def make_card(manifest: Manifest, facts: CardFacts, *, has_picture: bool = False) -> str:
    """Return README.md of a predicted model; `manifest.kind` must be "model".

    Raises:
        CardError: the template cannot be filled in.
    """
    if manifest.card is None:
        manifest = with_record(manifest, facts)
    record = manifest.card
    assert record is not None
    license_ = choose_license(
        record.license,
        (
            StatedBy("run", record.run, _repo_url(manifest.run.checkpoints[-1])),
            StatedBy("base", record.base, _repo_url(manifest.run.base)),
        ),
        manifest.copied_files,
    )
    place = Place(facts.model_name, facts.branch)
    metadata = front_matter(manifest, record.run, license_, facts.model_name)
    parts = sections(manifest, place, license_, has_picture)
    if facts.template is None:
        page = "\n\n".join(part for part in (title(place), *parts.values()) if part)
        text = f"---\n{metadata}\n---\n\n{page}\n"
    else:
        text = facts.template.fill(TemplateInput(metadata, title(place), parts, manifest))
    how = "" if facts.template is None else " from a template"
    return f"{text}\n[//]: # (alpharl-hub made this card{how}: {_fingerprint(text)})\n"


def is_as_made(card: str) -> bool:
    """Whether a card is as this tool made it, wherever it was moved: nobody edited it by hand."""
    mark = _MARK.search(card)
    return mark is not None and mark["print"] == _fingerprint(card[: mark.start()])


def is_from_template(card: str) -> bool:
    """Whether a card was made from a template of the user's."""
    mark = _MARK.search(card)
    return mark is not None and mark["template"] is not None


def _fingerprint(text: str) -> str:
    """Return what changes with every edit but that of the place, or of the ends of lines."""
    settled = with_place(text.replace("\r\n", "\n"), "-", "-").strip()
    return hashlib.sha256(settled.encode("utf-8", "replace")).hexdigest()[:16]


def place_of(card: str) -> Place | None:
    """Return where a card's example of loading says that the model is."""
    found = _EXAMPLE.search(card.replace("\r\n", "\n"))
    if found is None:
        return None
    try:
        return Place(json.loads(found["name"]), json.loads(found["branch"]))
    except ValueError:
        return None


def with_place(card: str, repo: str, branch: str) -> str:
    """Return the card with another place in what names one, where that still stands."""
    old = place_of(card)
    if old is None:
        return card
    moves = (
        (title(old), title(Place(repo, branch))),
        (serving_line(old.name, old.branch), serving_line(repo, branch)),
    )
    moved = _EXAMPLE.sub(lambda _: "\n".join(example_place(repo, branch)), card, count=1)
    for before, after in moves:
        # The serving line may go on with options.
        line = re.compile(rf"^{re.escape(before)}(?=$| --)", re.MULTILINE)
        moved = line.sub(lambda _, after=after: after, moved, count=1)  # type: ignore[misc]
    return _MODEL_INDEX_NAME.sub(lambda match: match[1] + json.dumps(repo), moved, count=1)


def _repo_url(record: CheckpointRecord) -> str | None:
    return hub_url(record.source) if record.commit is not None else None

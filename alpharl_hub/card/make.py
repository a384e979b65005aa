"""The model card (README.md) of a predicted model, from its manifest and a few facts more.

The front matter is data for the Hub and is written by a YAML library; the page below it is made by
`card_text`. Nothing here is a measurement of the predicted model, and the card says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml
from huggingface_hub import ModelCardData

from alpharl_hub.card.licenses import LicenseChoice, StatedBy, choose_license, texts
from alpharl_hub.card.loading import example_place, is_adapter
from alpharl_hub.card.markdown import hub_url
from alpharl_hub.card.page import CardFacts, page
from alpharl_hub.card.repeat import run_repo
from alpharl_hub.manifest import CheckpointRecord, Manifest

__all__ = ["CardFacts", "card_metadata", "make_card", "with_place"]

TAGS = ("alpharl-hub", "extrapolated", "reinforcement-learning")

_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z][\w.-]{0,95}", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_MAX_FRONT_MATTER_CHARS = 100_000
_EXAMPLE = re.compile(r'^name = ".*"(  # .*)?\nrevision = ".*"$', re.MULTILINE)


def make_card(manifest: Manifest, facts: CardFacts) -> str:
    """Return README.md of a predicted model; `manifest.kind` must be "model"."""
    run_card, base_card = card_metadata(facts.run_card), card_metadata(facts.base_card)
    license_ = choose_license(
        facts.license_override,
        (
            StatedBy("run", run_card, _repo_url(manifest.run.checkpoints[-1])),
            StatedBy("base", base_card, _repo_url(manifest.run.base)),
        ),
        manifest.copied_files,
    )
    front_matter = _front_matter(manifest, run_card, license_)
    return f"---\n{front_matter}\n---\n\n{page(manifest, facts, license_)}"


def with_place(card: str, repo: str, branch: str) -> str:
    """Return the card with another place in its example of loading, where that still stands."""
    return _EXAMPLE.sub(lambda _: "\n".join(example_place(repo, branch)), card, count=1)


def card_metadata(card: str | None) -> Mapping[str, object]:
    """Return the metadata of somebody's card as texts, lists and mappings; empty where unreadable.

    Every scalar stays text: YAML 1.1 would read the language `no` as false.
    """
    match = _FRONT_MATTER.match(card or "")
    if match is None or len(match[1]) > _MAX_FRONT_MATTER_CHARS:
        return {}
    try:
        found = yaml.load(match[1], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _front_matter(
    manifest: Manifest, run_card: Mapping[str, object], license_: LicenseChoice
) -> str:
    run, base = run_repo(manifest.run), manifest.run.base_model
    on_hub = base is not None and is_hub_id(base)
    relation = "adapter" if is_adapter(manifest) else "finetune"
    tags = [*TAGS, *([run] if run is not None and is_hub_id(run) else [])]
    data = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation=relation if on_hub else None,
        license=license_.identifiers[0],
        license_name=license_.name,
        license_link=license_.link,
        library_name="peft" if is_adapter(manifest) else "transformers",
        pipeline_tag="text-generation",
        language=_one_or_list(tuple(filter(_LANGUAGE.fullmatch, texts(run_card.get("language"))))),
        datasets=_one_or_list(tuple(filter(is_hub_id, texts(run_card.get("datasets"))))),
        tags=tags,
    )
    if len(license_.identifiers) > 1:
        data["license"] = list(license_.identifiers)
    return data.to_yaml()


def is_hub_id(name: str) -> bool:
    """Whether a text has the form of a repo on the Hub, which refuses cards that name another."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def _one_or_list(values: tuple[str, ...]) -> str | list[str] | None:
    if len(values) <= 1:
        return values[0] if values else None
    return list(dict.fromkeys(values))


def _repo_url(record: CheckpointRecord) -> str | None:
    return hub_url(record.source) if record.commit is not None else None

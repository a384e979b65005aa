"""The metadata of a card, for the Hub: read from the cards of others, and written.

The page says what the fields of the front matter are at
https://github.com/huggingface/hub-docs/blob/main/modelcard.md, and those of the file of scores at
https://huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml
from huggingface_hub import EvalResult, ModelCardData

from alpharl_hub.card.licenses import LicenseChoice, texts
from alpharl_hub.card.loading import is_adapter
from alpharl_hub.card.repeat import run_repo
from alpharl_hub.card.scores import PLAIN_METRIC, on_leaderboards, well_formed
from alpharl_hub.manifest import Manifest, ScoreRecord, StatedRecord

TAGS = ("alpharl-hub", "extrapolated", "reinforcement-learning")
TASK = "text-generation"

EVAL_FILE = ".eval_results/alpharl-hub.yaml"
"""The scores for the Hub's leaderboards; every file of that folder is read, whatever its name."""

_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z][\w.-]{0,95}", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_MAX_FRONT_MATTER_CHARS = 100_000
_MAX_LISTED = 100


def card_metadata(card: str | None) -> Mapping[str, object]:
    """Return the metadata of somebody's card as texts, lists and mappings; empty where unreadable.

    Every scalar stays text: YAML 1.1 would read the language `no` as false.
    """
    match = FRONT_MATTER.match(card or "")
    if match is None or len(match[1]) > _MAX_FRONT_MATTER_CHARS:
        return {}
    try:
        found = yaml.load(match[1], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def stated(card: str | None) -> StatedRecord:
    """Return what a card states that matters for a model made from it."""
    found = card_metadata(card)
    return StatedRecord(
        license=texts(found.get("license"))[:_MAX_LISTED],
        license_name=next(iter(texts(found.get("license_name"))), None),
        license_link=next(iter(texts(found.get("license_link"))), None),
        language=texts(found.get("language"))[:_MAX_LISTED],
        datasets=texts(found.get("datasets"))[:_MAX_LISTED],
    )


def front_matter(
    manifest: Manifest, run: StatedRecord, license_: LicenseChoice, model_name: str
) -> str:
    """Return the YAML between the card's two rules; `run` is what the run's card states."""
    repo, base = run_repo(manifest.run), manifest.run.base_model
    on_hub = base is not None and is_hub_id(base)
    relation = "adapter" if is_adapter(manifest) else "finetune"
    tags = [*TAGS, *([repo] if repo is not None and is_hub_id(repo) else [])]
    scores = well_formed(manifest.scores)
    data = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation=relation if on_hub else None,
        license=license_.identifiers[0],
        license_name=license_.name,
        license_link=license_.link,
        library_name="peft" if is_adapter(manifest) else "transformers",
        pipeline_tag=TASK,
        language=_one_or_list(tuple(filter(_LANGUAGE.fullmatch, run.language))),
        datasets=_one_or_list(tuple(filter(is_hub_id, run.datasets))),
        tags=tags,
        model_name=model_name if scores else None,
        eval_results=[_eval_result(score) for score in scores] or None,
    )
    if len(license_.identifiers) > 1:
        data["license"] = list(license_.identifiers)
    return data.to_yaml()


def _eval_result(score: ScoreRecord) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        dataset_type=score.dataset,
        dataset_name=score.dataset,
        dataset_config=score.task,
        metric_type=score.metric or PLAIN_METRIC,
        metric_value=score.value,
    )


def eval_file(manifest: Manifest) -> bytes | None:
    """Return the file of scores for the Hub's leaderboards, None without any for them."""
    entries = []
    for score in on_leaderboards(manifest.scores):
        entry: dict[str, object] = {
            "dataset": {"id": score.dataset, "task_id": score.task},
            "value": score.value,
        }
        if score.metric is not None:
            entry["notes"] = score.metric
        entries.append(entry)
    return yaml.safe_dump(entries, sort_keys=False).encode() if entries else None


def is_hub_id(name: str) -> bool:
    """Whether a text has the form of a repo on the Hub, which refuses cards that name another."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def _one_or_list(values: tuple[str, ...]) -> str | list[str] | None:
    if len(values) <= 1:
        return values[0] if values else None
    return list(dict.fromkeys(values))

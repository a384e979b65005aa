"""Model cards: their metadata, and the checks that the Hub makes before it takes one.

Fields: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
"""

import re
from dataclasses import dataclass, field
from typing import Any

from alpharl_hub.local_hub.blobs import BlobStore
from alpharl_hub.local_hub.card_scalars import CardYamlError
from alpharl_hub.local_hub.card_yaml import parse_yaml
from alpharl_hub.local_hub.messages import (
    HubError,
    Request,
    Response,
    json_response,
    text_response,
)
from alpharl_hub.local_hub.state import HubState, Names
from alpharl_hub.local_hub.storage import Commit

FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(|.*?\n)---[ \t]*(?:\r?\n|$)", re.DOTALL)
REPO_ID = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)
RELATIONS = ("adapter", "finetune", "merge", "quantized")
TEXTS = ("library_name", "pipeline_tag", "license_name", "license_link", "model_name")
LISTS_OF_TEXTS = ("tags",)
TEXTS_OR_LISTS = ("language", "datasets", "metrics")

# https://huggingface.co/docs/hub/repositories-licenses
_LICENSE_NAMES = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause "
    "bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research "
    "intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openrail++ osl-3.0 "
    "postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license "
    "fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma "
    "unknown other"
)
LICENSES = tuple(_LICENSE_NAMES.split())


@dataclass
class Findings:
    """What is wrong with a card (errors, refused) and what could be better (warnings)."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, list[dict[str, str]]]:
        """Return both as the Hub writes them."""
        return {
            "errors": [{"message": text} for text in self.errors],
            "warnings": [{"message": text} for text in self.warnings],
        }


def validate_yaml(hub: HubState, request: Request, names: Names) -> Response:
    """POST /api/validate-yaml with the whole text of a card."""
    findings = inspect_card(str(request.json().get("content", "")))
    status = 400 if findings.errors else 200
    if status == 400 and "text/plain" in request.headers.get("Accept", ""):
        return text_response("\n".join(f"- Error: {text}" for text in findings.errors), status)
    return json_response(findings.as_json(), status)


def check_card(text: str) -> None:
    """Refuse a card with errors."""
    findings = inspect_card(text)
    if findings.errors:
        raise HubError(400, "Invalid metadata in README.md: " + "; ".join(findings.errors))


def card_metadata(blobs: BlobStore, commit: Commit) -> dict[str, Any] | None:
    """Return the metadata of a repo's card, None where there is none that can be read."""
    entry = commit.files.get("README.md")
    if entry is None:
        return None
    block = FRONT_MATTER.match(blobs.path_of(entry.sha256).read_text("utf-8", "replace"))
    try:
        metadata = parse_yaml(block.group(1)) if block else None
    except CardYamlError:
        return None
    return metadata if isinstance(metadata, dict) else None


def inspect_card(text: str) -> Findings:
    """Check the metadata of a card."""
    findings = Findings()
    block = FRONT_MATTER.match(text)
    if block is None or not block.group(1).strip():
        findings.warnings.append("empty or missing yaml metadata in repo card")
        return findings
    try:
        metadata = parse_yaml(block.group(1))
    except CardYamlError as error:
        findings.errors.append(f"the metadata is not valid YAML: {error}")
        return findings
    if not isinstance(metadata, dict):
        findings.errors.append("the metadata must be a mapping of names to values")
        return findings
    _check_shapes(metadata, findings)
    _check_license(metadata, findings)
    _check_base_model(metadata, findings)
    _check_model_index(metadata.get("model-index"), findings)
    return findings


def _check_shapes(metadata: dict[str, Any], findings: Findings) -> None:
    for name in TEXTS:
        if not isinstance(metadata.get(name, ""), str):
            findings.errors.append(f'"{name}" must be a string')
    for name in LISTS_OF_TEXTS:
        if not _is_texts(metadata.get(name, [])):
            findings.errors.append(f'"{name}" must be an array of strings')
    for name in TEXTS_OR_LISTS:
        value = metadata.get(name, "")
        if not isinstance(value, str) and not _is_texts(value):
            findings.errors.append(f'"{name}" must be a string or an array of strings')


def _check_license(metadata: dict[str, Any], findings: Findings) -> None:
    if "license" not in metadata:
        return
    given = metadata["license"]
    chosen = given if isinstance(given, list) else [given]
    if not chosen or any(name not in LICENSES for name in chosen):
        findings.errors.append(f'"license" must be one of [{", ".join(LICENSES)}]')
    elif "other" in chosen and not metadata.get("license_name"):
        findings.warnings.append('"license_name" should name the license when "license" is other')


def _check_base_model(metadata: dict[str, Any], findings: Findings) -> None:
    given = metadata.get("base_model", [])
    for name in given if isinstance(given, list) else [given]:
        if not isinstance(name, str) or not REPO_ID.fullmatch(name) or ".." in name:
            text = f'"base_model" with value "{name}" is not valid. Use a model id of this Hub'
            findings.errors.append(text)
    relation = metadata.get("base_model_relation", "finetune")
    if relation not in RELATIONS:
        findings.errors.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')


def _check_model_index(index: Any, findings: Findings) -> None:
    if index is None:
        return
    if not isinstance(index, list):
        findings.errors.append('"model-index" must be an array')
        return
    for i, model in enumerate(index):
        results = model.get("results") if isinstance(model, dict) else None
        if not isinstance(results, list) or not isinstance(model.get("name"), str):
            findings.errors.append(f'"model-index[{i}]" must have "name" and "results"')
            continue
        for j, result in enumerate(results):
            for problem in _result_problems(result):
                findings.errors.append(f'"model-index[{i}].results[{j}]" {problem}')


def _result_problems(result: Any) -> list[str]:
    if not isinstance(result, dict):
        return ["must be an object"]
    problems = []
    for part, names in (("task", ("type",)), ("dataset", ("type", "name"))):
        content = result.get(part)
        for name in names:
            if not isinstance(content, dict) or not isinstance(content.get(name), str):
                problems.append(f'must have "{part}.{name}"')
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*problems, 'must have "metrics"']
    for metric in metrics:
        if not isinstance(metric, dict) or "type" not in metric or "value" not in metric:
            problems.append('must have "type" and "value" in every metric')
    return problems


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)

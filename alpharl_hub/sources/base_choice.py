"""Which model is W_0: the user's word, step 0 of the run, or what the run says about itself.

An adapter at step 0 is no model: then the next in line is asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alpharl_hub.errors import TrajectoryError
from alpharl_hub.sources.contents import is_adapter
from alpharl_hub.sources.listing import RunSource
from alpharl_hub.strict_json import shown
from alpharl_hub.trajectory import Checkpoint, CheckpointContents

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_BASE_MODEL = re.compile(r"^base_model:(?P<value>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class BaseAnswer:
    """What names the base: a listed checkpoint (step 0), or text to be opened like --base."""

    chosen_by: str
    checkpoint: Checkpoint | None
    text: str | None


def choose_base(
    option: str | None,
    listed: tuple[Checkpoint, ...],
    last: CheckpointContents,
    source: RunSource,
    where: str,
) -> BaseAnswer:
    """Decide what the base is, without opening it; `last` is the last checkpoint that is used.

    Raises:
        TrajectoryError: nothing names it, or an adapter names what cannot be found from here.
    """
    if option is not None:
        return BaseAnswer("option", None, option)
    for checkpoint in listed:
        if checkpoint.step == 0 and not is_adapter(source.open_store(checkpoint).files()):
            return BaseAnswer("step_0", checkpoint, None)
    text = base_of_adapter(last.adapter or {}, last.checkpoint)
    if text is not None:
        return BaseAnswer("adapter", None, text)
    named = base_model_of_card(source.card_text(listed[-1]) or "")
    if named is None:
        near = source.base_nearby()
        hint = f" (there is {near}: --base {near})" if near else ""
        raise TrajectoryError(
            f"{where}: nothing says what the run started from (no step 0, no base_model in its "
            f"card); name it with --base ORG/NAME or --base FOLDER{hint}"
        )
    return BaseAnswer("card", None, f"hf://{named}")


def base_of_adapter(config: Mapping[str, object], checkpoint: Checkpoint) -> str | None:
    """Return the place that an adapter_config.json names as its base, None when it names none.

    An adapter in a folder may name a folder here. One on the Hub may not: whoever pushed it would
    choose which of the reader's files are opened.

    Raises:
        TrajectoryError: a folder of another machine, or a name that is no repo's.
    """
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return None
    is_on_hub = checkpoint.commit is not None
    if not is_on_hub and Path(named).is_dir():
        return str(Path(named).absolute())
    if not _HUB_ID.fullmatch(named):
        flaw = "no repo (a repo may name no folder)" if is_on_hub else "no folder here and no repo"
        raise TrajectoryError(
            f"{checkpoint.label}: its adapter_config.json names {shown(named)[1:-1]} as the base, "
            f"which is {flaw}; name it with --base ORG/NAME or --base FOLDER"
        )
    revision = config.get("revision")
    at = f"@{revision}".replace("/", "%2F") if isinstance(revision, str) and revision else ""
    return f"hf://{named}{at}"


def base_model_of_card(card: str) -> str | None:
    """Return the one Hub id that a card gives as base_model; a list or a path is no answer.

    Cards are read leniently: of several YAML blocks the first counts, and the rest of the block may
    be anything (seen: POLARIS-Project/Polaris-4B-Preview had two blocks naming two bases).
    """
    block = _FRONT_MATTER.search(card)
    match = _BASE_MODEL.search(block[1]) if block else None
    if match is None:
        return None
    value = match["value"].strip().strip("'\"")
    return value if _HUB_ID.fullmatch(value) else None

"""Which model is W_0: the user's word, step 0 of the run, or what the run says about itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alpharl_hub.errors import TrajectoryError
from alpharl_hub.sources.listing import RunSource
from alpharl_hub.trajectory import Checkpoint

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_BASE_MODEL = re.compile(r"^base_model:[ \t]*(?P<value>.*?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class BaseAnswer:
    """What names the base: a listed checkpoint (step 0), or text to be opened like --base."""

    chosen_by: str
    checkpoint: Checkpoint | None
    text: str | None


def choose_base(
    option: str | None, listed: tuple[Checkpoint, ...], source: RunSource, where: str
) -> BaseAnswer:
    """Decide what the base is, without opening it.

    Raises:
        TrajectoryError: nothing names it.
    """
    if option is not None:
        return BaseAnswer("option", None, option)
    for checkpoint in listed:
        if checkpoint.step == 0:
            return BaseAnswer("step_0", checkpoint, None)
    named = base_model_of_card(source.card_text(listed[-1]) or "")
    if named is None:
        raise TrajectoryError(
            f"{where}: nothing says what the run started from (no step 0, no base_model in its "
            "card); name it with --base ORG/NAME or --base FOLDER"
        )
    return BaseAnswer("card", None, f"hf://{named}")


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
    return value if _HUB_ID.match(value) else None

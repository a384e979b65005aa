"""The repo that a run is kept in: a branch for each step, and cards that say what it started from.

Readers find the base by a branch step_0, by adapter_config.json, or by base_model in the card, in
this order; so a base that is a repo itself is named, and any other is pushed as step_0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alpharl_hub.card.markdown import code, fenced
from alpharl_hub.errors import PushError
from alpharl_hub.push.hub_target import HubAccess, HubTarget
from alpharl_hub.push.model_upload import DEFAULT_BRANCH
from alpharl_hub.sources.base_choice import base_model_of_card
from alpharl_hub.sources.patience import Patience
from alpharl_hub.sources.step_names import PLACEHOLDER, match_step

CARD_NAME = "README.md"
_BRANCHES = f"step_{PLACEHOLDER}"


@dataclass(frozen=True)
class RunBase:
    """What the run starts from: a repo on the Hub, or a folder here; neither where not stored."""

    repo: str | None
    folder: Path | None


def branch_of(step: int) -> str:
    """Return the branch that holds a step."""
    return _BRANCHES.replace(PLACEHOLDER, str(step))


def find_base(named: str, given: str | None) -> RunBase:
    """Decide what the run starts from; `named` is where the model says that it was loaded from.

    A folder counts before a repo of the same name, as it does when a model is loaded.
    """
    if given is not None:
        return RunBase(given, None)
    if named and (folder := Path(named)).is_dir():
        return RunBase(None, folder if any(folder.glob("*.safetensors")) else None)
    return RunBase(named if is_repo_name(named) else None, None)


def is_repo_name(name: str) -> bool:
    """Whether the reader of a card takes a name for that of a base on the Hub."""
    return base_model_of_card(f"---\nbase_model: {name}\n---\n") == name


def run_card(repo: str, base: str | None, is_adapter: bool, step: int | None) -> str:
    """Write the card of the whole run, or of one step."""
    facts: dict[str, str] = {"library_name": "peft" if is_adapter else "transformers"}
    if base is not None and step != 0:
        relation = "adapter" if is_adapter else "finetune"
        facts |= {"base_model": base, "base_model_relation": relation}
    # Quoted as in JSON, which YAML reads: a repo may be named after a number or a date.
    header = [f"{key}: {json.dumps(value)}" for key, value in facts.items()]
    about = "Checkpoints of a training run, one branch for each saved step"
    if step is not None:
        about = "What a training run started from" if step == 0 else f"Step {step} of a run"
    started = code(branch_of(0)) if base is None else code(base)
    lines = [
        *("---", *header, "tags:", "- reinforcement-learning", "- alpharl-hub", "---", ""),
        f"# {repo.rpartition('/')[2]}" + ("" if step is None else f", step {step}"),
        "",
        f"{about}. The branches `step_N` of {code(repo)} hold the run, and {started} is what it "
        "started from. What it is like:",
        "",
        fenced([f"alpharl-hub inspect {repo}", f"alpharl-hub report {repo} --quick"], "bash"),
    ]
    return "\n".join(lines) + "\n"


class RunRepo:
    """One repo that takes a run; asks and changes the Hub when told to, never by itself."""

    def __init__(self, repo: str, access: HubAccess, patience: Patience, public: bool) -> None:
        self.repo = repo
        self.access = access
        self.patience = patience
        self._public = public

    def open(self, card: str) -> Mapping[int, str]:
        """Make sure that the repo is there, may be written, and has a card.

        Returns the branches of steps that it holds, with their commits.

        Raises:
            PushError: no token, one that may not write here, or the Hub refuses.
        """
        target = HubTarget(self.repo, self.access, self.patience)
        target.check_token()
        state = target.look()
        if state is None:
            target.create(private=not self._public)
            state = target.look()
        head = None if state is None else state.branches.get(DEFAULT_BRANCH)
        if state is None or head is None:
            raise PushError(
                f"{self.repo}: has no branch {DEFAULT_BRANCH}; make it, or name another"
            )
        if CARD_NAME not in target.files(head):
            files = {CARD_NAME: card.encode()}
            target.commit(DEFAULT_BRANCH, head, "Say what this run is", [], files, [])
        return _steps_of(state.branches)


def _steps_of(branches: Mapping[str, str]) -> Mapping[int, str]:
    found = ((match_step(name), commit) for name, commit in branches.items())
    return {match[1]: commit for match, commit in found if match and match[0] == _BRANCHES}

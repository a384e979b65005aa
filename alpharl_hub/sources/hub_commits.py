"""Steps that are commits of one branch, where every push overwrites the model.

transformers' Trainer pushes its output folder as "Training in progress, step N" (or "epoch N"), and
with hub_strategy "checkpoint" or "all_checkpoints" right after it the checkpoint itself as
"..., checkpoint" into last-checkpoint/ or checkpoint-N/; only there lies trainer_state.json
(https://github.com/huggingface/transformers/blob/main/src/transformers/trainer.py). A push that
huggingface_hub 2 takes apart ends its further titles with "(part K)".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alpharl_hub.manifest import Notice
from alpharl_hub.sources.contents import find_weights_folder
from alpharl_hub.sources.hub_client import HubClient, RepoCommit
from alpharl_hub.sources.listing import Listing, below
from alpharl_hub.sources.step_names import PLACEHOLDER
from alpharl_hub.trajectory import Checkpoint, StoredFile

LAYOUT = "commits"

_TITLE = re.compile(
    r"^Training in progress, (?P<unit>step|epoch) (?P<number>\d{1,15})(?P<whole>, checkpoint)?"
    r"( \(part \d+\))?$"
)
_FINAL_TITLES = ("End of training", "Model save")
_LAST_CHECKPOINT = "last-checkpoint"
_MAX_NAMED = 8


@dataclass(frozen=True)
class _Push:
    """One commit of a step; `is_whole`: it put the whole checkpoint into a folder of its own."""

    number: int
    sha: str
    title: str
    is_whole: bool


def list_step_commits(client: HubClient, repo: str, head: str) -> Listing | None:
    """Find the steps in the titles of a commit's history; None with fewer than two.

    The newest commit of every step counts. Costs the pages of the history and at most one tree.
    """
    unit, pushes = _find_pushes(client.history(repo, head))
    newest: dict[int, _Push] = {}
    for push in pushes:
        newest.setdefault(push.number, push)
    if len(newest) < 2:
        return None
    folder = _whole_folder(client, repo, pushes)
    checkpoints = tuple(
        Checkpoint(number, repo, push.sha, push.sha, _folder_of(push, folder))
        for number, push in sorted(newest.items())
    )
    notices = (*_tell_unit(unit), *_tell_restarts(pushes, newest))
    return Listing(LAYOUT, f"Training in progress, {unit} {PLACEHOLDER}", checkpoints, notices)


def _find_pushes(history: Sequence[RepoCommit]) -> tuple[str, tuple[_Push, ...]]:
    """Return (unit, pushes from the newest on); epochs count only where there is no step."""
    matches = [(commit, _TITLE.match(commit.title)) for commit in history]
    units = {match["unit"] for _, match in matches if match}
    unit = "epoch" if units == {"epoch"} else "step"
    pushes = (
        _Push(int(match["number"]), commit.sha, commit.title, match["whole"] is not None)
        for commit, match in matches
        if match and match["unit"] == unit
    )
    return unit, tuple(pushes)


def _whole_folder(client: HubClient, repo: str, pushes: Sequence[_Push]) -> str:
    """Return where whole checkpoints lie, judged by the newest one; "" is the root of the repo."""
    newest = next((push for push in pushes if push.is_whole), None)
    if newest is None:
        return ""
    tree = client.tree(repo, newest.sha)
    for folder in (f"checkpoint-{PLACEHOLDER}", _LAST_CHECKPOINT):
        name = folder.replace(PLACEHOLDER, str(newest.number))
        if find_weights_folder(below(tree, f"{name}/")) is not None:
            return folder
    return ""


def _folder_of(push: _Push, folder: str) -> str:
    return folder.replace(PLACEHOLDER, str(push.number)) if push.is_whole else ""


def _tell_unit(unit: str) -> tuple[Notice, ...]:
    if unit == "step":
        return ()
    message = "the titles of the commits count epochs: every step here is an epoch, targets too"
    return (Notice("epochs", message),)


def _tell_restarts(pushes: Sequence[_Push], newest: Mapping[int, _Push]) -> tuple[Notice, ...]:
    """Warn of steps that were pushed twice, and of those that a restart left behind.

    A run that starts again at a lower number repeats the numbers up to where it had been; what it
    has not reached again is still there from before, and need not lie on the path of the others.
    """
    counts = Counter(push.title for push in pushes)
    repeated = sorted({push.number for push in pushes if counts[push.title] > 1})
    left_behind = set()
    lowest = pushes[0].number
    for push in pushes:
        if newest[push.number] is push and push.number > lowest:
            left_behind.add(push.number)
        lowest = min(lowest, push.number)
    notices = []
    if repeated:
        message = (
            f"{_named(repeated)} pushed more than once (the run was restarted); the newest commit "
            "of each is taken"
        )
        notices.append(Notice("restarted", message))
    if left_behind:
        fresh = sorted(newest.keys() - left_behind)
        message = (
            f"{_named(sorted(left_behind))} pushed before the run was restarted at a lower step "
            f"and may lie on another path; {_without(left_behind, fresh)}"
        )
        notices.append(Notice("left_behind", message))
    return tuple(notices)


def _named(steps: Sequence[int]) -> str:
    shown = ", ".join(map(str, steps[:_MAX_NAMED])) + (", ..." if len(steps) > _MAX_NAMED else "")
    return f"step {shown} was" if len(steps) == 1 else f"steps {shown} were"


def _without(left_behind: set[int], fresh: Sequence[int]) -> str:
    """Say which option leaves them out."""
    if min(left_behind) > fresh[-1]:
        return f"--until {fresh[-1]} goes without"
    if len(fresh) <= _MAX_NAMED:
        return f"--steps {','.join(map(str, fresh))} goes without"
    return "--steps goes without"


def tell_end(client: HubClient, listing: Listing, revision: str, head: str) -> tuple[Notice, ...]:
    """Mention a model that was pushed after the last step and differs from it; a tree or two."""
    steps = {c.commit for c in listing.checkpoints}
    repo = listing.checkpoints[0].source
    later: list[str] = []
    last = None
    for commit in client.history(repo, head):
        if commit.sha in steps:
            last = commit.sha
            break
        later.append(commit.title)
    if last is None or not later:
        return ()
    final, before = _root_weights(client.tree(repo, head)), _root_weights(client.tree(repo, last))
    if not final or final == before:
        return ()
    ends = [title for title in later if title in _FINAL_TITLES]
    why = f" (pushed as {ends[0]!r})" if ends else ""
    message = (
        f"{revision} holds another model than its last step{why}, which is left out; "
        f"--at {revision}=STEP takes it"
    )
    return (Notice("main_left_out", message),)


def _root_weights(tree: Mapping[str, StoredFile]) -> Mapping[str, str | None]:
    return {
        path: stored.sha256
        for path, stored in tree.items()
        if path.endswith(".safetensors") and "/" not in path
    }

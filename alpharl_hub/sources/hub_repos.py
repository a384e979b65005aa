"""Runs with a repo for every step: the number stands in the repo's name."""

from __future__ import annotations

from collections.abc import Collection

from alpharl_hub.errors import TrajectoryError, did_you_mean
from alpharl_hub.manifest import Notice
from alpharl_hub.sources.hub_client import HubClient, ListedRepo
from alpharl_hub.sources.hub_uri import RepoPlace, parse_place
from alpharl_hub.sources.listing import Listing, below, keep_complete
from alpharl_hub.sources.step_names import PLACEHOLDER, match_pattern, mention_patterns
from alpharl_hub.trajectory import Checkpoint, StoredFile

LAYOUT = "repos"


def list_step_repos(client: HubClient, place: RepoPlace) -> Listing:
    """Find the repos of an organisation that fit a pattern, each pinned.

    Raises:
        TrajectoryError: none fits, or two are the same step. SourceError: one of them lacks the
            revision.
    """
    organisation, _, pattern = place.repo.partition("/")
    found = client.models_of(organisation, _longest_text(pattern))
    owned = f"{organisation}/"
    listed = {one.repo[len(owned) :]: one for one in found if one.repo.startswith(owned)}
    family = match_pattern(pattern, listed)
    if not family.names:
        raise _no_fit(place, pattern, sorted(listed), client.has_token())
    repos = {step: listed[name] for step, name in family.names.items()}
    kept, notices = _keep_complete(repos.values(), place)
    if not kept:
        raise TrajectoryError(f"{place}: {notices[0].message}, and no other repo fits {pattern}")
    revision, folder = place.revision or "main", place.folder
    checkpoints = tuple(
        Checkpoint(step, one.repo, revision, _commit(client, one, place), folder)
        for step, one in repos.items()
        if one.repo in kept
    )
    return Listing(LAYOUT, str(place), checkpoints, notices)


def _commit(client: HubClient, listed: ListedRepo, place: RepoPlace) -> str:
    if place.revision is None and listed.commit is not None:
        return listed.commit
    return client.commit_of(listed.repo, place.revision or "main")


def _keep_complete(
    repos: Collection[ListedRepo], place: RepoPlace
) -> tuple[Collection[str], tuple[Notice, ...]]:
    """Leave out repos without weights and predicted models, where their files are listed."""
    if place.revision is not None or any(one.filenames is None for one in repos):
        return [one.repo for one in repos], ()
    prefix = f"{place.folder}/" if place.folder else ""
    # A list of repos tells no sizes; names are enough here.
    files = {
        one.repo: below({name: StoredFile(name, 0, None) for name in one.filenames or ()}, prefix)
        for one in repos
    }
    return keep_complete(files, "repos")


def pin_repo(client: HubClient, place: RepoPlace, name: str, step: int) -> Checkpoint:
    """Pin what --at names beside such repos: ORG/NAME[@REVISION][/FOLDER]."""
    if "/" not in name or PLACEHOLDER in name:
        raise TrajectoryError(
            f"--at {name}={step}: {place} is a repo for every step, so that a step is a repo too; "
            f"write --at ORG/NAME={step}"
        )
    found = parse_place(name)
    revision = found.revision or "main"
    commit = client.commit_of(found.repo, revision)
    return Checkpoint(step, found.repo, revision, commit, found.folder or place.folder)


def _longest_text(pattern: str) -> str:
    """Return what the Hub is asked to search for: less to list, and all that fits is among it."""
    before, _, after = pattern.partition(PLACEHOLDER)
    return max(before.rstrip("-_."), after.lstrip("-_."), key=len)


def _no_fit(place: RepoPlace, pattern: str, names: list[str], has_token: bool) -> TrajectoryError:
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    hint = "" if has_token else "; private repos need --token or HF_TOKEN"
    return TrajectoryError(
        f"{place}: no repo fits {pattern}; there is {listed or 'none of such a name'}{hint}"
        f"{did_you_mean(pattern, mention_patterns(names))}"
    )

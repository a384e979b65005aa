"""A push that asks instead of doing: a pull request, found again, and in words for its reader."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from alpharl_hub.card.markdown import code
from alpharl_hub.push.hub_target import HubTarget, PullRequest, RemoteFile
from alpharl_hub.push.landing import Expected
from alpharl_hub.push.refusals import RefusedError
from alpharl_hub.version import __version__

_NUM_LOOKED_AT = 5
"""How many of the newest are compared with what is to be sent, each at the price of a listing."""

_MAX_NAMED = 20


def find_open_request(target: HubTarget, expected: Expected) -> PullRequest | None:
    """Return an open pull request that asks for the very same, as a cut-off push may have left.

    Raises:
        PushError: the Hub refuses.
    """
    for request in target.pull_requests()[:_NUM_LOOKED_AT]:
        if expected.is_met_by(_files(target, request)) and target.is_open(request):
            return request
    return None


def _files(target: HubTarget, request: PullRequest) -> Mapping[str, RemoteFile]:
    try:
        return target.files(request.commit)
    except RefusedError as error:
        # One that was hidden or deleted meanwhile is none that could be found again.
        if error.status != 404:
            raise
        return {}


def describe(
    what: str,
    branch: str,
    parent: str,
    old_files: Mapping[str, RemoteFile],
    expected: Expected,
) -> str:
    """Say in Markdown what a repo gets and loses by merging; `what` is a model, or factors."""
    replaced = [
        name
        for name, file in sorted(expected.files.items())
        if name in old_files and not file.is_met_by(old_files[name])
    ]
    added = [name for name in sorted(expected.files) if name not in old_files]
    lines = [
        f"This pull request adds {what}, made with `alpharl-hub {__version__}`. Compared with "
        f"{code(branch)} at {code(parent[:12])}, merging it",
        "",
        f"- **replaces** {_listed(replaced)},",
        f"- **deletes** {_listed(sorted(expected.deleted))},",
        f"- adds {_listed(added)}.",
        "",
        "Everything else stays, and nothing changes before it is merged. The card, `README.md`, "
        "says what it was made from; `alpharl.json` has every detail.",
    ]
    return "\n".join(lines)


def _listed(names: Collection[str]) -> str:
    shown = [code(name) for name in list(names)[:_MAX_NAMED]]
    more = len(names) - len(shown)
    if more:
        shown.append(f"{more} more")
    return ", ".join(shown) or "nothing"

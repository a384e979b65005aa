"""Pull requests after they were opened: looked at, closed or opened again, and merged."""

from dataclasses import replace

from alpharl_hub.local_hub.messages import HubError, Request, Response, json_response
from alpharl_hub.local_hub.state import HubState, Names
from alpharl_hub.local_hub.storage import MAIN, Repo

OPEN, CLOSED, MERGED = "open", "closed", "merged"


def read_discussion(hub: HubState, request: Request, names: Names) -> Response:
    """GET /api/models/R/discussions/N: what the client reads of a pull request."""
    repo = hub.visible_repo(request, names)
    commit = hub.commit_at(repo, _ref(repo, names))
    comment = {"edited": False, "hidden": False, "latest": {"raw": commit.message}}
    author = {"name": commit.author}
    return json_response(
        {
            "num": int(names["num"]),
            "title": commit.title,
            "author": author,
            "createdAt": commit.date,
            "status": repo.statuses.get(names["num"], OPEN),
            "repo": {"name": repo.repo_id, "type": "model"},
            "isPullRequest": True,
            "changes": {"base": MAIN},
            "filesWithConflicts": [],
            "events": [
                {
                    "id": f"{commit.sha}-0",
                    "type": "comment",
                    "createdAt": commit.date,
                    "author": author,
                    "data": comment,
                }
            ],
        }
    )


def change_status(hub: HubState, request: Request, names: Names) -> Response:
    """POST /api/models/R/discussions/N/status: its author and the repo's owners may."""
    repo = hub.visible_repo(request, names)
    commit = hub.commit_at(repo, _ref(repo, names))
    if request.user != commit.author:
        hub.accounts.check_write(request.user, repo.namespace)
    status = request.json().get("status")
    if status not in (OPEN, CLOSED):
        raise HubError(400, f"Invalid status: {status}")
    _save(hub, repo, names["num"], status)
    event = {"id": f"{commit.sha}-1", "type": "status-change", "createdAt": commit.date}
    return json_response({"newStatus": {**event, "data": {"status": status}}})


def merge(hub: HubState, request: Request, names: Names) -> Response:
    """POST /api/models/R/discussions/N/merge, of one that follows main as it is."""
    repo = hub.writable_repo(request, names)
    commit = hub.commit_at(repo, _ref(repo, names))
    with hub.storage.lock:
        if commit.parent != hub.commit_at(repo, "main").sha:
            raise HubError(409, "main has moved since; only what follows it is merged here")
        hub.storage.set_ref(repo.repo_id, MAIN, commit.sha)
        _save(hub, hub.visible_repo(request, names), names["num"], MERGED)
    return json_response({})


def _ref(repo: Repo, names: Names) -> str:
    ref = f"refs/pr/{names['num']}"
    if ref not in repo.refs:
        raise HubError(404, f"No such discussion: {names['num']}")
    return ref


def _save(hub: HubState, repo: Repo, number: str, status: str) -> None:
    hub.storage.save(replace(repo, statuses={**repo.statuses, number: status}))

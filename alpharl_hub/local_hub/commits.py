"""Commits: lines of JSON that add and delete files, on a branch or as a pull request."""

import json
from base64 import b64decode
from collections.abc import Callable
from typing import Any

from alpharl_hub.local_hub.blobs import MAX_REGULAR_BYTES, FileEntry, lfs_entry
from alpharl_hub.local_hub.cards import check_card
from alpharl_hub.local_hub.messages import HubError, Request, Response, json_response
from alpharl_hub.local_hub.state import HubState, Names
from alpharl_hub.local_hub.storage import Change, Commit, Repo

Files = dict[str, FileEntry | None]


def create_commit(hub: HubState, request: Request, names: Names) -> Response:
    """POST /api/models/R/commit/BRANCH?create_pr="""
    repo = hub.visible_repo(request, names)
    as_pull_request = request.flag("create_pr")
    if request.user is None or not as_pull_request:
        hub.accounts.check_write(request.user, repo.namespace)
    header, operations = _parsed(request.body.read())
    with hub.storage.lock:
        # Read again under the lock, so that two commits cannot both follow the same parent.
        repo = hub.visible_repo(request, names)
        expected = header.get("parentCommit")
        # A pull request follows the commit that it names, wherever the branch is by now.
        start = expected if expected and as_pull_request else names["revision"]
        parent = hub.commit_at(repo, start)
        ref = _target_ref(repo, names["revision"], as_pull_request)
        if expected and not parent.sha.startswith(expected):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = _changed_files(hub, parent, operations)
        title, message = str(header["summary"]), str(header.get("description", ""))
        change = Change(files, title, message, str(request.user))
        commit = hub.storage.commit(repo.repo_id, ref, parent, change)
    url = f"{hub.endpoint}/{repo.repo_id}"
    answer = {"success": True, "commitOid": commit.sha, "commitUrl": f"{url}/commit/{commit.sha}"}
    if as_pull_request:
        answer["pullRequestUrl"] = f"{url}/discussions/{ref.rsplit('/', 1)[1]}"
    return json_response({**answer, "hookOutput": ""})


def _parsed(body: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        operations = [(str(line["key"]), dict(line["value"])) for line in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise HubError(400, f"Not lines of JSON with key and value: {error}") from error
    if not operations or operations[0][0] != "header" or not operations[0][1].get("summary"):
        raise HubError(400, "The first line must be a header with a summary")
    return operations[0][1], operations[1:]


def _target_ref(repo: Repo, revision: str, as_pull_request: bool) -> str:
    branch = f"refs/heads/{revision}"
    if as_pull_request:
        return f"refs/pr/{len(repo.names('refs/pr/')) + 1}"
    if branch in repo.refs:
        return branch
    if revision in repo.refs and revision.startswith("refs/pr/"):
        return revision
    raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def _changed_files(
    hub: HubState, parent: Commit, operations: list[tuple[str, dict[str, Any]]]
) -> Files:
    files: Files = {}
    for key, value in operations:
        handler = OPERATIONS.get(key)
        if handler is None:
            raise HubError(400, f"Unknown operation: {key}")
        files.update(handler(hub, parent, _checked_path(value), value))
    return files


def _add_regular(hub: HubState, parent: Commit, path: str, value: dict[str, Any]) -> Files:
    content = str(value.get("content", ""))
    data = b64decode(content) if value.get("encoding") == "base64" else content.encode()
    if len(data) > MAX_REGULAR_BYTES:
        raise HubError(400, f"{path} is too large for a regular file, use LFS")
    if path == "README.md":
        check_card(data.decode("utf-8", "replace"))
    return {path: hub.storage.blobs.add(path, data)}


def _add_lfs(hub: HubState, parent: Commit, path: str, value: dict[str, Any]) -> Files:
    oid = str(value.get("oid"))
    known = len(oid) == 64 and oid.isalnum()
    size_bytes = hub.storage.blobs.size_of(oid) if known else None
    # A copy within a repo names no size.
    if size_bytes is None or value.get("size", size_bytes) != size_bytes:
        raise HubError(400, f"{path} points to an LFS object that was not uploaded: {oid}")
    return {path: lfs_entry(oid, size_bytes)}


def _delete_file(hub: HubState, parent: Commit, path: str, value: dict[str, Any]) -> Files:
    if path not in parent.files:
        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    return {path: None}


def _delete_folder(hub: HubState, parent: Commit, path: str, value: dict[str, Any]) -> Files:
    inside: Files = {name: None for name in parent.files if name.startswith(f"{path}/")}
    if not inside:
        raise HubError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
    return inside


OPERATIONS: dict[str, Callable[[HubState, Commit, str, dict[str, Any]], Files]] = {
    "file": _add_regular,
    "lfsFile": _add_lfs,
    "deletedFile": _delete_file,
    "deletedFolder": _delete_folder,
}


def _checked_path(value: dict[str, Any]) -> str:
    path = str(value.get("path", "")).rstrip("/")
    if not path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise HubError(400, f"Invalid path in repo: {path}")
    return path

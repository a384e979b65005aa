"""Trees, paths and histories, page by page."""

import hashlib
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlencode

from alpharl_hub.local_hub.blobs import FileEntry
from alpharl_hub.local_hub.messages import HubError, Request, Response, json_response
from alpharl_hub.local_hub.state import HubState, Names
from alpharl_hub.local_hub.storage import Commit

T = TypeVar("T")
# What the Hub gives a page when it has to look up the last commit of every path.
EXPANDED_PAGE_SIZE = 50


def page(
    hub: HubState,
    request: Request,
    items: Sequence[T],
    size: int,
    describe: Callable[[T], dict[str, Any]],
) -> Response:
    """Answer with one page and, in the Link header, the address of the next one."""
    start = int(request.parameter("cursor", "0"))
    stop = start + max(size, 1)
    response = json_response([describe(item) for item in items[start:stop]])
    if stop >= len(items):
        return response
    query = urlencode({**request.query, "cursor": str(stop)}, doseq=True)
    return response.with_headers(("Link", f'<{hub.endpoint}{request.path}?{query}>; rel="next"'))


def sibling(path: str, entry: FileEntry, with_blobs: bool) -> dict[str, Any]:
    """Describe a file as model information does."""
    if not with_blobs:
        return {"rfilename": path}
    described = {"rfilename": path, "size": entry.size_bytes, "blobId": entry.git_oid}
    if entry.is_lfs:
        sizes = {"size": entry.size_bytes, "pointerSize": entry.pointer_bytes}
        described["lfs"] = {"sha256": entry.sha256, **sizes}
    return described


def tree(hub: HubState, request: Request, names: Names) -> Response:
    """GET /api/models/R/tree/V/PATH?recursive=&expand="""
    repo = hub.visible_repo(request, names)
    commit = hub.commit_at(repo, names["revision"])
    folder, expand = names.get("path", "").strip("/"), request.flag("expand")
    paths = _paths_below(commit, folder, recursive=request.flag("recursive"))
    if folder and not paths:
        raise HubError(404, f"{folder} does not exist on {names['revision']}", "EntryNotFound")
    size = min(hub.page_size, EXPANDED_PAGE_SIZE) if expand else hub.page_size
    return page(hub, request, paths, size, lambda path: _described(hub, commit, path, expand))


def paths_info(hub: HubState, request: Request, names: Names) -> Response:
    """POST /api/models/R/paths-info/V, a form with paths= and expand="""
    repo = hub.visible_repo(request, names)
    commit = hub.commit_at(repo, names["revision"])
    form = parse_qs(request.body.read().decode())
    expand = form.get("expand", ["false"])[0].lower() == "true"
    existing = {*commit.files, *_folders(commit)}
    wanted = [path.strip("/") for path in form.get("paths", [])]
    found = [_described(hub, commit, path, expand) for path in wanted if path in existing]
    return json_response(found)


def list_commits(hub: HubState, request: Request, names: Names) -> Response:
    """GET /api/models/R/commits/V?limit="""
    repo = hub.visible_repo(request, names)
    history = list(hub.storage.history(hub.commit_at(repo, names["revision"])))

    def described(commit: Commit) -> dict[str, Any]:
        authors = [{"user": commit.author}]
        return {**_last_commit(commit), "message": commit.message, "authors": authors}

    size = int(request.parameter("limit", str(hub.page_size)))
    return page(hub, request, history, min(size, hub.page_size), described)


def _folders(commit: Commit) -> set[str]:
    parts = (path.split("/")[:-1] for path in commit.files)
    return {"/".join(names[:depth]) for names in parts for depth in range(1, len(names) + 1)}


def _paths_below(commit: Commit, folder: str, *, recursive: bool) -> list[str]:
    prefix = f"{folder}/" if folder else ""
    everything = sorted({*commit.files, *_folders(commit)})
    below = [path for path in everything if path.startswith(prefix)]
    if recursive:
        return below
    return [path for path in below if "/" not in path.removeprefix(prefix)]


def _described(hub: HubState, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    entry = commit.files.get(path)
    described: dict[str, Any] = {"type": "directory", "path": path, "size": 0}
    if entry is None:
        described["oid"] = _folder_oid(commit, path)
    else:
        described = {"type": "file", "path": path, "size": entry.size_bytes, "oid": entry.git_oid}
    if entry is not None and entry.is_lfs:
        sizes = {"size": entry.size_bytes, "pointerSize": entry.pointer_bytes}
        described["lfs"] = {"oid": entry.sha256, **sizes}
    if expand:
        described["lastCommit"] = _last_commit(_last_change(hub, commit, path))
    return described


def _folder_oid(commit: Commit, folder: str) -> str:
    inside = [f"{path} {entry.git_oid}" for path, entry in commit.files.items()]
    text = "\n".join(line for line in inside if line.startswith(f"{folder}/"))
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _last_change(hub: HubState, commit: Commit, path: str) -> Commit:
    """Return the youngest commit in which a file, or a folder, got the content it has."""

    def content(state: Commit) -> str:
        return state.files[path].sha256 if path in state.files else _folder_oid(state, path)

    changed = commit
    for ancestor in islice(hub.storage.history(commit), 1, None):
        if content(ancestor) != content(commit):
            break
        changed = ancestor
    return changed


def _last_commit(commit: Commit) -> dict[str, str]:
    return {"id": commit.sha, "title": commit.title, "date": commit.date}

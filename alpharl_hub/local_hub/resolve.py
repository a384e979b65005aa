"""Downloads: the Hub names the place, the place sends bytes."""

import re
from urllib.parse import quote

from alpharl_hub.local_hub.blobs import FileEntry
from alpharl_hub.local_hub.messages import FileSpan, Header, HubError, Request, Response
from alpharl_hub.local_hub.state import HubState, Names
from alpharl_hub.local_hub.storage import Commit

RANGE_PATTERN = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


def resolve(hub: HubState, request: Request, names: Names) -> Response:
    """GET or HEAD /R/resolve/V/PATH: 302 to a signed address, 307 for a small file."""
    commit, entry = _find(hub, request, names)
    path = names["path"]
    headers = (
        *_identity(commit, entry),
        ("X-Linked-Etag", f'"{entry.etag}"'),
        ("X-Linked-Size", str(entry.size_bytes)),
    )
    if not entry.is_lfs:
        place = f"/api/resolve-cache/models/{commit.repo_id}/{commit.sha}/{path}"
        return Response(307, (*headers, ("Location", quote(place))))
    place = f"/download/{commit.repo_id}/{commit.sha}/{path}"
    signed = hub.signer.sign("GET", hub.storage_endpoint, place)
    return Response(302, (*headers, ("Location", signed)))


def resolve_cache(hub: HubState, request: Request, names: Names) -> Response:
    """GET or HEAD /api/resolve-cache/models/R/COMMIT/PATH: a small file, from the Hub itself."""
    commit, entry = _find(hub, request, names)
    return _file_response(hub, request, entry, _identity(commit, entry))


def download(hub: HubState, request: Request, names: Names) -> Response:
    """GET or HEAD on the storage origin, by a signed address only."""
    hub.signer.check(request)
    commit = hub.storage.read_commit(names["revision"])
    entry = commit.files.get(names["path"]) if commit else None
    if entry is None:
        raise HubError(404, "No such object")
    return _file_response(hub, request, entry, (("ETag", f'"{entry.etag}"'),))


def _find(hub: HubState, request: Request, names: Names) -> tuple[Commit, FileEntry]:
    repo = hub.visible_repo(request, names)
    hub.accounts.check_content(request.user, repo)
    commit = hub.commit_at(repo, names["revision"])
    entry = commit.files.get(names["path"])
    if entry is None:
        mark = (("X-Repo-Commit", commit.sha),)
        raise HubError(404, "Entry not found", "EntryNotFound", mark)
    return commit, entry


def _identity(commit: Commit, entry: FileEntry) -> tuple[Header, ...]:
    return (("ETag", f'"{entry.etag}"'), ("X-Repo-Commit", commit.sha))


def _file_response(
    hub: HubState, request: Request, entry: FileEntry, identity: tuple[Header, ...]
) -> Response:
    size_bytes = entry.size_bytes
    headers: tuple[Header, ...] = (
        *identity,
        ("Accept-Ranges", "bytes"),
        ("Content-Type", "application/octet-stream"),
    )
    path = hub.storage.blobs.path_of(entry.sha256)
    span = _asked_span(request.headers.get("Range", ""), size_bytes)
    if span is None:
        return Response(200, headers, FileSpan(path, 0, size_bytes, size_bytes))
    start, stop = span
    if start >= stop:
        unsatisfied = (("Content-Range", f"bytes */{size_bytes}"),)
        raise HubError(416, "Requested range not satisfiable", headers=unsatisfied)
    content_range = ("Content-Range", f"bytes {start}-{stop - 1}/{size_bytes}")
    return Response(206, (*headers, content_range), FileSpan(path, start, stop, size_bytes))


def _asked_span(header: str, size_bytes: int) -> tuple[int, int] | None:
    """Return [start, stop) of a Range header, empty if it cannot be met.

    None where there is none, or one that a server may leave aside: several ranges, or one that is
    malformed (https://www.rfc-editor.org/rfc/rfc9110#section-14.2).
    """
    match = RANGE_PATTERN.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size_bytes - int(last)), size_bytes if int(last) else 0
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size_bytes) if last else size_bytes

"""Uploads of large files: which go to LFS, where to put them, and whether they arrived."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

from alpharl_hub.local_hub.blobs import Received, belongs_in_lfs
from alpharl_hub.local_hub.messages import (
    READ_BYTES,
    HubError,
    Request,
    Response,
    json_response,
)
from alpharl_hub.local_hub.state import HubState, Names
from alpharl_hub.local_hub.storage import Repo


def preupload(hub: HubState, request: Request, names: Names) -> Response:
    """POST /api/models/R/preupload/V: regular or lfs, and what the path holds now."""
    repo = _repo_to_change(hub, request, names, as_pull_request=request.flag("create_pr"))
    commit = hub.commit_at(repo, names["revision"])
    answers = []
    for file in request.json().get("files", []):
        entry = commit.files.get(file["path"])
        is_lfs = belongs_in_lfs(file["path"], file["size"])
        answers.append(
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_lfs else "regular",
                "shouldIgnore": False,
                "oid": entry.etag if entry else None,
            }
        )
    return json_response({"files": answers, "commitOid": commit.sha})


def batch(hub: HubState, request: Request, names: Names) -> Response:
    """POST /R.git/info/lfs/objects/batch; a content already here needs no action.

    https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md, with the Hub's multipart form:
    `chunk_size` and numbered addresses in the header of the upload action.
    """
    asked = request.json()
    # A pull request names no branch: reading the repo is enough for it.
    repo = _repo_to_change(hub, request, names, as_pull_request="ref" not in asked)
    if asked.get("operation") != "upload":
        raise HubError(422, "Only uploads are served here")
    objects = [_batch_object(hub, repo, item) for item in asked.get("objects", [])]
    response = json_response({"transfer": "basic", "objects": objects})
    return response.with_headers(("Vary", "Authorization"))


def verify(hub: HubState, request: Request, names: Names) -> Response:
    """POST /R.git/info/lfs/verify"""
    hub.visible_repo(request, names)
    asked = request.json()
    if hub.storage.blobs.size_of(_checked_oid(asked)) != asked["size"]:
        raise HubError(404, f"The object {asked['oid']} has not arrived")
    return json_response({})


def put_object(hub: HubState, request: Request, names: Names) -> Response:
    """PUT /upload/R/OID on the storage origin: the whole file."""
    hub.signer.check(request)
    received = hub.storage.blobs.receive(request.body.pieces())
    return _keep(hub, received, names["oid"], int(request.parameter("size")))


def put_part(hub: HubState, request: Request, names: Names) -> Response:
    """PUT /upload/R/OID/UPLOAD/PART on the storage origin: one part of a file."""
    hub.signer.check(request)
    received = hub.storage.blobs.receive(request.body.pieces())
    path = _part_path(hub, names["upload"], int(names["part"]), received.md5)
    path.parent.mkdir(exist_ok=True)
    received.path.replace(path)
    return Response(200, (("ETag", f'"{received.md5}"'),))


def complete_multipart(hub: HubState, request: Request, names: Names) -> Response:
    """POST /api/complete-multipart/R/OID/UPLOAD, signed: joins the parts."""
    hub.signer.check(request)
    paths = []
    for number, part in enumerate(request.json().get("parts", []), start=1):
        path = _part_path(hub, names["upload"], number, str(part.get("etag")).strip('"'))
        if part.get("partNumber") != number or not path.is_file():
            raise HubError(400, f"Part {number} is missing or has another ETag")
        paths.append(path)
    received = hub.storage.blobs.receive(_joined(paths))
    response = _keep(hub, received, names["oid"], int(request.parameter("size")))
    for path in paths:
        path.unlink()
    return response


def _repo_to_change(
    hub: HubState, request: Request, names: Names, *, as_pull_request: bool
) -> Repo:
    repo = hub.visible_repo(request, names)
    if as_pull_request and request.user is not None:
        return repo
    hub.accounts.check_write(request.user, repo.namespace)
    return repo


def _batch_object(hub: HubState, repo: Repo, item: dict[str, Any]) -> dict[str, Any]:
    oid, size_bytes = _checked_oid(item), int(item["size"])
    answer: dict[str, Any] = {"oid": oid, "size": size_bytes, "authenticated": True}
    if hub.storage.blobs.size_of(oid) == size_bytes:
        return answer
    chunk_bytes, size = hub.multipart_chunk_bytes, str(size_bytes)
    place = f"/upload/{repo.repo_id}/{oid}"
    if chunk_bytes is None or size_bytes <= chunk_bytes:
        upload: dict[str, Any] = {
            "href": hub.signer.sign("PUT", hub.storage_endpoint, place, size=size)
        }
    else:
        upload_id = token_hex(8)
        completion = f"/api/complete-multipart/{repo.repo_id}/{oid}/{upload_id}"
        numbers = range(1, -(-size_bytes // chunk_bytes) + 1)
        parts = {
            f"{number:05d}": hub.signer.sign(
                "PUT", hub.storage_endpoint, f"{place}/{upload_id}/{number}"
            )
            for number in numbers
        }
        upload = {
            "href": hub.signer.sign("POST", hub.endpoint, completion, size=size),
            "header": {"chunk_size": str(chunk_bytes), **parts},
        }
    verification = {"href": f"{hub.endpoint}/{repo.repo_id}.git/info/lfs/verify"}
    return {**answer, "actions": {"upload": upload, "verify": verification}}


def _checked_oid(item: dict[str, Any]) -> str:
    oid = str(item.get("oid"))
    if len(oid) != 64 or not set(oid) <= set("0123456789abcdef"):
        raise HubError(422, f"Not a SHA-256: {oid}")
    return oid


def _part_path(hub: HubState, upload_id: str, number: int, md5: str) -> Path:
    # The etag comes from the client: hashed, it cannot name a path elsewhere.
    mark = hashlib.sha256(md5.encode()).hexdigest()
    return hub.storage.blobs.incoming / upload_id / f"{number}-{mark}"


def _joined(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                yield piece


def _keep(hub: HubState, received: Received, oid: str, size_bytes: int) -> Response:
    if (received.sha256, received.size_bytes) != (oid, size_bytes):
        received.path.unlink()
        raise HubError(400, f"Expected {size_bytes} bytes with SHA-256 {oid}, got others")
    hub.storage.blobs.adopt(received)
    return json_response({"success": True}).with_headers(("ETag", f'"{received.md5}"'))

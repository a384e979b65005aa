"""Users, repos, refs and model information."""

import re
from dataclasses import replace
from typing import Any

from alpharl_hub.local_hub.cards import card_metadata
from alpharl_hub.local_hub.listing import page, sibling
from alpharl_hub.local_hub.messages import HubError, Request, Response, json_response
from alpharl_hub.local_hub.state import HubState, Names
from alpharl_hub.local_hub.storage import MAIN, Commit, Repo

NAME_PATTERN = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?", re.ASCII)
# What a list of models tells of each unless it is asked for more: no commit, no files.
LISTED_FIELDS = (
    *("createdAt", "downloads", "library_name", "likes", "pipeline_tag", "private", "tags"),
)
REF_PATTERN = re.compile(r"[\w+=@-][\w.+=@/-]{0,199}", re.ASCII)


def whoami(hub: HubState, request: Request, names: Names) -> Response:
    """GET /api/whoami-v2"""
    if request.user is None:
        raise HubError(401, "Invalid username or password.")
    orgs = [{"type": "org", "name": org} for org in hub.accounts.orgs_of(request.user)]
    access = {"displayName": "local", "role": "write"}
    return json_response(
        {
            "type": "user",
            "id": request.user,
            "name": request.user,
            "fullname": request.user,
            "email": None,
            "isPro": False,
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": access},
        }
    )


def create_repo(hub: HubState, request: Request, names: Names) -> Response:
    """POST /api/repos/create"""
    if request.user is None:
        raise HubError(401, "Invalid username or password.")
    asked = request.json()
    repo_id = _repo_id_of(request.user, asked)
    namespace = repo_id.split("/")[0]
    if not hub.accounts.is_member(request.user, namespace):
        text = f'You don\'t have the rights to create a model under the namespace "{namespace}"'
        raise HubError(403, text)
    url = f"{hub.endpoint}/{repo_id}"
    private = asked.get("visibility") == "private" or asked.get("private") is True
    with hub.storage.lock:
        if hub.storage.repo(repo_id) is not None:
            conflict = {"error": "You already created this model repo", "url": url}
            return json_response(conflict, 409)
        hub.storage.create(repo_id, private=private, gated=False, author=request.user)
    return json_response({"url": url, "name": repo_id, "id": repo_id})


def delete_repo(hub: HubState, request: Request, names: Names) -> Response:
    """DELETE /api/repos/delete"""
    asked = request.json()
    repo_id = _repo_id_of(request.user or "", asked)
    repo = hub.accounts.check_visible(request.user, hub.storage.repo(repo_id))
    hub.accounts.check_write(request.user, repo.namespace)
    hub.storage.delete(repo_id)
    return json_response({})


def change_settings(hub: HubState, request: Request, names: Names) -> Response:
    """PUT /api/models/R/settings"""
    repo = hub.writable_repo(request, names)
    asked = request.json()
    with hub.storage.lock:
        if "visibility" in asked or "private" in asked:
            private = asked.get("visibility") == "private" or asked.get("private") is True
            repo = hub.storage.save(replace(repo, private=private))
        if "gated" in asked:
            repo = hub.storage.save(replace(repo, gated=bool(asked["gated"])))
    return json_response({"private": repo.private, "gated": _gated(repo)})


def auth_check(hub: HubState, request: Request, names: Names) -> Response:
    """GET /api/models/R/auth-check, and /write"""
    repo = hub.visible_repo(request, names)
    hub.accounts.check_content(request.user, repo)
    if request.segments[-1] == "write":
        hub.accounts.check_write(request.user, repo.namespace)
    return json_response({})


def list_refs(hub: HubState, request: Request, names: Names) -> Response:
    """GET /api/models/R/refs"""
    repo = hub.visible_repo(request, names)

    def described(prefix: str) -> list[dict[str, str]]:
        found = repo.names(prefix).items()
        return [{"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in found]

    refs = {"branches": described("refs/heads/"), "tags": described("refs/tags/"), "converts": []}
    if request.flag("include_prs"):
        pulls = described("refs/pr/")
        refs["pullRequests"] = [{**pull, "name": pull["ref"]} for pull in pulls]
    return json_response(refs)


def create_branch(hub: HubState, request: Request, names: Names) -> Response:
    """POST /api/models/R/branch/B"""
    repo = hub.writable_repo(request, names)
    start = request.json().get("startingPoint") or "main"
    return _create_ref(hub, repo, f"refs/heads/{names['ref']}", start)


def create_tag(hub: HubState, request: Request, names: Names) -> Response:
    """POST /api/models/R/tag/REVISION"""
    repo = hub.writable_repo(request, names)
    tag = str(request.json().get("tag", ""))
    return _create_ref(hub, repo, f"refs/tags/{tag}", names["ref"])


def delete_branch(hub: HubState, request: Request, names: Names) -> Response:
    """DELETE /api/models/R/branch/B"""
    return _delete_ref(hub, request, names, f"refs/heads/{names['ref']}")


def delete_tag(hub: HubState, request: Request, names: Names) -> Response:
    """DELETE /api/models/R/tag/T"""
    return _delete_ref(hub, request, names, f"refs/tags/{names['ref']}")


def model_info(hub: HubState, request: Request, names: Names) -> Response:
    """GET /api/models/R and /api/models/R/revision/V"""
    repo = hub.visible_repo(request, names)
    commit = hub.commit_at(repo, names.get("revision", "main"))
    metadata = card_metadata(hub.storage.blobs, commit)
    with_blobs = request.flag("blobs")
    files = [sibling(path, entry, with_blobs) for path, entry in commit.files.items()]
    info = {**_summary(hub, repo, commit, metadata), "siblings": files, "cardData": metadata}
    return json_response(info)


def list_models(hub: HubState, request: Request, names: Names) -> Response:
    """GET /api/models?author=&search=&limit=&full=&expand="""
    author, words = request.parameter("author"), request.parameter("search").lower()
    chosen = [
        repo
        for repo in hub.storage.repos()
        if hub.accounts.can_see(request.user, repo)
        and author in ("", repo.namespace)
        and words in repo.repo_id.lower()
    ]
    size = int(request.parameter("limit", str(hub.page_size)))

    def described(repo: Repo) -> dict[str, Any]:
        commit = hub.commit_at(repo, "main")
        info = _summary(hub, repo, commit, card_metadata(hub.storage.blobs, commit))
        info["siblings"] = [sibling(path, entry, False) for path, entry in commit.files.items()]
        if request.flag("full"):
            return info
        asked = request.query.get("expand", ()) or LISTED_FIELDS
        return {name: info[name] for name in ("_id", "id", "modelId", *asked) if name in info}

    return page(hub, request, chosen, min(size, hub.page_size), described)


def _summary(
    hub: HubState, repo: Repo, commit: Commit, metadata: dict[str, Any] | None
) -> dict[str, Any]:
    metadata = metadata or {}
    tags = metadata.get("tags")
    return {
        "_id": repo.repo_id,
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "author": repo.namespace,
        "sha": commit.sha,
        "createdAt": repo.created_at,
        "lastModified": commit.date,
        "private": repo.private,
        "gated": _gated(repo),
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags if isinstance(tags, list) else [],
        "pipeline_tag": metadata.get("pipeline_tag"),
        "library_name": metadata.get("library_name"),
    }


def _gated(repo: Repo) -> str | bool:
    return "manual" if repo.gated else False


def _repo_id_of(user: str, asked: dict[str, Any]) -> str:
    if asked.get("type") not in (None, "model"):
        raise HubError(400, f"This Hub has models only, not {asked['type']}")
    namespace, name = str(asked.get("organization") or user), str(asked.get("name"))
    if not NAME_PATTERN.fullmatch(name) or not NAME_PATTERN.fullmatch(namespace):
        raise HubError(400, f"Invalid name for a model: {namespace}/{name}")
    return f"{namespace}/{name}"


def _create_ref(hub: HubState, repo: Repo, ref: str, start: str) -> Response:
    name = ref.split("/", 2)[2]
    if not REF_PATTERN.fullmatch(name) or ".." in name or name.endswith(("/", ".")):
        raise HubError(400, f"Invalid reference name: {name}")
    commit = hub.commit_at(repo, start)
    with hub.storage.lock:
        current = hub.storage.repo(repo.repo_id)
        if current is not None and ref in current.refs:
            raise HubError(409, f"Reference already exists: {ref}")
        hub.storage.set_ref(repo.repo_id, ref, commit.sha)
    return json_response({"ref": ref, "targetCommit": commit.sha})


def _delete_ref(hub: HubState, request: Request, names: Names, ref: str) -> Response:
    repo = hub.writable_repo(request, names)
    if ref == MAIN:
        raise HubError(403, "The branch main cannot be deleted")
    if ref not in repo.refs:
        raise HubError(404, f"Invalid rev id: {names['ref']}", "RevisionNotFound")
    hub.storage.set_ref(repo.repo_id, ref, None)
    return json_response({})

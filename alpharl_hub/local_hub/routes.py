"""Which endpoint answers which address."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alpharl_hub.local_hub import (
    api,
    cards,
    commits,
    control,
    discussions,
    lfs,
    listing,
    resolve,
)
from alpharl_hub.local_hub.messages import HubError, Request, Response
from alpharl_hub.local_hub.state import Endpoint, HubState, Names

SEPARATOR = "\0"  # within a pattern only: a segment may hold an unquoted slash
REPO = "{namespace}/{name}"
MODEL = f"api/models/{REPO}"


@dataclass(frozen=True)
class Route:
    """A method, a compiled pattern of the path, and the endpoint."""

    method: str
    pattern: re.Pattern[str]
    endpoint: Endpoint


def _route(method: str, pattern: str, endpoint: Endpoint) -> Route:
    """`{name}` stands for one segment of the path, `{name*}` for all that is left."""
    text = re.escape(pattern).replace("/", SEPARATOR)
    text = re.sub(r"\\{(\w+)\\\*\\}", r"(?P<\1>.+)", text)
    text = re.sub(r"\\{(\w+)\\}", rf"(?P<\1>[^{SEPARATOR}]+)", text)
    return Route(method, re.compile(text, re.DOTALL), endpoint)


API_ROUTES = (
    _route("GET", "api/whoami-v2", api.whoami),
    _route("POST", "api/repos/create", api.create_repo),
    _route("DELETE", "api/repos/delete", api.delete_repo),
    _route("POST", "api/validate-yaml", cards.validate_yaml),
    _route("GET", "api/models", api.list_models),
    _route("GET", MODEL, api.model_info),
    _route("GET", f"{MODEL}/revision/{{revision}}", api.model_info),
    _route("PUT", f"{MODEL}/settings", api.change_settings),
    _route("GET", f"{MODEL}/auth-check", api.auth_check),
    _route("GET", f"{MODEL}/auth-check/write", api.auth_check),
    _route("GET", f"{MODEL}/refs", api.list_refs),
    _route("POST", f"{MODEL}/branch/{{ref}}", api.create_branch),
    _route("DELETE", f"{MODEL}/branch/{{ref}}", api.delete_branch),
    _route("POST", f"{MODEL}/tag/{{ref}}", api.create_tag),
    _route("DELETE", f"{MODEL}/tag/{{ref}}", api.delete_tag),
    _route("GET", f"{MODEL}/tree/{{revision}}", listing.tree),
    _route("GET", f"{MODEL}/tree/{{revision}}/{{path*}}", listing.tree),
    _route("POST", f"{MODEL}/paths-info/{{revision}}", listing.paths_info),
    _route("GET", f"{MODEL}/commits/{{revision}}", listing.list_commits),
    _route("POST", f"{MODEL}/preupload/{{revision}}", lfs.preupload),
    _route("POST", f"{MODEL}/commit/{{revision}}", commits.create_commit),
    _route("GET", f"{MODEL}/discussions/{{num}}", discussions.read_discussion),
    _route("POST", f"{MODEL}/discussions/{{num}}/status", discussions.change_status),
    _route("POST", f"{MODEL}/discussions/{{num}}/merge", discussions.merge),
    _route("POST", f"{REPO}.git/info/lfs/objects/batch", lfs.batch),
    _route("POST", f"{REPO}.git/info/lfs/verify", lfs.verify),
    _route("POST", f"api/complete-multipart/{REPO}/{{oid}}/{{upload}}", lfs.complete_multipart),
    _route("GET", f"{REPO}/resolve/{{revision}}/{{path*}}", resolve.resolve),
    _route("GET", f"api/resolve-cache/models/{REPO}/{{revision}}/{{path*}}", resolve.resolve_cache),
    _route("GET", "local-hub/log", control.read_log),
    _route("DELETE", "local-hub/log", control.clear_log),
    _route("GET", "local-hub/faults", control.read_faults),
    _route("POST", "local-hub/faults", control.add_fault),
    _route("DELETE", "local-hub/faults", control.clear_faults),
)
STORAGE_ROUTES = (
    _route("GET", f"download/{REPO}/{{revision}}/{{path*}}", resolve.download),
    _route("PUT", f"upload/{REPO}/{{oid}}", lfs.put_object),
    _route("PUT", f"upload/{REPO}/{{oid}}/{{upload}}/{{part}}", lfs.put_part),
)
FILE_ENDPOINTS = (resolve.resolve, resolve.resolve_cache, resolve.download)


def answer(hub: HubState, request: Request) -> Response:
    """Answer a request to either origin."""
    routes = API_ROUTES if request.origin == "api" else STORAGE_ROUTES
    route, names = _find(routes, request)
    try:
        response = _answer_from(hub, request, route, names)
    except HubError as error:
        response = error.response
    repo = f"{names['namespace']}/{names['name']}" if "name" in names else None
    path = names.get("path") if route and route.endpoint in FILE_ENDPOINTS else None
    return replace(response, repo=repo, file_path=path, revision=names.get("revision"))


def _answer_from(hub: HubState, request: Request, route: Route | None, names: Names) -> Response:
    authorization = request.headers.get("Authorization")
    if request.origin == "storage" and authorization is not None:
        raise HubError(400, "Only one way to authorize is allowed: the signature in the address")
    if route is None:
        raise HubError(404, "Sorry, we can't find the page you are looking for.")
    user = hub.accounts.user_of(authorization)
    return route.endpoint(hub, replace(request, user=user), names)


def _find(routes: Sequence[Route], request: Request) -> tuple[Route | None, Names]:
    method = "GET" if request.is_head else request.method
    path = SEPARATOR.join(request.segments)
    for route in routes:
        match = route.pattern.fullmatch(path) if route.method == method else None
        if match:
            names = match.groupdict()
            return route, {name: text.replace(SEPARATOR, "/") for name, text in names.items()}
    return None, {}

"""Who may do what, with the Hub's own answers to those who may not."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from alpharl_hub.local_hub.messages import HubError, Request
from alpharl_hub.local_hub.storage import Repo


@dataclass(frozen=True)
class Accounts:
    """Users by token, and members of organisations.

    A user owns the namespace of the same name. A namespace in `orgs` belongs to its members. Any
    other namespace is an organisation that every user is a member of.
    """

    tokens: Mapping[str, str]
    orgs: Mapping[str, frozenset[str]]

    def user_of(self, authorization: str | None) -> str | None:
        """Return the user a header names, None without a header; 401 for a token not known."""
        if authorization is None:
            return None
        user = self.tokens.get(authorization.removeprefix("Bearer ").strip())
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def is_member(self, user: str | None, namespace: str) -> bool:
        """Say whether a user may read and write everything in a namespace."""
        if user is None:
            return False
        if namespace in self.orgs:
            return user in self.orgs[namespace]
        return user == namespace or namespace not in self.tokens.values()

    def orgs_of(self, user: str) -> list[str]:
        """Return the named organisations of a user."""
        return sorted(name for name, members in self.orgs.items() if user in members)

    def can_see(self, user: str | None, repo: Repo) -> bool:
        """Say whether a repo exists for this user."""
        return not repo.private or self.is_member(user, repo.namespace) or user in repo.granted

    def check_visible(self, user: str | None, repo: Repo | None) -> Repo:
        """Return the repo, or deny that it exists: 401 to the unknown, 404 to a user."""
        if repo is not None and self.can_see(user, repo):
            return repo
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def check_content(self, user: str | None, repo: Repo) -> None:
        """Refuse the files of a gated repo to those without access."""
        if not repo.gated or self.is_member(user, repo.namespace) or user in repo.granted:
            return
        start = f"Access to model {repo.repo_id} is restricted"
        if user is None:
            text = f"{start}. You must have access to it and be authenticated to access it."
            raise HubError(401, text, "GatedRepo")
        raise HubError(403, f"{start} and you are not in the authorized list.", "GatedRepo")

    def check_write(self, user: str | None, namespace: str) -> None:
        """Refuse a change: 401 to the unknown, 403 to a user without the right."""
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if not self.is_member(user, namespace):
            raise HubError(403, f"You don't have write access to the namespace {namespace}")


class Signer:
    """Makes and checks addresses that are valid for one method and for a limited time."""

    def __init__(self, lifetime_s: float) -> None:
        self._key = secrets.token_bytes(32)
        self._lifetime_s = lifetime_s

    def sign(self, method: str, endpoint: str, path: str, **parameters: str) -> str:
        """Return the signed address of an unquoted path."""
        query = {**parameters, "Expires": f"{time.time() + self._lifetime_s:.3f}"}
        signature = self._signature(method, path, query)
        return f"{endpoint}{quote(path)}?{urlencode({**query, 'Signature': signature})}"

    def check(self, request: Request) -> None:
        """Answer 403 unless the request carries a valid signature."""
        query = {name: values[0] for name, values in request.query.items()}
        given = query.pop("Signature", "")
        method = "GET" if request.is_head else request.method
        expected = self._signature(method, "/" + "/".join(request.segments), query)
        if not hmac.compare_digest(given.encode(), expected.encode()):
            raise HubError(403, "Access denied: the signature does not match")
        if time.time() > float(query["Expires"]):
            raise HubError(403, "Access denied: the address has expired")

    def _signature(self, method: str, path: str, query: Mapping[str, str]) -> str:
        text = "\n".join([method, path, urlencode(sorted(query.items()))])
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

"""The questions that are asked of a Hub, with its errors in words and patience when it is busy.

Every answer that cannot change (a listing of a pinned commit) is asked for once. Retries are our
own because the client's sleep for as long as the server says, without a bound
(huggingface_hub 2.4, http_backoff).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # not in its __all__

from alpharl_hub.errors import SourceError
from alpharl_hub.sources.http_answers import asked_wait_s
from alpharl_hub.sources.http_reader import RangeReader, SignedAddress
from alpharl_hub.sources.http_routes import origin_of, redirect_target
from alpharl_hub.sources.patience import Patience
from alpharl_hub.trajectory import StoredFile
from alpharl_hub.version import __version__

Answer = TypeVar("Answer")

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class RepoFacts:
    """What a repo says of itself; `restricted`: private or gated."""

    restricted: bool
    main_commit: str
    main_title: str | None


@dataclass(frozen=True)
class RepoRefs:
    """Branches and tags of a repo with the commits they point to."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]

    def commit_of(self, revision: str) -> str | None:
        """Return the commit of a branch or tag, branches first."""
        return self.branches.get(revision) or self.tags.get(revision)


class HubClient:
    """One Hub, one token, one reader of byte ranges; safe to share between threads."""

    def __init__(self, token: str | None, patience: Patience) -> None:
        self.endpoint = constants.ENDPOINT
        self.token = token
        self.api = HfApi(
            endpoint=self.endpoint,
            token=token,
            library_name="alpharl-hub",
            library_version=__version__,
        )
        self.reader = RangeReader(patience)
        self._patience = patience
        self._trees: dict[tuple[str, str], Mapping[str, StoredFile]] = {}
        self._facts: dict[str, RepoFacts] = {}
        self._lock = threading.Lock()

    def ask(self, what: str, question: Callable[[], Answer]) -> Answer:
        """Put one question, again while the server is busy or the line is down.

        Raises:
            SourceError: the answer is no, or did not come.
        """
        num_failures = 0
        while True:
            self._patience.raise_if_stopped()
            try:
                return question()
            except HfHubHTTPError as error:
                if error.response.status_code not in _RETRIED:
                    raise refusal(error, what, self.has_token()) from error
                reason = f"the Hub answered {error.response.status_code}"
                wait_s = asked_wait_s(error.response.headers)
            except httpx.TransportError as error:
                reason, wait_s = f"{self.endpoint} is out of reach ({type(error).__name__})", 0.0
            except OfflineModeIsEnabled as error:
                raise SourceError(
                    f"{what}: HF_HUB_OFFLINE is set; unset it, or name local folders"
                ) from error
            num_failures += 1
            self._patience.pause(what, reason, wait_s, num_failures)

    def has_token(self) -> bool:
        """Whether requests carry a token."""
        return (self.token or get_token()) is not None

    def refs(self, repo: str) -> RepoRefs:
        """List branches and tags, in one request."""
        found = self.ask(repo, lambda: self.api.list_repo_refs(repo))
        return RepoRefs(
            {ref.name: ref.target_commit for ref in found.branches},
            {ref.name: ref.target_commit for ref in found.tags},
        )

    def facts(self, repo: str) -> RepoFacts:
        """Ask once whether a repo is private or gated, and where main stands."""
        if repo not in self._facts:
            info = self.ask(repo, lambda: self.api.model_info(repo))
            self._facts[repo] = RepoFacts(bool(info.private or info.gated), info.sha or "", None)
        return self._facts[repo]

    def commit_of(self, repo: str, revision: str) -> str:
        """Resolve any revision (also a commit or a pull request) to a full commit."""
        what = f"{repo}@{revision}"
        info = self.ask(what, lambda: self.api.model_info(repo, revision=revision))
        if not info.sha:
            raise SourceError(f"{what}: the Hub names no commit for it")
        return info.sha

    def tree(self, repo: str, commit: str) -> Mapping[str, StoredFile]:
        """List all files of a pinned commit, once."""
        key = (repo, commit)
        if key not in self._trees:
            entries = self.ask(
                f"{repo}@{commit[:12]}",
                lambda: list(self.api.list_repo_tree(repo, recursive=True, revision=commit)),
            )
            self._trees[key] = {
                entry.path: StoredFile(
                    entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None
                )
                for entry in entries
                if isinstance(entry, RepoFile)
            }
        return self._trees[key]

    def resolve(self, repo: str, path: str, commit: str) -> SignedAddress:
        """Ask where the bytes of a large file are served; counted by the Hub."""
        url = self._url(repo, path, commit)
        what = f"{repo}@{commit[:12]}/{path}"
        found = self.ask(what, lambda: self.api.get_hf_file_metadata(url=url, timeout=_TIMEOUT_S))
        location = redirect_target(url, found.location, what)
        return SignedAddress(location, self._headers_for(location))

    def plain_address(self, repo: str, path: str, commit: str) -> SignedAddress:
        """Return the Hub's own address of a file; it may redirect."""
        url = self._url(repo, path, commit)
        return SignedAddress(url, self._headers_for(url))

    def _url(self, repo: str, path: str, commit: str) -> str:
        return hf_hub_url(repo, path, revision=commit, endpoint=self.endpoint)

    def _headers_for(self, url: str) -> Mapping[str, str]:
        """Credentials for the Hub's own origin, nothing for any other."""
        token = self.token or get_token()
        if token is None or origin_of(url) != origin_of(self.endpoint):
            return {}
        return {"Authorization": f"Bearer {token}"}


def cached_file(repo: str, path: str, commit: str) -> str | None:
    """Return where the local cache holds a file of this very commit, or None."""
    found = try_to_load_from_cache(repo, path, revision=commit)
    return found if isinstance(found, str) else None


def refusal(error: HfHubHTTPError, what: str, has_token: bool) -> SourceError:
    """Put the Hub's refusal into one line: what, why, what next."""
    if isinstance(error, GatedRepoError):
        return SourceError(f"{what}: gated; ask for access on its page, then pass your token")
    if isinstance(error, RepositoryNotFoundError):
        hint = (
            "your token may not see it" if has_token else "private repos need --token or HF_TOKEN"
        )
        return SourceError(f"{what}: no such repo; check the name ({hint})")
    if isinstance(error, RevisionNotFoundError):
        return SourceError(f"{what}: no such revision, or it was deleted; list the run again")
    status = error.response.status_code
    if status == 401:
        return SourceError(
            f"{what}: the Hub does not know this token; make a new one (hf auth login)"
        )
    words = " ".join((error.server_message or str(error)).split())[:200]
    return SourceError(f"{what}: refused by the Hub (status {status}): {words}")

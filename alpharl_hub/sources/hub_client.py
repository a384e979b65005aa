"""The questions that are asked of a Hub, with its errors in words and patience when it is busy.

Refs, and every answer that cannot change (a listing of a pinned commit), are asked for once.
Listings are read page by page here, because the client's own way waits for as long as the server
says, or without any timeout (huggingface_hub 2.4, list_repo_tree and list_repo_refs).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # not in its __all__

from alpharl_hub.errors import SourceError, did_you_mean
from alpharl_hub.sources.blotting import without_secrets
from alpharl_hub.sources.http_addresses import AddressRules
from alpharl_hub.sources.http_answers import asked_wait_s
from alpharl_hub.sources.http_reader import RangeReader, SignedAddress
from alpharl_hub.sources.http_routes import check_address, host_of, origin_of
from alpharl_hub.sources.hub_session import (
    HubSession,
    Page,
    PageBudget,
    asking_headers,
    no_hub,
    untrusted_certificate,
)
from alpharl_hub.sources.patience import Patience
from alpharl_hub.trajectory import StoredFile

Answer = TypeVar("Answer")
Rows = list[dict[str, Any]]

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
# The most that the Hub gives, and what its own JavaScript client asks for at most.
_COMMITS_PER_PAGE = 1000


@dataclass(frozen=True)
class RepoFacts:
    """What a repo says of itself; `restricted`: private or gated."""

    restricted: bool


@dataclass(frozen=True)
class RepoRefs:
    """Branches and tags of a repo with the commits they point to."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]

    def commit_of(self, revision: str) -> str | None:
        """Return the commit of a branch or tag, branches first."""
        return self.branches.get(revision) or self.tags.get(revision)


@dataclass(frozen=True)
class RepoCommit:
    """One commit of a repo's history."""

    sha: str
    title: str


@dataclass(frozen=True)
class ListedRepo:
    """A repo in the list of its owner's, with the commit of its main and the names of its files.

    Either is None where the Hub does not tell it.
    """

    repo: str
    commit: str | None
    filenames: tuple[str, ...] | None


class HubClient:
    """One Hub, one token, one reader of byte ranges; safe to share between threads.

    `endpoint` is the environment's unless given. `allowed_hosts` are company mirrors: names that
    the Hub may send us on to though they lie in a private network, or serve without encryption.
    `timeout_s` is how long a server may be silent.
    """

    def __init__(
        self,
        token: str | None,
        patience: Patience,
        *,
        endpoint: str | None = None,
        allowed_hosts: Collection[str] = (),
        timeout_s: float = 30.0,
    ) -> None:
        self.endpoint = endpoint or constants.ENDPOINT
        check_address(self.endpoint, "HF_ENDPOINT")
        self.token = token
        self._rules = AddressRules(self.endpoint, frozenset(allowed_hosts))
        self._timeout_s = timeout_s
        self._looks_for_token = True
        self._connect(patience)
        self._refs: dict[str, RepoRefs] = {}
        self._trees: dict[tuple[str, str], Mapping[str, StoredFile]] = {}
        self._git_oids: dict[tuple[str, str], Mapping[str, str]] = {}
        self._facts: dict[str, RepoFacts] = {}
        self._histories: dict[tuple[str, str], tuple[RepoCommit, ...]] = {}

    def _connect(self, patience: Patience) -> None:
        self.reader = RangeReader(
            patience,
            rules=self._rules,
            connect_timeout_s=min(10.0, self._timeout_s),
            read_timeout_s=self._timeout_s,
        )
        self._session = HubSession(self._rules, self._question_headers, self._timeout_s)
        self._patience = patience

    def close(self) -> None:
        """Close all connections; nothing can be asked afterwards."""
        self._session.close()
        self.reader.close()

    def __getstate__(self) -> dict[str, object]:
        """Give another process the same Hub, token and answers.

        The token of that machine may be for another Hub: it takes this one's, or none.
        """
        state = {**self.__dict__, "token": self._found_token(), "_looks_for_token": False}
        return {key: state[key] for key in state.keys() - {"_session", "reader", "_patience"}}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        self.__dict__.update(state)
        self._connect(Patience())

    def _found_token(self) -> str | None:
        return self.token or (get_token() if self._looks_for_token else None)

    def _question_headers(self, url: str) -> Mapping[str, str]:
        """Say who asks; the token goes to the Hub's own origin only."""
        token = self._found_token() if origin_of(url) == origin_of(self.endpoint) else None
        return asking_headers(token)

    def ask(self, what: str, question: Callable[[], Answer], *, was_there: bool = False) -> Answer:
        """Put one question, again while the server is busy or the line is down.

        `was_there`: the Hub has listed before what is asked for.

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
                    raise refusal(error, what, self.has_token(), was_there) from error
                reason = f"the Hub answered {error.response.status_code}"
                wait_s = asked_wait_s(error.response.headers)
                cause: Exception = error
            except httpx.LocalProtocolError as error:
                # Its own words may hold the token.
                raise SourceError(
                    f"{what}: the token cannot be sent, it has characters that no token has; "
                    "copy it again"
                ) from error
            except httpx.RequestError as error:
                self._require_trust(what, error)
                reason, wait_s = f"{self._host} is out of reach ({type(error).__name__})", 0.0
                cause = error
            except OfflineModeIsEnabled as error:
                raise SourceError(
                    f"{what}: HF_HUB_OFFLINE is set; unset it, or name local folders"
                ) from error
            num_failures += 1
            self._patience.pause(what, reason, wait_s, num_failures, cause)

    @property
    def _host(self) -> str:
        """The endpoint as messages show it: what else stands in it may be a login."""
        return host_of(self.endpoint)

    def _require_trust(self, what: str, error: Exception) -> None:
        why = untrusted_certificate(error)
        if why is not None:
            raise SourceError(
                f"{what}: the certificate of {self._host} is not trusted ({why}); name the right "
                "CA bundle in SSL_CERT_FILE"
            ) from error

    def has_token(self) -> bool:
        """Whether requests carry a token."""
        return self._found_token() is not None

    def refs(self, repo: str) -> RepoRefs:
        """List branches and tags once, in one request."""
        if repo not in self._refs:
            found = self._object(repo, f"{repo}/refs")
            branches, tags = (
                {str(row.get("name")): str(row.get("targetCommit")) for row in rows}
                for rows in (self._rows(found.get(kind), repo) for kind in ("branches", "tags"))
            )
            self._refs[repo] = RepoRefs(branches, tags)
        return self._refs[repo]

    def facts(self, repo: str) -> RepoFacts:
        """Ask once whether a repo is private or gated."""
        if repo not in self._facts:
            info = self._object(repo, repo)
            self._facts[repo] = RepoFacts(bool(info.get("private") or info.get("gated")))
        return self._facts[repo]

    def commit_of(self, repo: str, revision: str) -> str:
        """Resolve any revision (also a commit or a pull request) to a full commit."""
        what = f"{repo}@{revision}"
        try:
            answer = self._object(what, f"{repo}/revision/{quote(revision, safe='')}")
        except SourceError as error:
            if not isinstance(error.__cause__, RevisionNotFoundError) or repo not in self._refs:
                raise
            refs = self._refs[repo]
            near = did_you_mean(revision, [*refs.branches, *refs.tags])
            raise SourceError(f"{error}{near}") from error.__cause__
        sha = answer.get("sha")
        if not sha:
            raise SourceError(f"{what}: the Hub names no commit for it; name another revision")
        return str(sha)

    def tree(self, repo: str, commit: str, label: str | None = None) -> Mapping[str, StoredFile]:
        """List all files of a pinned commit, once; `label` is what messages call it."""
        key = (repo, commit)
        if key not in self._trees:
            what = label or f"{repo}@{commit[:12]}"
            query = "recursive=true&expand=false"
            found: dict[str, StoredFile] = {}
            git_oids: dict[str, str] = {}
            for rows in self._pages(what, f"/{repo}/tree/{commit}", query):
                found.update(self._stored_files(what, rows))
                git_oids.update(_git_oids(rows))
            self._git_oids[key], self._trees[key] = git_oids, found
        return self._trees[key]

    def git_oid(self, repo: str, commit: str, path: str) -> str | None:
        """Return git's name for the content of a small file of a listed commit; None for others."""
        return self._git_oids[repo, commit].get(path)

    def last_title(self, repo: str, commit: str) -> str:
        """Return the title of a commit, in one request."""
        rows = next(self._pages(f"{repo}@{commit[:12]}", f"/{repo}/commits/{commit}", ""))
        return str(rows[0].get("title") or "") if rows else ""

    def history(self, repo: str, commit: str) -> tuple[RepoCommit, ...]:
        """List a pinned commit and all before it, the newest first, once."""
        key = (repo, commit)
        if key not in self._histories:
            what, query = f"{repo}@{commit[:12]}", f"limit={_COMMITS_PER_PAGE}"
            pages = self._pages(what, f"/{repo}/commits/{commit}", query)
            self._histories[key] = tuple(
                RepoCommit(str(row.get("id")), str(row.get("title") or ""))
                for rows in pages
                for row in rows
            )
        return self._histories[key]

    def models_of(self, author: str, search: str) -> tuple[ListedRepo, ...]:
        """List an author's repos whose names hold a text, and remember which are restricted."""
        asked = [("author", author), ("search", search)] if search else [("author", author)]
        fields = [("expand", name) for name in ("sha", "private", "gated", "siblings")]
        found = []
        for rows in self._pages(author, "", urlencode([*asked, *fields])):
            for row in rows:
                repo, sha, files = str(row.get("id")), row.get("sha"), row.get("siblings")
                names = None if files is None else tuple(str(f.get("rfilename")) for f in files)
                found.append(ListedRepo(repo, str(sha) if sha else None, names))
                if "private" in row and "gated" in row:
                    self._facts[repo] = RepoFacts(bool(row["private"] or row["gated"]))
        return tuple(found)

    def _pages(self, what: str, path: str, query: str) -> Iterator[Rows]:
        url = f"{self.endpoint}/api/models{path}"
        budget = PageBudget(what)
        budget.turn(query, 0)
        while True:
            page = self._get(what, f"{url}?{query}" if query else url)
            yield self._rows(page.document, what)
            if page.following is None:
                return
            # Of the link only the query counts: a mirror may send on to the Hub that it mirrors,
            # and the token is for this one.
            query = urlsplit(page.following).query
            budget.turn(query, page.num_bytes)

    def _get(self, what: str, url: str) -> Page:
        return self.ask(what, lambda: self._session.get(url, what))

    def _object(self, what: str, path: str) -> Mapping[str, Any]:
        found = self._get(what, f"{self.endpoint}/api/models/{path}").document
        if not isinstance(found, dict):
            raise no_hub(self.endpoint, what)
        return found

    def _rows(self, value: object, what: str) -> Rows:
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise no_hub(self.endpoint, what)
        return value

    def _stored_files(self, what: str, rows: Rows) -> Iterator[tuple[str, StoredFile]]:
        for row in rows:
            if row.get("type") == "file":
                path, num_bytes, lfs = str(row.get("path")), row.get("size") or 0, row.get("lfs")
                if type(num_bytes) is not int or num_bytes < 0:
                    raise no_hub(self.endpoint, what)
                sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
                yield path, StoredFile(path, num_bytes, sha256)

    def resolve(self, repo: str, path: str, commit: str, what: str) -> SignedAddress:
        """Ask where the bytes of a large file are served; counted by the Hub."""
        url = self._url(repo, path, commit)
        location = self.ask(what, lambda: self._session.locate(url, what), was_there=True)
        return SignedAddress(location, self._headers_for(location))

    def plain_address(self, repo: str, path: str, commit: str) -> SignedAddress:
        """Return the Hub's own address of a file; it may redirect."""
        url = self._url(repo, path, commit)
        return SignedAddress(url, self._headers_for(url))

    def _url(self, repo: str, path: str, commit: str) -> str:
        return hf_hub_url(repo, path, revision=commit, endpoint=self.endpoint)

    def _headers_for(self, url: str) -> Mapping[str, str]:
        """Credentials for the Hub's own origin, nothing for any other."""
        token = self._found_token()
        if token is None or origin_of(url) != origin_of(self.endpoint):
            return {}
        return {"Authorization": f"Bearer {token}"}


def _git_oids(rows: Rows) -> Iterator[tuple[str, str]]:
    for row in rows:
        if row.get("type") == "file" and not isinstance(row.get("lfs"), dict):
            yield str(row.get("path")), str(row.get("oid"))


def cached_file(repo: str, path: str, commit: str) -> str | None:
    """Return where the local cache holds a file of this very commit, or None."""
    found = try_to_load_from_cache(repo, path, revision=commit)
    return found if isinstance(found, str) else None


def refusal(
    error: HfHubHTTPError, what: str, has_token: bool, was_there: bool = False
) -> SourceError:
    """Put the Hub's refusal into one line: what, why, what next."""
    if isinstance(error, GatedRepoError):
        return SourceError(f"{what}: gated; ask for access on its page, then pass your token")
    if isinstance(error, RepositoryNotFoundError):
        hint = (
            "your token may not see it" if has_token else "private repos need --token or HF_TOKEN"
        )
        if was_there:
            return SourceError(f"{what}: the repo was made private or deleted meanwhile; {hint}")
        return SourceError(f"{what}: no such repo; check the name ({hint})")
    if isinstance(error, RevisionNotFoundError):
        if was_there:
            return SourceError(
                f"{what}: the commit is gone, by a force push or with its repo; start a new run "
                "on what is there now"
            )
        return SourceError(
            f"{what}: no such revision, or it was deleted; check its branches and tags"
        )
    status = error.response.status_code
    if status == 401:
        return SourceError(
            f"{what}: the Hub does not know this token; make a new one (hf auth login)"
        )
    words = " ".join(without_secrets(error.server_message or str(error)).split())[:200]
    return SourceError(f"{what}: refused by the Hub (status {status}): {words}")

"""What a push asks of the Hub, with its refusals in words and patience while it is busy.

Weights go up one file at a time, before the commit that will name them. A Hub that speaks Xet gets
paths; any other gets open files, because the client takes those by LFS and fails on paths
(huggingface_hub 1.31 to 2.4, `_upload_files`).
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    constants,
    hf_hub_url,
)
from huggingface_hub.errors import HfUriError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.lfs import UploadInfo
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # not in its __all__
    get_session,
    httpx,
)

from alpharl_hub.card.make import EVAL_FILE
from alpharl_hub.errors import PushError, SourceError
from alpharl_hub.push.guarded_client import guarded_client
from alpharl_hub.push.questions import TROUBLE, HubAccess, Questions
from alpharl_hub.push.refusals import RefusedError
from alpharl_hub.sources.http_routes import trusted_certificates
from alpharl_hub.sources.patience import Patience

__all__ = [
    "HubAccess",
    "HubTarget",
    "PullRequest",
    "RemoteFile",
    "RepoState",
    "UploadedShard",
    "uploaded_operation",
]

_PULL_REQUESTS = "refs/pr/"
_PULL_REQUEST = re.compile(r"refs/pr/([1-9][0-9]{0,8})")
_SCORES_FOLDER = EVAL_FILE.partition("/")[0]
_MAY_HAVE_ARRIVED = frozenset({400, 404, 409, 422})
"""How a store refuses to join parts twice, when the answer to the first time was lost; and how a
Hub says that a file has not arrived. Asked where to send it, the Hub tells which it is."""


@dataclass(frozen=True)
class RepoState:
    """A repo that exists: who may see it, and its branches with their commits."""

    private: bool
    branches: Mapping[str, str]


@dataclass(frozen=True)
class RemoteFile:
    """A file, or folder, at the root of a commit; `sha256` of an LFS file, `git_oid` of others."""

    path: str
    is_folder: bool
    num_bytes: int
    sha256: str | None
    git_oid: str


@dataclass(frozen=True)
class UploadedShard:
    """One weight file that the Hub has, though no commit names it yet; a journal may keep it."""

    filename: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class PullRequest:
    """A pull request: its number, the commit that it holds, and its page."""

    number: int
    commit: str
    url: str

    @property
    def ref(self) -> str:
        """The revision under which the Hub shows it."""
        return f"{_PULL_REQUESTS}{self.number}"


class HubTarget:
    """One repo that is pushed to, with one token.

    With `create_pr` what is sent is for a pull request: reading the repo is enough of a right.
    """

    def __init__(
        self, repo: str, access: HubAccess, patience: Patience, *, create_pr: bool = False
    ) -> None:
        self.repo = repo
        self._create_pr = create_pr
        self._hub = Questions(repo, access, patience)
        self.endpoint = self._hub.endpoint
        self._api = self._hub.api
        self._uses_xet = False

    def check_token(self) -> None:
        """Make sure that there is a token, that the Hub knows it, and that it may write.

        Raises:
            PushError: it is missing, unknown or read-only, or a CA bundle is missing.
        """
        try:
            trusted_certificates(self.repo)
        except SourceError as error:
            raise PushError(str(error)) from None
        if not self._hub.has_token:
            raise PushError(f"{self.repo}: pushing needs a token; pass --token or set HF_TOKEN")
        answer = self._hub.ask(self._api.whoami)
        access = (answer.get("auth") or {}).get("accessToken") or {}
        if access.get("role") == "read":
            raise PushError(
                f"{self.repo}: this token may only read; make one with write access "
                f"({self.endpoint}/settings/tokens)"
            )

    def look(self) -> RepoState | None:
        """Return the repo as it is, None where there is none; refuse one that we may not write to.

        Raises:
            PushError: the Hub refuses.
        """
        try:
            info = self._hub.ask(lambda: self._api.model_info(self.repo))
        except RefusedError as error:
            if error.status == 404:
                return None
            raise
        if not self._create_pr:
            self._check_write()
        refs = self._hub.ask(lambda: self._api.list_repo_refs(self.repo))
        branches = {ref.name: ref.target_commit for ref in refs.branches}
        return RepoState(bool(info.private), branches)

    def _check_write(self) -> None:
        try:
            self._hub.ask(lambda: self._api.auth_check(self.repo, write=True))
        except RefusedError as error:
            # A Hub without this question answers 404; what it does not allow fails later.
            if error.status != 404:
                raise

    def create(self, private: bool | None) -> None:
        """Make the repo; None leaves its visibility to the Hub's own rule."""
        # The client reads the new repo's address, and stumbles over one of another name of the Hub.
        with suppress(HfUriError):
            self._hub.ask(lambda: self._api.create_repo(self.repo, private=private, exist_ok=True))

    def create_branch(self, branch: str, start: str) -> None:
        """Make a branch at a commit, unless it is there."""
        self._hub.ask(
            lambda: self._api.create_branch(self.repo, branch=branch, revision=start, exist_ok=True)
        )

    def head(self, branch: str) -> str | None:
        """Return the commit of a branch, None where there is no such branch."""
        refs = self._hub.ask(lambda: self._api.list_repo_refs(self.repo))
        commits = {ref.name: ref.target_commit for ref in refs.branches}
        return commits.get(branch)

    def pull_requests(self) -> list[PullRequest]:
        """List the pull requests, open or not, the newest first; none where the Hub has none."""
        # The client's own answer to this fails on a Hub that knows of no pull requests.
        url = f"{self.endpoint}/api/models/{self.repo}/refs?include_prs=1"
        rows = self._hub.ask(lambda: self._hub.get(url)).json().get("pullRequests")
        found = []
        for row in rows if isinstance(rows, list) else ():
            match = isinstance(row, dict) and _PULL_REQUEST.fullmatch(str(row.get("ref")))
            if match:
                number = int(match[1])
                found.append(PullRequest(number, str(row.get("targetCommit")), self._page(number)))
        return sorted(found, key=lambda request: -request.number)

    def _page(self, number: int) -> str:
        return f"{self.endpoint}/{self.repo}/discussions/{number}"

    def is_open(self, request: PullRequest) -> bool:
        """Whether a pull request waits for an answer; also where the Hub cannot tell."""
        url = f"{self.endpoint}/api/models/{self.repo}/discussions/{request.number}"
        try:
            found = self._hub.ask(lambda: self._hub.get(url)).json()
        except RefusedError as error:
            if error.status != 404:
                raise
            return True
        return found.get("status") not in ("closed", "merged")

    def files(self, commit: str) -> Mapping[str, RemoteFile]:
        """List the root of a commit, and its folder of scores."""
        entries = self._listed(commit, None)
        if any(e.path == _SCORES_FOLDER and isinstance(e, RepoFolder) for e in entries):
            entries += self._listed(commit, _SCORES_FOLDER)
        found = (
            RemoteFile(e.path, False, e.size, e.lfs.sha256 if e.lfs else None, e.blob_id)
            if isinstance(e, RepoFile)
            else RemoteFile(e.path, True, 0, None, "")
            for e in entries
        )
        return {file.path: file for file in found}

    def _listed(self, commit: str, folder: str | None) -> list[RepoFile | RepoFolder]:
        return self._hub.ask(
            lambda: list(self._api.list_repo_tree(self.repo, folder, revision=commit)),
            retries_itself=True,
        )

    def read(self, path: str, commit: str) -> bytes:
        """Return the content of a small file."""
        url = hf_hub_url(self.repo, path, revision=commit, endpoint=self.endpoint)
        response = self._hub.ask(lambda: self._hub.get(url))
        return bytes(response.content)

    def choose_transfer(self, branch: str) -> bool:
        """Find out whether uploads may go by Xet, and return the answer.

        Not to a store that does not answer: hf_xet would try it for minutes without a word.

        Raises:
            PushError: the Hub refuses, or names a store in a private network.
        """
        if constants.HF_HUB_DISABLE_XET or importlib.util.find_spec("hf_xet") is None:
            return False
        path = f"xet-write-token/{quote(branch, safe='')}"
        path += "?create_pr=1" if self._create_pr else ""
        url = f"{self.endpoint}/api/models/{self.repo}/{path}"
        try:
            store = self._hub.ask(lambda: self._hub.get(url)).headers.get("X-Xet-Cas-Url")
        except RefusedError as error:
            if error.status == 404:
                return False
            raise
        self._uses_xet = store is not None and self._answers(store)
        return self._uses_xet

    def _answers(self, url: str) -> bool:
        """Whether there is a server, whatever it says; the token is not sent."""
        try:
            with guarded_client(self._hub.guard):
                get_session().get(url)
        except (httpx.TransportError, httpx.InvalidURL):
            return False
        return True

    def upload(self, path: Path, branch: str, there: Collection[str] = ()) -> UploadedShard:
        """Send one weight file, hashed first, unless its SHA-256 is one that is `there`.

        Raises:
            PushError: the Hub refuses, or the line stays down.
        """
        upload_once = partial(self._upload_once, path, branch, there)
        try:
            operation = self._hub.ask(upload_once, retries_itself=True)
        except RefusedError as error:
            if error.status not in _MAY_HAVE_ARRIVED:
                raise
            operation = self._hub.ask(upload_once, retries_itself=True)
        info = operation.upload_info
        return UploadedShard(path.name, info.sha256.hex(), info.size)

    def _upload_once(self, path: Path, branch: str, there: Collection[str]) -> CommitOperationAdd:
        with path.open("rb") as file:
            operation = CommitOperationAdd(path.name, path if self._uses_xet else file)
            if operation.upload_info.sha256.hex() in there:
                return operation
            # Otherwise the Hub decides by its .gitattributes, and a file that it wants in git
            # itself could not be sent before the commit.
            operation._upload_mode = "lfs"
            try:
                self._api.preupload_lfs_files(
                    self.repo, [operation], revision=branch, create_pr=self._create_pr
                )
            except (RuntimeError, ValueError) as error:
                found = self._hub.unwrapped(error)
                raise found from (error if isinstance(found, PushError) else None)
        return operation

    def commit(
        self,
        branch: str,
        parent: str,
        message: str,
        shards: Sequence[UploadedShard],
        others: Mapping[str, bytes | Path],
        deleted: Sequence[str],
    ) -> str:
        """Make the one commit, tried once, and return its sha.

        Raises:
            UnsureError: it may have been made all the same, or the branch has moved.
            PushError: the Hub refuses it.
        """
        return str(self._commit(branch, parent, message, "", shards, others, deleted).oid)

    def open_pull_request(
        self,
        parent: str,
        title: str,
        description: str,
        shards: Sequence[UploadedShard],
        others: Mapping[str, bytes | Path],
        deleted: Sequence[str],
    ) -> PullRequest:
        """Ask for a commit on top of `parent`, which is on main; tried once.

        Raises:
            As `commit`.
        """
        info = self._commit("main", parent, title, description, shards, others, deleted)
        if info.pr_num is None:
            raise PushError(f"{self.repo}: the Hub opened no pull request; look at {info.oid}")
        return PullRequest(info.pr_num, str(info.oid), self._page(info.pr_num))

    def _commit(
        self,
        branch: str,
        parent: str,
        message: str,
        description: str,
        shards: Sequence[UploadedShard],
        others: Mapping[str, bytes | Path],
        deleted: Sequence[str],
    ) -> CommitInfo:
        with ExitStack() as stack, guarded_client(self._hub.guard, retries_itself=True):
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationDelete(name, is_folder=False) for name in deleted),
                *(uploaded_operation(shard) for shard in shards),
                *(self._addition(name, data, stack) for name, data in others.items()),
            ]
            try:
                return self._api.create_commit(
                    self.repo,
                    operations,
                    commit_message=message,
                    commit_description=description,
                    revision=branch,
                    parent_commit=parent,
                    create_pr=self._create_pr,
                )
            except (*TROUBLE, HfUriError) as error:
                raise self._hub.unsure(error) from error
            except (RuntimeError, ValueError) as error:
                raise self._hub.unsure(self._hub.unwrapped(error)) from error
            except KeyError as error:
                # A Hub without pull requests names none in its answer.
                raise PushError(
                    f"{self.repo}: the Hub's answer to the commit has no {error}; look there "
                    "whether it was made"
                ) from error

    def _addition(self, name: str, data: bytes | Path, stack: ExitStack) -> CommitOperationAdd:
        if self._uses_xet:
            return CommitOperationAdd(name, data)
        file = io.BytesIO(data) if isinstance(data, bytes) else stack.enter_context(data.open("rb"))
        return CommitOperationAdd(name, file)

    def pause(self, error: Exception, num_failures: int) -> None:
        """Wait before another attempt, if there is sense in one.

        Raises:
            PushError: there is none, or it failed too often.
        """
        self._hub.pause(error, num_failures)


def uploaded_operation(shard: UploadedShard) -> CommitOperationAdd:
    """Return the part of a commit that names a file which was uploaded earlier, without its bytes.

    The client has no public way to say so; a test holds its two private fields.
    """
    operation = CommitOperationAdd(shard.filename, b"")
    operation.upload_info = UploadInfo(
        size=shard.num_bytes, sample=b"", sha256=bytes.fromhex(shard.sha256)
    )
    operation._upload_mode = "lfs"
    operation._is_uploaded = True
    return operation

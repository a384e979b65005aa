"""What a push asks of the Hub, with its refusals in words and patience while it is busy.

Weights go up one file at a time, before the commit that will name them. A Hub that speaks Xet gets
paths; any other gets open files, because the client takes those by LFS and fails on paths
(huggingface_hub 1.31 to 2.4, `_upload_files`).
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import HfHubHTTPError, HfUriError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.lfs import UploadInfo
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # not in its __all__
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    httpx,
)

from alpharl_hub.card.make import EVAL_FILE
from alpharl_hub.errors import PushError, SourceError
from alpharl_hub.push.guarded_client import RETRIED, Guard, guarded_client
from alpharl_hub.push.refusals import RefusedError, UnsureError, one_line, status_of
from alpharl_hub.sources.http_addresses import AddressRules
from alpharl_hub.sources.http_answers import asked_wait_s
from alpharl_hub.sources.http_routes import host_of, origin_of, trusted_certificates
from alpharl_hub.sources.hub_session import untrusted_certificate
from alpharl_hub.sources.patience import Patience
from alpharl_hub.version import __version__

Answer = TypeVar("Answer")

_TROUBLE = (HfHubHTTPError, httpx.TransportError, ConnectionError)
"""What the client raises for an answer or the lack of one; a cut line is no HfHubHTTPError."""

LIBRARY_NAME = "alpharl-hub"
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
class HubAccess:
    """Which Hub, with which token; None leaves it to the environment.

    `allowed_hosts` as for reading (`HubClient`). `timeout_s` is how long the Hub may be silent:
    some stores look at all of a large file before they answer.
    """

    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    allowed_hosts: frozenset[str] = frozenset()
    timeout_s: float = 300.0


class HubTarget:
    """One repo that is pushed to, with one token."""

    def __init__(self, repo: str, access: HubAccess, patience: Patience) -> None:
        self.repo = repo
        self.endpoint = access.endpoint or constants.ENDPOINT
        self._token = access.token or get_token()
        self._patience = patience
        rules = AddressRules(self.endpoint, access.allowed_hosts)
        self._guard = Guard(repo, rules, patience, access.timeout_s)
        self._uses_xet = False
        self._api = HfApi(
            endpoint=self.endpoint,
            token=self._token,
            library_name=LIBRARY_NAME,
            library_version=__version__,
        )

    def check_token(self) -> None:
        """Make sure that there is a token, that the Hub knows it, and that it may write.

        Raises:
            PushError: it is missing, unknown or read-only, or a CA bundle is missing.
        """
        try:
            trusted_certificates(self.repo)
        except SourceError as error:
            raise PushError(str(error)) from None
        if self._token is None:
            raise PushError(f"{self.repo}: pushing needs a token; pass --token or set HF_TOKEN")
        answer = self._ask(self._api.whoami)
        access = (answer.get("auth") or {}).get("accessToken") or {}
        if access.get("role") == "read":
            raise PushError(
                f"{self.repo}: this token may only read; make one with write access "
                f"({self.endpoint}/settings/tokens)"
            )

    def look(self) -> RepoState | None:
        """Return the repo as it is, None where there is none; refuse one that is not ours to write.

        Raises:
            PushError: the Hub refuses.
        """
        try:
            info = self._ask(lambda: self._api.model_info(self.repo))
        except RefusedError as error:
            if error.status == 404:
                return None
            raise
        self._check_write()
        refs = self._ask(lambda: self._api.list_repo_refs(self.repo))
        branches = {ref.name: ref.target_commit for ref in refs.branches}
        return RepoState(bool(info.private), branches)

    def _check_write(self) -> None:
        try:
            self._ask(lambda: self._api.auth_check(self.repo, write=True))
        except RefusedError as error:
            # A Hub without this question answers 404; what it does not allow fails later.
            if error.status != 404:
                raise

    def create(self, private: bool | None) -> None:
        """Make the repo; None leaves its visibility to the Hub's own rule."""
        # The client reads the new repo's address, and stumbles over one of another name of the Hub.
        with suppress(HfUriError):
            self._ask(lambda: self._api.create_repo(self.repo, private=private, exist_ok=True))

    def create_branch(self, branch: str, start: str) -> None:
        """Make a branch at a commit, unless it is there."""
        self._ask(
            lambda: self._api.create_branch(self.repo, branch=branch, revision=start, exist_ok=True)
        )

    def head(self, branch: str) -> str | None:
        """Return the commit of a branch, None where there is no such branch."""
        refs = self._ask(lambda: self._api.list_repo_refs(self.repo))
        commits = {ref.name: ref.target_commit for ref in refs.branches}
        return commits.get(branch)

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
        return self._ask(
            lambda: list(self._api.list_repo_tree(self.repo, folder, revision=commit)),
            retries_itself=True,
        )

    def read(self, path: str, commit: str) -> bytes:
        """Return the content of a small file."""
        url = hf_hub_url(self.repo, path, revision=commit, endpoint=self.endpoint)
        response = self._ask(lambda: self._get(url))
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
        url = f"{self.endpoint}/api/models/{self.repo}/{path}"
        try:
            store = self._ask(lambda: self._get(url)).headers.get("X-Xet-Cas-Url")
        except RefusedError as error:
            if error.status == 404:
                return False
            raise
        self._uses_xet = store is not None and self._answers(store)
        return self._uses_xet

    def _answers(self, url: str) -> bool:
        """Whether there is a server, whatever it says; the token is not sent."""
        try:
            with guarded_client(self._guard):
                get_session().get(url)
        except (httpx.TransportError, httpx.InvalidURL):
            return False
        return True

    def upload(self, path: Path, branch: str) -> UploadedShard:
        """Send one weight file, hashed first; returns when the Hub has it.

        Raises:
            PushError: the Hub refuses, or the line stays down.
        """
        try:
            operation = self._ask(lambda: self._upload_once(path, branch), retries_itself=True)
        except RefusedError as error:
            if error.status not in _MAY_HAVE_ARRIVED:
                raise
            operation = self._ask(lambda: self._upload_once(path, branch), retries_itself=True)
        info = operation.upload_info
        return UploadedShard(path.name, info.sha256.hex(), info.size)

    def _upload_once(self, path: Path, branch: str) -> CommitOperationAdd:
        with path.open("rb") as file:
            operation = CommitOperationAdd(path.name, path if self._uses_xet else file)
            # Otherwise the Hub decides by its .gitattributes, and a file that it wants in git
            # itself could not be sent before the commit.
            operation._upload_mode = "lfs"
            try:
                self._api.preupload_lfs_files(self.repo, [operation], revision=branch)
            except (RuntimeError, ValueError) as error:
                found = self._unwrapped(error)
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
        with ExitStack() as stack, guarded_client(self._guard, retries_itself=True):
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationDelete(name, is_folder=False) for name in deleted),
                *(uploaded_operation(shard) for shard in shards),
                *(self._addition(name, data, stack) for name, data in others.items()),
            ]
            try:
                info = self._api.create_commit(
                    self.repo,
                    operations,
                    commit_message=message,
                    revision=branch,
                    parent_commit=parent,
                )
            except (*_TROUBLE, HfUriError) as error:
                raise self._unsure(error) from error
            except (RuntimeError, ValueError) as error:
                raise self._unsure(self._unwrapped(error)) from error
        return str(info.oid)

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
        if not self._is_passing(error):
            raise self._refusal(error) from error
        status = status_of(error)
        reason = one_line(error) if status is None else f"the Hub answers {status}"
        headers = {} if status is None else dict(error.response.headers)  # type: ignore[attr-defined]
        try:
            self._patience.pause(self.repo, reason, asked_wait_s(headers), num_failures)
        except SourceError as given_up:
            raise PushError(str(given_up)) from error

    def _get(self, url: str) -> httpx.Response:
        headers = build_hf_headers(
            token=self._token, library_name=LIBRARY_NAME, library_version=__version__
        )
        response = get_session().get(url, headers=headers)
        hf_raise_for_status(response)
        return response

    def _ask(self, question: Callable[[], Answer], *, retries_itself: bool = False) -> Answer:
        """Put a question, again while the Hub is busy or the line is down."""
        num_failures = 0
        while True:
            try:
                with guarded_client(self._guard, retries_itself=retries_itself):
                    return question()
            except _TROUBLE as error:
                num_failures += 1
                self.pause(error, num_failures)

    def _is_passing(self, error: Exception) -> bool:
        """Whether asking again has sense."""
        status = status_of(error)
        if status is None:
            is_final = isinstance(error, OfflineModeIsEnabled) or untrusted_certificate(error)
            return not is_final
        url = str(error.response.url)  # type: ignore[attr-defined]
        if status == 403 and origin_of(url) != origin_of(self.endpoint):
            return True  # a signed address that has expired: every attempt gets a new one
        return status in RETRIED

    def _unsure(self, error: Exception) -> Exception:
        if isinstance(error, PushError):
            return error
        refusal = self._refusal(error)
        is_unsure = self._is_passing(error) or status_of(error) == 412
        return UnsureError(str(refusal), error) if is_unsure else refusal

    def _unwrapped(self, error: Exception) -> Exception:
        """Return what the client's own words for a failed upload or a refused card are about."""
        cause = error.__cause__
        if isinstance(cause, (*_TROUBLE, PushError)):
            return cause
        return PushError(f"{self.repo}: the upload failed: {one_line(cause or error)}")

    def _refusal(self, error: Exception) -> RefusedError:
        """Put the Hub's answer into one line: what, why, what next."""
        status, words, host = status_of(error), one_line(error), host_of(self.endpoint)
        if isinstance(error, OfflineModeIsEnabled):
            text = "HF_HUB_OFFLINE is set; unset it to push"
        elif (why := untrusted_certificate(error)) is not None:
            text = f"the certificate of {host} is not trusted ({why}); name its CA in SSL_CERT_FILE"
        elif status is None:
            text = f"no answer from {host} ({words}); push again, nothing is sent twice"
        elif status == 401:
            text = "the Hub does not know this token; make a new one (hf auth login)"
        elif status == 412:
            text = "somebody else committed to the branch meanwhile; look at it, then push again"
        elif status == 403:
            text = f"not allowed (403: {words}); use a token that may write, or mend what it says"
        else:
            text = f"the Hub refuses (status {status}): {words}"
        return RefusedError(f"{self.repo}: {text}", status)


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

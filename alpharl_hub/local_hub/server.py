"""The Hub as one object: starts it, fills it without HTTP, and tells what was asked of it."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

from alpharl_hub.local_hub.auth import Accounts, Signer
from alpharl_hub.local_hub.faults import Fault, FaultBook
from alpharl_hub.local_hub.request_log import RequestLog, RequestRecord
from alpharl_hub.local_hub.state import HubState
from alpharl_hub.local_hub.storage import Change, Commit, Repo, Storage
from alpharl_hub.local_hub.transport import OriginServer, Pacer

SEED_AUTHOR = "local-hub"


class LocalHub:
    """A Hub that serves from when it is made until it is closed.

    `root` is a folder that keeps everything, one Hub at a time. `tokens` maps tokens to users, and
    `orgs` organisations to members; a namespace that is neither a user nor in `orgs` is open to
    every user. `multipart_chunk_bytes` makes larger uploads go in parts of that size.
    `bytes_per_s` limits all downloads together. Port 0 takes a free one. With a `certificate` (PEM,
    its key included, for localhost) large files are served over TLS, and with `all_over_tls`
    everything is.
    """

    def __init__(
        self,
        root: Path,
        tokens: Mapping[str, str] | None = None,
        *,
        orgs: Mapping[str, Collection[str]] | None = None,
        signed_url_lifetime_s: float = 3600.0,
        page_size: int = 1000,
        multipart_chunk_bytes: int | None = None,
        bytes_per_s: float | None = None,
        port: int = 0,
        certificate: Path | None = None,
        all_over_tls: bool = False,
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        members = {name: frozenset(users) for name, users in (orgs or {}).items()}
        self._stopping = Event()
        pacer = Pacer(bytes_per_s, self._stopping)
        api_certificate = certificate if all_over_tls else None
        api = OriginServer("api", port, pacer, self._stopping, api_certificate)
        storage = OriginServer("storage", 0, pacer, self._stopping, certificate)
        scheme = "http" if certificate is None else "https"
        api_scheme = "http" if api_certificate is None else "https"
        self._servers = (api, storage)
        self._state = HubState(
            endpoint=f"{api_scheme}://127.0.0.1:{api.server_port}",
            # Another host name makes another origin, to which clients send no credentials.
            storage_endpoint=f"{scheme}://localhost:{storage.server_port}",
            storage=Storage(root),
            accounts=Accounts(dict(tokens or {}), members),
            signer=Signer(signed_url_lifetime_s),
            log=RequestLog(),
            faults=FaultBook(),
            page_size=page_size,
            multipart_chunk_bytes=multipart_chunk_bytes,
        )
        for server in self._servers:
            server.hub = self._state
            Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> "LocalHub":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and both servers."""
        self._stopping.set()
        for server in self._servers:
            server.close()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT should be."""
        return self._state.endpoint

    @property
    def storage_endpoint(self) -> str:
        """The second origin, where large files lie."""
        return self._state.storage_endpoint

    @property
    def log(self) -> tuple[RequestRecord, ...]:
        """Every request answered since the last `clear_log`."""
        return self._state.log.records()

    def clear_log(self) -> None:
        """Forget the requests answered so far."""
        self._state.log.clear()

    def add_fault(self, fault: Fault) -> None:
        """Ask for a fault in answers to come."""
        self._state.faults.add(fault)

    def clear_faults(self) -> None:
        """Drop the faults that have not happened yet."""
        self._state.faults.clear()

    def add_commit(
        self,
        repo_id: str,
        *,
        files: Mapping[str, bytes | Path | None],
        revision: str = "main",
        title: str = "Add files",
        message: str = "",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Put files (None deletes one) on a branch without HTTP, and return the commit's sha.

        The repo is made if it is missing, only then with `private` and `gated`; a missing branch
        starts from main. A path is taken in by hard link where possible: do not write to it later.
        """
        storage = self._state.storage
        blobs = storage.blobs
        entries = {
            name: None if content is None else blobs.add(name, content)
            for name, content in files.items()
        }
        with storage.lock:
            repo = storage.repo(repo_id) or storage.create(
                repo_id, private=private, gated=gated, author=SEED_AUTHOR
            )
            parent = storage.find(repo, revision) or storage.find(repo, "main")
            change = Change(entries, title, message, SEED_AUTHOR)
            return storage.commit(repo_id, f"refs/heads/{revision}", parent, change).sha

    def delete_branch(self, repo_id: str, branch: str) -> None:
        """Delete a branch; its commits stay."""
        self._state.storage.set_ref(repo_id, f"refs/heads/{branch}", None)

    def forget_commit(self, repo_id: str, sha: str) -> None:
        """Lose a commit for good, as when a force push has left it to nobody; and all its refs."""
        self._state.storage.forget(repo_id, sha)

    def create_tag(self, repo_id: str, tag: str, revision: str = "main") -> None:
        """Make a tag, or move it."""
        sha = self._commit(repo_id, revision).sha
        self._state.storage.set_ref(repo_id, f"refs/tags/{tag}", sha)

    def set_private(self, repo_id: str, private: bool) -> None:
        """Hide a repo, or show it."""
        with self._state.storage.lock:
            self._state.storage.save(replace(self._repo(repo_id), private=private))

    def set_gated(self, repo_id: str, gated: bool) -> None:
        """Gate a repo, or open it."""
        with self._state.storage.lock:
            self._state.storage.save(replace(self._repo(repo_id), gated=gated))

    def grant_access(self, repo_id: str, user: str) -> None:
        """Let a user read a private or gated repo."""
        with self._state.storage.lock:
            repo = self._repo(repo_id)
            self._state.storage.save(replace(repo, granted=(*repo.granted, user)))

    def refs(self, repo_id: str) -> dict[str, str]:
        """Return every ref by its full name, with its commit."""
        return dict(self._repo(repo_id).refs)

    def read_file(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """Return a file as it is stored; KeyError where there is none."""
        entry = self._commit(repo_id, revision).files[path]
        return self._state.storage.blobs.path_of(entry.sha256).read_bytes()

    def _repo(self, repo_id: str) -> Repo:
        repo = self._state.storage.repo(repo_id)
        if repo is None:
            raise KeyError(repo_id)
        return repo

    def _commit(self, repo_id: str, revision: str) -> Commit:
        commit = self._state.storage.find(self._repo(repo_id), revision)
        if commit is None:
            raise KeyError(f"{repo_id}@{revision}")
        return commit

"""Everything that the endpoints of one Hub share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from alpharl_hub.local_hub.auth import Accounts, Signer
from alpharl_hub.local_hub.faults import FaultBook
from alpharl_hub.local_hub.messages import HubError, Request, Response
from alpharl_hub.local_hub.request_log import RequestLog
from alpharl_hub.local_hub.storage import Commit, Repo, Storage

# The parts of an address that its pattern names.
Names = Mapping[str, str]


@dataclass(frozen=True)
class HubState:
    """One Hub: what it keeps, whom it knows, where it is reached and how it behaves."""

    endpoint: str
    storage_endpoint: str
    storage: Storage
    accounts: Accounts
    signer: Signer
    log: RequestLog
    faults: FaultBook
    page_size: int
    multipart_chunk_bytes: int | None

    def visible_repo(self, request: Request, names: Names) -> Repo:
        """Return the repo that an address names, if the user may know of it."""
        repo = self.storage.repo(f"{names['namespace']}/{names['name']}")
        return self.accounts.check_visible(request.user, repo)

    def writable_repo(self, request: Request, names: Names) -> Repo:
        """Return the repo that an address names, if the user may change it."""
        repo = self.visible_repo(request, names)
        self.accounts.check_write(request.user, repo.namespace)
        return repo

    def commit_at(self, repo: Repo, revision: str) -> Commit:
        """Return the commit that a revision names, or answer 404."""
        commit = self.storage.find(repo, revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit


Endpoint = Callable[[HubState, Request, Names], Response]

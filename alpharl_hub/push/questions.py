"""Questions to a Hub that is pushed to: put again while it is busy, refusals put into words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # not in its __all__
    get_session,
    hf_raise_for_status,
    httpx,
)

from alpharl_hub.errors import PushError, SourceError
from alpharl_hub.push.guarded_client import RETRIED, Guard, guarded_client
from alpharl_hub.push.refusals import RefusedError, UnsureError, one_line, refusal, status_of
from alpharl_hub.sources.http_addresses import AddressRules
from alpharl_hub.sources.http_answers import asked_wait_s
from alpharl_hub.sources.http_routes import origin_of
from alpharl_hub.sources.hub_session import asking_headers, untrusted_certificate
from alpharl_hub.sources.patience import Patience
from alpharl_hub.version import __version__

Answer = TypeVar("Answer")

TROUBLE = (HfHubHTTPError, httpx.TransportError, ConnectionError)
"""What the client raises for an answer or the lack of one; a cut line is no HfHubHTTPError."""

LIBRARY_NAME = "alpharl-hub"


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


class Questions:
    """The Hub's client for one repo and one token."""

    def __init__(self, repo: str, access: HubAccess, patience: Patience) -> None:
        self.endpoint = access.endpoint or constants.ENDPOINT
        self._repo = repo
        self._token = access.token or get_token()
        self._patience = patience
        rules = AddressRules(self.endpoint, access.allowed_hosts)
        self.guard = Guard(repo, rules, patience, access.timeout_s)
        self.api = HfApi(
            endpoint=self.endpoint,
            token=self._token,
            library_name=LIBRARY_NAME,
            library_version=__version__,
        )

    @property
    def has_token(self) -> bool:
        """Whether there is a token, given or found."""
        return self._token is not None

    @property
    def _secrets(self) -> tuple[str, ...]:
        return () if self._token is None else (self._token,)

    def _refusal(self, error: Exception) -> RefusedError:
        return refusal(error, self._repo, self.endpoint, self._secrets)

    def pause(self, error: Exception, num_failures: int) -> None:
        """Wait before another attempt, if there is sense in one.

        Raises:
            PushError: there is none, or it failed too often.
        """
        if not self._is_passing(error):
            raise self._refusal(error) from error
        status = status_of(error)
        reason = one_line(error, self._secrets) if status is None else f"the Hub answers {status}"
        headers = {} if status is None else dict(error.response.headers)  # type: ignore[attr-defined]
        try:
            self._patience.pause(self._repo, reason, asked_wait_s(headers), num_failures)
        except SourceError as given_up:
            raise PushError(str(given_up)) from error

    def get(self, url: str) -> httpx.Response:
        """Fetch one address, once."""
        response = get_session().get(url, headers=asking_headers(self._token))
        hf_raise_for_status(response)
        return response

    def ask(self, question: Callable[[], Answer], *, retries_itself: bool = False) -> Answer:
        """Put a question, again while the Hub is busy or the line is down."""
        num_failures = 0
        while True:
            try:
                with guarded_client(self.guard, retries_itself=retries_itself):
                    return question()
            except TROUBLE as error:
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

    def unsure(self, error: Exception) -> Exception:
        """Return what a failed commit is to be raised as: `UnsureError` where it may be there."""
        if isinstance(error, PushError):
            return error
        refused = self._refusal(error)
        is_unsure = self._is_passing(error) or status_of(error) == 412
        return UnsureError(str(refused), error) if is_unsure else refused

    def unwrapped(self, error: Exception) -> Exception:
        """Return what the client's own words for a failed upload or a refused card are about."""
        cause = error.__cause__
        if isinstance(cause, (*TROUBLE, PushError)):
            return cause
        return PushError(
            f"{self._repo}: the upload failed: {one_line(cause or error, self._secrets)}"
        )

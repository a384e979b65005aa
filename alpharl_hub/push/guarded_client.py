"""The Hub's client while something is pushed: watched, with a timeout, and silent.

Left to itself it has no timeout, sleeps for as long as a server says, follows wherever it is sent,
and writes signed addresses into its log (huggingface_hub 2.4, http_backoff). Its session is the
process's own, so what is changed here is put back afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import constants
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # not in its __all__
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    httpx,
)

from alpharl_hub.errors import PushError, SourceError
from alpharl_hub.sources.http_addresses import AddressRules
from alpharl_hub.sources.http_answers import asked_wait_s
from alpharl_hub.sources.http_routes import host_of
from alpharl_hub.sources.patience import Patience

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""Answers after which it makes sense to ask again."""

_FIRST_WAIT_S = 1.0  # what http_backoff begins with where the server names no time


@dataclass(frozen=True)
class Guard:
    """What is watched while `repo` is pushed to, and how long a server may be silent."""

    repo: str
    rules: AddressRules
    patience: Patience
    timeout_s: float

    def check_request(self, request: httpx.Request) -> None:
        """Refuse an address that the Hub must not send us to; ends a push that was stopped.

        The timeout is set here because some of the client's calls ask for none themselves (paginate
        in huggingface_hub 2.4); https://www.python-httpx.org/advanced/extensions/ has the name.
        """
        request.extensions["timeout"] = httpx.Timeout(self.timeout_s).as_dict()
        self.patience.raise_if_stopped()
        try:
            self.rules.check(str(request.url), self.repo)
        except SourceError as error:
            raise PushError(str(error)) from None

    def refuse_long_wait(self, response: httpx.Response) -> None:
        """End a push whose server asks for a longer wait than is made here."""
        wait_s = asked_wait_s(response.headers) if self._is_busy(response) else 0.0
        try:
            self.patience.check_wait(self.repo, _reason(response), wait_s)
        except SourceError as error:
            raise PushError(str(error)) from None

    def tell_wait(self, response: httpx.Response) -> None:
        """Tell of a wait that the client is about to make."""
        if self._is_busy(response):
            wait_s = max(asked_wait_s(response.headers), _FIRST_WAIT_S)
            self.patience.tell(wait_s, f"{self.repo}: {_reason(response)}")

    def _is_busy(self, response: httpx.Response) -> bool:
        """Whether the client may ask again by itself, which it does not for a commit."""
        is_commit = f"/api/models/{self.repo}/commit/" in response.url.path
        return response.status_code in RETRIED and not is_commit


def _reason(response: httpx.Response) -> str:
    return f"{host_of(str(response.url))} answered {response.status_code}"


@contextmanager
def guarded_client(guard: Guard, *, retries_itself: bool = False) -> Iterator[None]:
    """Watch what the client asks and is answered; `retries_itself`: its own waits are told.

    A session that the client replaces, as it does when a connection is refused, goes unwatched
    until the question is put again.
    """
    session = get_session()
    hooks = session.event_hooks
    session.event_hooks = {
        "request": [*hooks["request"], guard.check_request],
        "response": [
            *hooks["response"],
            guard.refuse_long_wait,
            *([guard.tell_wait] if retries_itself else []),
        ],
    }
    try:
        with _silence():
            yield
    finally:
        session.event_hooks = hooks


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the client from drawing bars, and from remarking on files and addresses."""
    logger = logging.getLogger("huggingface_hub")
    level, shows_bars = logger.level, not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if shows_bars and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shows_bars:
            enable_progress_bars()

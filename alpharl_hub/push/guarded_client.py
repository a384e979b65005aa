"""The Hub's client while something is pushed: watched, with a timeout, and silent.

Left to itself it has no timeout, sleeps for as long as a server says, follows wherever it is sent,
reads answers of any length, follows listings without end, and writes signed addresses into its log
(huggingface_hub 2.4, http_backoff, paginate). Its session is the process's own, so what is changed
here is put back afterwards.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import constants
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # not in its __all__
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    hf_raise_for_status,
    httpx,
)

from alpharl_hub.errors import PushError, SourceError
from alpharl_hub.sources.http_addresses import AddressRules
from alpharl_hub.sources.http_answers import asked_wait_s
from alpharl_hub.sources.http_routes import ca_bundle, host_of
from alpharl_hub.sources.hub_session import PageBudget, read_answer, watch_peer
from alpharl_hub.sources.patience import Patience

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""Answers after which it makes sense to ask again."""

_CARD_CHECK = "/api/validate-yaml"
_OBJECTS = re.compile(
    r"/api/(whoami-v2|validate-yaml|repos/create)$|/info/lfs/objects/batch$"
    r"|/api/models/[^/]+/[^/]+(/refs|/(preupload|commit|discussions)/[^/]+)?$"
)
_LISTS = re.compile(r"/api/models/[^/]+/[^/]+/tree/[^/]+(/\.eval_results)?$")
"""Answers that the client takes for JSON objects and lists, whatever they are."""

_CONNECT_TIMEOUT_S = 10.0
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
        limits = httpx.Timeout(self.timeout_s, connect=min(_CONNECT_TIMEOUT_S, self.timeout_s))
        request.extensions["timeout"] = limits.as_dict()
        watch_peer(request, self.rules, self.repo, PushError)
        self.patience.raise_if_stopped()
        try:
            self.rules.check(str(request.url), self.repo)
        except SourceError as error:
            raise PushError(str(error)) from None

    def read_answer(self, response: httpx.Response) -> None:
        """Receive an answer, if it is not too long and what the client takes it for."""
        try:
            read_answer(response, self.repo)
        except SourceError as error:
            raise PushError(str(error)) from None
        path = response.url.path
        if path.endswith(_CARD_CHECK):
            # The client parses this answer before it looks at its status.
            hf_raise_for_status(response)
        kind = dict if _OBJECTS.search(path) else list if _LISTS.search(path) else None
        if response.is_success and kind is not None and not _holds(response, kind):
            host = host_of(str(response.url))
            raise PushError(
                f"{self.repo}: {host} does not answer as a Hub does; check HF_ENDPOINT and proxies"
            )

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
        """Whether the client may ask again by itself, which it never does for a commit."""
        path = response.url.path
        is_asked_once = f"/api/models/{self.repo}/commit/" in path or path.endswith(_CARD_CHECK)
        return response.status_code in RETRIED and not is_asked_once


class _Pages:
    """The pages of the listing that one question asks for, counted when they have arrived."""

    def __init__(self, repo: str) -> None:
        self._budget = PageBudget(repo)

    def count(self, response: httpx.Response) -> None:
        """Refuse a listing that has no end."""
        following = response.links.get("next", {}).get("url")
        if following is None or not response.is_success:
            return
        try:
            self._budget.turn(following, len(response.content))
        except SourceError as error:
            raise PushError(str(error)) from None


def _holds(response: httpx.Response, kind: type) -> bool:
    try:
        return isinstance(response.json(), kind)
    except (ValueError, RecursionError):
        return False


def _reason(response: httpx.Response) -> str:
    return f"{host_of(str(response.url))} answered {response.status_code}"


@contextmanager
def guarded_client(guard: Guard, *, retries_itself: bool = False) -> Iterator[None]:
    """Watch what the client asks and is answered; `retries_itself`: its own waits are told.

    A session that the client replaces, as it does when a connection is refused, goes unwatched
    until the question is put again.
    """
    with _same_certificates(), _silence(), _untold(), _watched(guard, retries_itself):
        yield


@contextmanager
def _watched(guard: Guard, retries_itself: bool) -> Iterator[None]:
    session = get_session()
    hooks = session.event_hooks
    session.event_hooks = {
        "request": [*hooks["request"], guard.check_request],
        "response": [
            *hooks["response"],
            guard.read_answer,
            _Pages(guard.repo).count,
            guard.refuse_long_wait,
            *([guard.tell_wait] if retries_itself else []),
        ],
    }
    try:
        yield
    finally:
        session.event_hooks = hooks


@contextmanager
def _same_certificates() -> Iterator[None]:
    """Name the CA bundle by the only variables in which the client looks for it.

    httpx knows SSL_CERT_FILE and SSL_CERT_DIR
    (https://www.python-httpx.org/environment_variables/), and so does what sends by Xet.
    """
    bundle = ca_bundle()
    name = "SSL_CERT_DIR" if bundle and os.path.isdir(bundle) else "SSL_CERT_FILE"
    before = os.environ.get(name)
    if bundle is None or before == bundle:
        yield
        return
    os.environ[name] = bundle
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _untold() -> Iterator[None]:
    """Have the client not tell which agent it runs under: it would ask the Hub for a list of them.

    That request is its own, without limits, in `build_hf_headers`. HF_HUB_DISABLE_TELEMETRY ends it
    (https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables), but is
    read when the client is imported, which a caller may have done long ago.
    """
    before = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before


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

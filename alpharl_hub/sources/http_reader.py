"""The one reader of byte ranges over HTTP: straight into memory, with patience and with suspicion.

Patience: a busy server, a lost connection and a cut body are tried again, going on from the byte
reached, and so is an answer to another question, which one of many servers may give. Suspicion: an
answer counts only if it is what was asked for, and credentials never leave the origin that they
were given for.

urllib3 finds the way (proxies, certificates, connections that are kept), not the Hub client's own
HTTP library, which takes three times the CPU time per byte with several connections. The bodies are
read from the answer of the standard library below it, straight into the buffer: urllib3's own
reading hands out new memory for each piece and took 0.6 s of CPU for a GB from loopback, this 0.35.
"""

from __future__ import annotations

import http.client
import io
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import urllib3
from urllib3.exceptions import HTTPError, IncompleteRead, NewConnectionError, ProxyError
from urllib3.exceptions import TimeoutError as HTTPTimeoutError

from alpharl_hub.byte_ranges import range_header
from alpharl_hub.errors import RangeReadError, SourceError
from alpharl_hub.sources.http_addresses import AddressRules, into_private_network
from alpharl_hub.sources.http_answers import (
    Misread,
    Refused,
    Wanted,
    asked_wait_s,
    check_answer,
    refusal,
    secrets_in,
)
from alpharl_hub.sources.http_routes import (
    PeerRefused,
    check_address,
    host_of,
    new_manager,
    origin_of,
    proxy_for,
    redirect_target,
)
from alpharl_hub.sources.patience import MAX_FAILURES, Patience
from alpharl_hub.version import __version__

_MAX_REDIRECTS = 5
_SKIP_BYTES = 1 << 16  # of what is dropped, at a time
_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_OWN_HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"alpharl-hub/{__version__}"}


@dataclass(frozen=True)
class SignedAddress:
    """Where the bytes of one file are served; both fields may hold secrets and are never shown."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


AddressOf = Callable[[bool], SignedAddress]
"""Gives the current address of a file; asked with True it must fetch a new one."""


@dataclass(frozen=True)
class _Trouble:
    """Why an answer is missing or incomplete, and how long the server asked to be left alone."""

    reason: str
    asked_wait_s: float = 0.0


class RangeReader:
    """Reads byte ranges; one for the whole program, shared between threads.

    `patience` says how failures are waited out. When its stop event is set, reads end with
    Cancelled: at once in a wait, after at most `read_timeout_s` in a stalled receive. `rules` say
    where redirects may lead, beside what holds for all of them.
    """

    def __init__(
        self,
        patience: Patience,
        *,
        rules: AddressRules | None = None,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 30.0,
    ) -> None:
        self._patience = patience
        self._rules = rules
        self._timeout = urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s)
        self._managers: dict[str | None, urllib3.PoolManager] = {}
        self._managers_lock = threading.Lock()
        self._renewal_lock = threading.Lock()

    def close(self) -> None:
        """Close the idle connections."""
        with self._managers_lock:
            for manager in self._managers.values():
                manager.clear()

    def read_into(
        self,
        address: AddressOf,
        start: int,
        buffer: memoryview,
        *,
        file_num_bytes: int,
        what: str,
    ) -> None:
        """Fill `buffer` with the bytes of a file from `start` on.

        Args:
            address: asked for a new address once for every expiry, however many threads read.
            file_num_bytes: size of the whole file; an answer of another file size is refused.
            what: how messages name the file.

        Raises:
            RangeReadError: the server sent something else than these bytes, five times in a row.
            SourceError: it refused, or failed five times without sending a byte in between, or
                asks to wait more than ten minutes.
            Cancelled: the stop event was set.
        """
        view = buffer.cast("B")
        stop = start + len(view)
        if not 0 <= start <= stop <= file_num_bytes:
            raise ValueError(f"bytes {start} to {stop} lie outside of {file_num_bytes}")
        num_read = num_failures = 0
        current, is_renewed = address(False), False
        while num_read < len(view):
            self._patience.raise_if_stopped()
            wanted = Wanted(start + num_read, stop, file_num_bytes, what)
            try:
                num_got, trouble = self._receive(current, wanted, view[num_read:])
            except Refused as refused:
                if is_renewed:
                    raise SourceError(str(refused)) from None
                current, is_renewed = self._renew(address, current), True
                continue
            except Misread as misread:
                num_failures += 1
                if num_failures >= MAX_FAILURES:
                    reason = f"{misread.reason}, {num_failures} times in a row"
                    raise RangeReadError(f"{what}: {reason}; {misread.advice}") from None
                self._patience.pause(what, misread.reason, 0.0, num_failures)
                current = self._renew(address, current)
                continue
            num_read += num_got
            if num_got:
                num_failures, is_renewed = 0, False
            if trouble is not None and num_read < len(view):
                num_failures += 1
                self._patience.pause(what, trouble.reason, trouble.asked_wait_s, num_failures)

    def _renew(self, address: AddressOf, refused: SignedAddress) -> SignedAddress:
        """A newer address; when many threads meet one expiry, the first fetches it for all."""
        with self._renewal_lock:
            current = address(False)
            return address(True) if current == refused else current

    def _receive(
        self, address: SignedAddress, wanted: Wanted, view: memoryview
    ) -> tuple[int, _Trouble | None]:
        """One attempt: how many bytes came, and what went wrong if not all of them did."""
        check_address(address.url, wanted.what)
        try:
            response, url = self._open(address, wanted)
        except PeerRefused as refused:
            raise into_private_network(refused.url, wanted.what) from None
        except HTTPError as error:
            return 0, _trouble_of(error, address.url, wanted.what)
        try:
            if response.status in (408, 429) or response.status >= 500:
                reason = f"{host_of(url)} answered {response.status}"
                return 0, _Trouble(reason, asked_wait_s(response.headers))
            if response.status in (200, 206):
                num_skipped = check_answer(response, url, wanted)
                return self._fill(view, response, url, wanted.what, num_skipped)
            secrets = secrets_in(address.url, address.headers) + secrets_in(url, {})
            raise refusal(response, url, wanted, secrets)
        finally:
            response.close()  # gives nothing away: a body read to its end is back in the pool

    def _open(self, address: SignedAddress, wanted: Wanted) -> tuple[urllib3.BaseHTTPResponse, str]:
        """The answer after redirects, its body still unread, and the URL that gave it."""
        url = address.url
        own_headers = {**_OWN_HEADERS, "Range": range_header(wanted.start, wanted.stop)}
        headers = urllib3.HTTPHeaderDict(address.headers)
        headers.update(own_headers)
        for _ in range(1 + _MAX_REDIRECTS):
            response = self._manager_for(url, wanted.what).urlopen(
                "GET",
                url,
                headers=headers,
                redirect=False,
                retries=False,
                timeout=self._timeout,
                preload_content=False,
                decode_content=False,
            )
            location = response.headers.get("Location")
            if response.status not in _REDIRECT_STATUSES or location is None:
                return response, url
            response.close()
            target = self._follow(url, location, wanted.what)
            if origin_of(target) != origin_of(url):
                headers = urllib3.HTTPHeaderDict(own_headers)
            url = target
        raise SourceError(
            f"{wanted.what}: {host_of(url)} redirects more than {_MAX_REDIRECTS} times; "
            "check the endpoint"
        )

    def _follow(self, url: str, location: str, what: str) -> str:
        if self._rules is None:
            return redirect_target(url, location, what)
        return self._rules.follow(url, location, what)

    def _fill(
        self,
        view: memoryview,
        response: urllib3.BaseHTTPResponse,
        url: str,
        what: str,
        num_skipped: int,
    ) -> tuple[int, _Trouble | None]:
        body = _body_of(response)
        scratch = memoryview(bytearray(min(num_skipped, _SKIP_BYTES)))
        num_got = -num_skipped
        # What came with the headers waits in a buffer; asked for more, it would receive as well,
        # and lose both when that fails.
        most_bytes = io.DEFAULT_BUFFER_SIZE
        try:
            while num_got < len(view):
                self._patience.raise_if_stopped()
                part = view[num_got:] if num_got >= 0 else scratch[:-num_got]
                count = _receive(body, part[:most_bytes])
                if not count:
                    return max(num_got, 0), _Trouble(f"{host_of(url)}: the answer was cut short")
                num_got += count
                most_bytes = max(len(view), _SKIP_BYTES)
            is_longer = "Content-Length" not in response.headers and bool(body.read(1))
        except (HTTPError, http.client.HTTPException, OSError) as error:
            return max(num_got, 0), _trouble_of(error, url, what)
        if is_longer:
            raise Misread(f"{host_of(url)} sent too many bytes")
        if body.isclosed():
            response.release_conn()
        return num_got, None

    def _manager_for(self, url: str, what: str) -> urllib3.PoolManager:
        """The pool of connections, direct or through the proxy that the environment names."""
        proxy = proxy_for(url)
        with self._managers_lock:
            if proxy not in self._managers:
                allows_peer = None if self._rules is None else self._rules.allows_peer
                self._managers[proxy] = new_manager(proxy, what, allows_peer)
            return self._managers[proxy]


def _body_of(response: urllib3.BaseHTTPResponse) -> http.client.HTTPResponse:
    """Return the standard library's answer, which urllib3 wraps and has no public name for."""
    body = getattr(response, "_fp", None)
    assert isinstance(body, http.client.HTTPResponse), "urllib3 2 wraps http.client"
    return body


def _receive(body: http.client.HTTPResponse, view: memoryview) -> int:
    """Receive once at most, so that it is known what came before a connection broke or stalled."""
    if body.chunked or body.length is None or body.isclosed():
        return body.readinto(view)
    count = body.fp.readinto1(view[: body.length])
    body.length -= count
    if body.length == 0:
        body.read()  # nothing is left: it lets go of the connection
    return count


def _trouble_of(
    error: HTTPError | http.client.HTTPException | OSError, url: str, what: str
) -> _Trouble:
    """What went wrong on the line, in a few words; raises SourceError for what will not pass."""
    cause = _root_cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise SourceError(
            f"{what}: the certificate of {host_of(url)} is not trusted "
            f"({cause.verify_message}); name the right CA bundle in SSL_CERT_FILE"
        ) from None
    is_timeout = isinstance(error, (HTTPTimeoutError, TimeoutError))
    if is_timeout and not isinstance(error, NewConnectionError):
        reason = "no answer in time"
    elif isinstance(cause, (IncompleteRead, http.client.IncompleteRead)):
        reason = "the answer was cut short"
    elif isinstance(cause, http.client.RemoteDisconnected):
        reason = "connection closed without an answer"
    else:
        reason = getattr(cause, "strerror", None) or type(cause).__name__
    through = "the proxy to " if isinstance(error, ProxyError) else ""
    return _Trouble(f"{through}{host_of(url)}: {reason}")


def _root_cause(error: BaseException) -> BaseException:
    for inner in (*error.args, error.__cause__):
        if isinstance(inner, BaseException):
            return _root_cause(inner)
    return error

"""Requests to a Hub's API, with limits to time and length, and redirects that are looked at first.

Not the Hub client's own session: it has no timeout, follows wherever it is sent, and is closed
under the requests of other threads when a connection fails (huggingface_hub 2.4, http_backoff).
"""

from __future__ import annotations

import json
import platform
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import __version__ as client_version
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # not in its __all__
    hf_raise_for_status,
    httpx,
)

from alpharl_hub.errors import SourceError
from alpharl_hub.sources.blotting import without_secrets
from alpharl_hub.sources.http_addresses import AddressRules, into_private_network
from alpharl_hub.sources.http_answers import secrets_in
from alpharl_hub.sources.http_routes import host_of, origin_of, proxy_for, trusted_certificates
from alpharl_hub.strict_json import read_int
from alpharl_hub.version import __version__

_MAX_REDIRECTS = 5

MAX_ANSWER_BYTES = 64 << 20
"""The longest answer that is read; a page of a thousand repos with their files has 12 MB."""

_MAX_REFUSAL_BYTES = 1 << 20  # what is longer is no explanation

_MAX_PAGES = 1000  # of a thousand entries each, as the Hub gives them
_MAX_LISTING_BYTES = 256 << 20

HeadersFor = Callable[[str], Mapping[str, str]]
"""Gives the headers for an address: credentials for the Hub's own origin only."""


def asking_headers(token: str | None) -> dict[str, str]:
    """Say who asks.

    Not the client's `build_hf_headers`: for its "User-Agent" that fetches a list of agents from
    {ENDPOINT}/api/agent-harnesses, of any length and from wherever it is redirected to
    (huggingface_hub 1.31 to 2.4, `_fetch_registry`).
    """
    programs = {
        "alpharl-hub": __version__,
        "hf_hub": client_version,
        "python": platform.python_version(),
    }
    headers = {"User-Agent": "; ".join(f"{name}/{found}" for name, found in programs.items())}
    return headers if token is None else {**headers, "Authorization": f"Bearer {token}"}


@dataclass(frozen=True)
class Page:
    """A JSON document, where the next one of a listing is, and how long it was."""

    document: object
    following: str | None
    num_bytes: int


class HubSession:
    """Asks one Hub, in one question after the other; safe to share between threads."""

    def __init__(self, rules: AddressRules, headers_for: HeadersFor, timeout_s: float) -> None:
        self._rules = rules
        self._headers_for = headers_for
        certificates = trusted_certificates("HF_ENDPOINT")
        self._client = httpx.Client(timeout=timeout_s, verify=certificates)

    def close(self) -> None:
        """Close the idle connections; nothing can be asked afterwards."""
        self._client.close()

    def get(self, url: str, what: str) -> Page:
        """Return the document that is answered with status 2xx, after redirects.

        Raises:
            SourceError: it is no JSON, or too long.
            The client's own errors for answers of another status and for none.
        """
        response = self._request("GET", url, what, within_origin=False)
        try:
            document = json.loads(response.content, parse_int=read_int)
        except (ValueError, RecursionError) as error:
            raise no_hub(url, what) from error
        following = response.links.get("next", {}).get("url")
        return Page(document, following, len(response.content))

    def locate(self, url: str, what: str) -> str:
        """Return where the bytes of an address are served: where the Hub itself sends us on to.

        Raises:
            As `get`.
        """
        response = self._request("HEAD", url, what, within_origin=True)
        location = response.headers.get("Location")
        where = str(response.request.url)
        return where if location is None else self._rules.follow(where, location, what)

    def _request(self, method: str, url: str, what: str, within_origin: bool) -> httpx.Response:
        for _ in range(1 + _MAX_REDIRECTS):
            if constants.is_offline_mode():
                raise OfflineModeIsEnabled(what)
            headers = {**self._headers_for(url)}
            if method == "HEAD":
                headers["Accept-Encoding"] = "identity"  # as the bytes will be asked for
            response = self._send(self._client.build_request(method, url, headers=headers), what)
            location = response.headers.get("Location")
            if not response.is_redirect or location is None:
                hf_raise_for_status(response)
                return response
            target = self._rules.follow(url, location, what)
            if within_origin and origin_of(target) != origin_of(url):
                return response
            url = target
        raise SourceError(
            f"{what}: {host_of(url)} redirects more than {_MAX_REDIRECTS} times; check HF_ENDPOINT"
        )

    def _send(self, request: httpx.Request, what: str) -> httpx.Response:
        watch_peer(request, self._rules, what)
        response = self._client.send(request, stream=True)
        try:
            read_answer(response, what)
        finally:
            response.close()
        return response


def watch_peer(
    request: httpx.Request,
    rules: AddressRules,
    what: str,
    refusal: Callable[[str], Exception] = SourceError,
) -> None:
    """Have a connection that is made for a request looked at before it is asked over it.

    One that leads where a server must not send us ends with `refusal` and one line.
    https://www.python-httpx.org/advanced/extensions/#trace tells of the events.
    """
    url = str(request.url)
    if proxy_for(url) is not None:
        return

    def look(event: str, told: Mapping[str, Any]) -> None:
        if event != "connection.connect_tcp.complete":
            return
        stream = told["return_value"]
        if not rules.allows_peer(url, stream.get_extra_info("server_addr")[0]):
            stream.close()
            raise refusal(str(into_private_network(url, what)))

    request.extensions["trace"] = look


def read_answer(response: httpx.Response, what: str) -> None:
    """Receive the whole body, which the client itself would do without any limit.

    What the client will make words of holds no secret of ours afterwards, though the server may
    have echoed one: neither its errors and their tracebacks nor its log will.

    Raises:
        SourceError: it is longer than any answer should be, packed or unpacked.
    """
    parts, num_bytes = [], 0
    for part in response.iter_bytes():
        num_bytes += len(part)
        if num_bytes > MAX_ANSWER_BYTES:
            raise SourceError(
                f"{what}: {host_of(str(response.url))} answered more than "
                f"{MAX_ANSWER_BYTES >> 20} MiB to one question; check HF_ENDPOINT"
            )
        parts.append(part)
    # Where httpx keeps what it has read; there is no public way to hand it in (a test holds it).
    body = b"".join(parts)
    response._content = body
    secrets = _secrets_of(response.request)

    def blot(text: str) -> str:
        return without_secrets(text, secrets)

    # Warnings come with any answer, and go into the client's log.
    response.headers = httpx.Headers(
        [
            (name, blot(value) if response.is_error or name.lower() == "x-hf-warning" else value)
            for name, value in response.headers.multi_items()
        ]
    )
    if response.is_error:
        reason = response.extensions.get("reason_phrase", b"").decode("latin-1")
        response.extensions["reason_phrase"] = blot(reason).encode("latin-1")
        response._content = _understood(body, blot)
        response.encoding = "utf-8"


def _secrets_of(request: httpx.Request) -> list[str]:
    """What lets a request in: its credentials, or else what signs its address."""
    credentials = request.headers.get("Authorization")
    if credentials is None:
        return secrets_in(str(request.url), {})
    return secrets_in("", {"Authorization": credentials})


def _understood(body: bytes, blot: Callable[[str], str]) -> bytes:
    """Return what an error says, or nothing where the client would fail on its shape.

    It takes all JSON for an object whose "errors" are objects (huggingface_hub 2.4, `_format`).
    """
    if len(body) > _MAX_REFUSAL_BYTES:
        return b""
    try:
        document = _blotted(json.loads(body, parse_int=read_int), blot)
    except json.JSONDecodeError:
        return blot(body.decode("utf-8", errors="replace")).encode("utf-8")
    except (ValueError, RecursionError):
        return b""
    errors = (document.get("errors") or []) if isinstance(document, dict) else None
    is_known = isinstance(errors, list) and all(isinstance(error, dict) for error in errors)
    return json.dumps(document).encode("ascii") if is_known else b""


def _blotted(value: object, blot: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {blot(key): _blotted(inner, blot) for key, inner in value.items()}
    if isinstance(value, list):
        return [_blotted(inner, blot) for inner in value]
    return blot(value) if isinstance(value, str) else value


class PageBudget:
    """What one listing may cost, however many pages a server says that there are."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._seen: set[str] = set()
        self._num_bytes = 0

    def turn(self, place: str, num_bytes: int) -> None:
        """Count a page of `num_bytes` that names `place` as that of the next one.

        Raises:
            SourceError: the listing comes round to a page that it had, or has no end.
        """
        if place in self._seen:
            raise SourceError(
                f"{self._what}: the Hub's listing leads back to a page that it gave before; "
                "check HF_ENDPOINT"
            )
        self._seen.add(place)
        self._num_bytes += num_bytes
        if len(self._seen) >= _MAX_PAGES or self._num_bytes > _MAX_LISTING_BYTES:
            raise SourceError(
                f"{self._what}: the Hub's listing is longer than {_MAX_PAGES} pages or "
                f"{_MAX_LISTING_BYTES >> 20} MiB; check HF_ENDPOINT"
            )


def no_hub(url: str, what: str) -> SourceError:
    """Say that an answer is none of a Hub's."""
    return SourceError(f"{what}: {host_of(url)} does not answer as a Hub does; check HF_ENDPOINT")


def untrusted_certificate(error: BaseException) -> str | None:
    """Return why a server's certificate is not trusted, None if that is not what went wrong."""
    cause: BaseException | None = error
    seen = set()  # an error that was taken out of its wrapper and raised leads back to itself
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return None

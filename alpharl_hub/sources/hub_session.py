"""Requests to a Hub's API: with a timeout, and with redirects that are looked at before followed.

Not the Hub client's own session: it has no timeout, follows wherever it is sent, and is closed
under the requests of other threads when a connection fails (huggingface_hub 2.4, http_backoff).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping

from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # not in its __all__
    hf_raise_for_status,
    httpx,
)

from alpharl_hub.errors import SourceError
from alpharl_hub.sources.http_addresses import AddressRules
from alpharl_hub.sources.http_routes import host_of, origin_of, trusted_certificates

_MAX_REDIRECTS = 5

HeadersFor = Callable[[str], Mapping[str, str]]
"""Gives the headers for an address: credentials for the Hub's own origin only."""


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

    def get(self, url: str, what: str) -> httpx.Response:
        """Return the answer of status 2xx, after redirects.

        Raises:
            The client's own errors for other answers and for none.
        """
        return self._request("GET", url, what, within_origin=False)

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
            response = self._client.request(method, url, headers=headers)
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


def untrusted_certificate(error: BaseException) -> str | None:
    """Return why a server's certificate is not trusted, None if that is not what went wrong."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        cause = cause.__cause__ or cause.__context__
    return None

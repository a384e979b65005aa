"""Where a request goes: addresses, redirects, proxies and the certificates that are trusted."""

from __future__ import annotations

import os
import ssl
import urllib.request
from collections.abc import Callable
from urllib.parse import unquote, urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import LocationValueError
from urllib3.util import make_headers, parse_url

from alpharl_hub.errors import SourceError

_BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_POOL_SIZE = 32  # idle connections kept per host: more than there are threads that read


def check_address(url: str, what: str) -> None:
    """Raise SourceError unless `url` is an absolute http or https address."""
    try:
        parts = parse_url(url)
    except LocationValueError:
        raise SourceError(f"{what}: its address makes no sense; check the endpoint") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise SourceError(f"{what}: its address is not one of the web; check the endpoint")


def redirect_target(
    url: str, location: str, what: str, *, may_lose_tls: Callable[[str], bool] | None = None
) -> str:
    """Where a redirect leads; raises SourceError if not to http(s), or from https down to http.

    `may_lose_tls` says of an address whether it may be asked without encryption all the same.
    """
    try:
        target = urljoin(url, location)
    except ValueError:
        raise SourceError(
            f"{what}: {host_of(url)} redirects to nowhere; check the endpoint"
        ) from None
    check_address(target, what)
    loses_tls = parse_url(url).scheme == "https" and parse_url(target).scheme != "https"
    if loses_tls and not (may_lose_tls is not None and may_lose_tls(target)):
        raise SourceError(
            f"{what}: {host_of(url)} redirects to an address without encryption, which is not "
            "followed; check the endpoint"
        )
    return target


def origin_of(url: str) -> tuple[str | None, str | None, int | None]:
    """Scheme, host and port: the three within which credentials may travel."""
    parts = parse_url(url)
    return (
        parts.scheme,
        parts.host,
        parts.port or {"http": 80, "https": 443}.get(parts.scheme or ""),
    )


def host_of(url: str) -> str:
    """Host and port, which is all that messages show of an address."""
    return parse_url(url).netloc or "the server"


def proxy_for(url: str) -> str | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY give for an address."""
    if urllib.request.proxy_bypass(host_of(url)):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parse_url(url).scheme or "") or proxies.get("all")


class PeerRefused(Exception):
    """A connection has led to a number that is none for its address; nothing was asked."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url


def new_manager(
    proxy: str | None, what: str, allows_peer: Callable[[str, str], bool] | None
) -> urllib3.PoolManager:
    """Connections that go directly, or through a proxy with the login in its address.

    `allows_peer` is asked with address and number about every direct one before it is used; those
    that it does not allow end with PeerRefused.
    """
    context = trusted_certificates(what)
    if proxy is None:
        manager = urllib3.PoolManager(maxsize=_POOL_SIZE, ssl_context=context)
        if allows_peer is not None:
            manager.pool_classes_by_scheme = _watched_pools(allows_peer)
        return manager
    try:
        parts = parse_url(proxy if "://" in proxy else f"http://{proxy}")
    except LocationValueError:
        parts = parse_url("")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise SourceError(
            f"{what}: the proxy that the environment names is not http or https; "
            "set HTTP_PROXY and HTTPS_PROXY to one that is"
        )
    login = make_headers(proxy_basic_auth=unquote(parts.auth)) if parts.auth else None
    return urllib3.ProxyManager(
        f"{parts.scheme}://{parts.netloc}",
        proxy_headers=login,
        proxy_ssl_context=context,
        maxsize=_POOL_SIZE,
        ssl_context=context,
    )


def _watched_pools(
    allows_peer: Callable[[str, str], bool],
) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    def check(connection: HTTPConnection, scheme: str) -> None:
        host = f"[{connection.host}]" if ":" in connection.host else connection.host
        url, peer = f"{scheme}://{host}", connection.sock.getpeername()[0]
        if not allows_peer(url, peer):
            connection.close()
            raise PeerRefused(url)

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            check(self, "http")

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            check(self, "https")

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def ca_bundle() -> str | None:
    """File or folder of the certificates that the environment names in place of the system's.

    SSL_CERT_FILE is what Python and the Hub's client know, the others what requests and curl do.
    """
    found = (os.environ.get(name) for name in _BUNDLE_VARIABLES)
    return next((path for path in found if path), None)


def trusted_certificates(what: str) -> ssl.SSLContext:
    """The system's certificates, or those that the environment names."""
    bundle = ca_bundle()
    if bundle is None:
        return ssl.create_default_context()
    try:
        if os.path.isdir(bundle):
            return ssl.create_default_context(capath=bundle)
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:
        raise SourceError(
            f"{what}: the CA bundle {bundle} cannot be read ({error.strerror or error}); "
            f"correct {' or '.join(_BUNDLE_VARIABLES)}"
        ) from None

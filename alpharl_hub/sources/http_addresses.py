"""Which addresses an answer may lead to: never into a network that the user did not point at.

An address that a server names is asked from where this program runs, maybe behind a company's wall:
a server outside must not choose one inside (https://cwe.mitre.org/data/definitions/918.html). What
a name stands for may change after the check: the connection that is made is checked as well.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from alpharl_hub.errors import SourceError
from alpharl_hub.sources.http_routes import check_address, proxy_for, redirect_target


@dataclass(frozen=True)
class AddressRules:
    """What may be asked beside `endpoint`, the Hub that the user chose.

    `allowed_hosts` are names (without port) that the user trusts as much: a company's mirror.
    """

    endpoint: str
    allowed_hosts: frozenset[str] = frozenset()

    def follow(self, url: str, location: str, what: str) -> str:
        """Return where a redirect leads; raises SourceError if it is not to be followed."""
        target = redirect_target(url, location, what, may_lose_tls=self._is_chosen)
        self.check(target, what)
        return target

    def check(self, url: str, what: str) -> None:
        """Raise SourceError for an address that a server must not send us to."""
        check_address(url, what)
        if self._is_chosen(url):
            return
        scheme, host = _scheme_and_host(url)
        if scheme != "https" and _scheme_and_host(self.endpoint)[0] == "https":
            raise SourceError(
                f"{what}: is sent on to {host} without encryption, which is not followed; "
                f"{_allow(host)}"
            )
        if is_private(url) and not self._is_inside(url):
            raise into_private_network(url, what)

    def allows_peer(self, url: str, peer: str) -> bool:
        """Whether a connection for `url` may lead to the number that it has led to.

        To be asked of direct connections only: that of a proxy says nothing of the address.
        """
        is_global = _is_global(ipaddress.ip_address(peer))
        return is_global or self._is_chosen(url) or self._is_inside(url)

    def _is_chosen(self, url: str) -> bool:
        place = _scheme_and_host(url)
        return place == _scheme_and_host(self.endpoint) or place[1] in self.allowed_hosts

    def _is_inside(self, url: str) -> bool:
        """Whether the user chose a private network: by the endpoint, and no public proxy."""
        proxy = proxy_for(url)
        return is_private(self.endpoint) and (proxy is None or is_private(proxy))


def into_private_network(url: str, what: str) -> SourceError:
    """Say that an address is none that a server outside may choose."""
    _, host = _scheme_and_host(url)
    return SourceError(
        f"{what}: is sent on to {host}, an address of a private network, which is not followed; "
        f"{_allow(host)}"
    )


def _allow(host: str) -> str:
    return f"if that is your own mirror, say so with --allow-host {host}"


def is_private(url: str) -> bool:
    """Whether an address lies in a network that is not open to everybody, or on this machine.

    A name that a proxy will look up is not looked up here; one that is unknown here is not private.
    """
    _, host = _scheme_and_host(url)
    literal = _literal(host)
    if literal is not None:
        return not _is_global(literal)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    if proxy_for(url) is not None:
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(not _is_global(ipaddress.ip_address(entry[4][0])) for entry in found)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _literal(host: str) -> _Address | None:
    """Return the number that a host is written as, also in the ways of old (127.1, 0x7f000001)."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def _is_global(address: _Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_global and not address.is_multicast


def _scheme_and_host(url: str) -> tuple[str, str]:
    """Return the scheme, and name or number without port, brackets and the dot of the root."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        return parts.scheme.lower(), (parts.hostname or "").rstrip(".").lower()
    except ValueError:
        return "", ""

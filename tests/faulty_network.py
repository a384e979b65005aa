"""What the tests of faults share: a proxy, a server that only listens, and the Hub's own log."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

Address = tuple[str, int]
Reply = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body."""


class Proxy(ThreadingHTTPServer):
    """A proxy on loopback that writes down what it is asked; `names` are hosts that it knows."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, names: Mapping[str, Address]) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.names = names
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def place(self, host: str, port: int) -> Address:
        """Where a host really is."""
        return self.names.get(host, (host, port))

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up is part of the tests."""


class _ProxyHandler(BaseHTTPRequestHandler):
    """Carries requests in the absolute form on, and tunnels."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def log_message(self, format: str, *args: object) -> None:
        """Keeps quiet."""

    def do_GET(self) -> None:
        """Passes one request and its answer on."""
        self.server.asked.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        place = self.server.place(url.hostname or "", url.port or 80)
        target = f"{url.path}?{url.query}" if url.query else url.path
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = HTTPConnection(*place, timeout=30)
        try:
            connection.request(self.command, target, body or None, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)

    do_HEAD = do_POST = do_PUT = do_GET

    def do_CONNECT(self) -> None:
        """Opens a tunnel and moves bytes both ways until one side ends."""
        self.server.asked.append(f"CONNECT {self.path}")
        host, _, port = self.path.rpartition(":")
        with socket.create_connection(self.server.place(host, int(port))) as other:
            self.send_response_only(200)
            self.end_headers()
            back = threading.Thread(target=_pump, args=(other, self.connection), daemon=True)
            back.start()
            _pump(self.connection, other)
            back.join()
        self.close_connection = True


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@dataclass
class Listener:
    """A server that notes the headers of what it is asked."""

    url: str = ""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)


def _unknown(number: int) -> Reply:
    return 404, {}, b""


@contextmanager
def listening(reply: Callable[[int], Reply] = _unknown) -> Iterator[Listener]:
    """Serve a `Listener` on a port of its own: another origin than any Hub's.

    `reply` is asked with the number of the request, from 1 on; without it the answer is 404.
    """
    found = Listener()

    class Handler(BaseHTTPRequestHandler):
        """Notes and replies."""

        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            """Any method."""
            sent = {name.lower(): value for name, value in self.headers.items()}
            found.requests.append((f"{self.command} {self.path}", sent))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = reply(len(found.requests))
            self.send_response_only(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        do_HEAD = do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Keeps quiet."""

        def handle(self) -> None:
            """Who hangs up is part of the tests."""
            with suppress(OSError):
                super().handle()

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield found


@contextmanager
def running(server: Any) -> Iterator[Any]:
    """Run a server until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def proxied(names: Mapping[str, Address] | None = None) -> Iterator[Proxy]:
    """Run a proxy."""
    with running(Proxy(names or {})) as proxy:
        yield proxy


def rename_loopback(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have names of public machines lead to this one, but only when a connection is made.

    Asked without a port, which is for the number alone, the name has a public one.
    """
    really = socket.getaddrinfo

    def look_up(host: str, port: int | None, *args: Any, **options: Any) -> list[Any]:
        if host not in names:
            return really(host, port, *args, **options)
        number = "93.184.216.34" if port is None else "127.0.0.1"
        return really(number, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def place_of(url: str) -> Address:
    """Host and port of an address."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


def foreign_settings() -> list[str]:
    """Names of variables of this machine that lead requests elsewhere."""
    named = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
    return [n for n in os.environ if n.lower().endswith("_proxy") or n in named]


@contextmanager
def meanwhile(is_time: Callable[[], bool], action: Callable[[], object]) -> Iterator[None]:
    """Do something in the middle of the block: as soon as `is_time`; insist that it was done."""
    over, done = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            if is_time():
                action()
                done.set()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert done.is_set(), "the moment never came"

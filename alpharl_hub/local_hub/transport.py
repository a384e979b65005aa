"""Sockets: reads requests, sends answers (files straight from disk), and lets faults happen."""

import os
import socket
import ssl
import struct
import sys
import time
from contextlib import suppress
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Condition, Event, Lock
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from alpharl_hub.local_hub.faults import Fault, change_answer
from alpharl_hub.local_hub.messages import (
    CONTROL_PREFIX,
    BrokenBodyError,
    FileSpan,
    Origin,
    Request,
    RequestBody,
    Response,
)
from alpharl_hub.local_hub.request_log import RequestRecord
from alpharl_hub.local_hub.routes import answer
from alpharl_hub.local_hub.state import HubState

SEND_BYTES = 4 << 20
PACED_SEND_BYTES = 64 << 10
PACED_SEND_S = 0.002
TLS_SEND_BYTES = 256 << 10
BURST_S = 0.01
CLOSE_TIMEOUT_S = 10.0


class Pacer:
    """Lets all bodies together leave at no more than `bytes_per_s`, None for no limit.

    Who comes late may catch up with BURST_S, or a fast link would lose what every wait oversleeps.
    A piece takes no less than PACED_SEND_S of it: small ones cost the client a receive each.
    """

    def __init__(self, bytes_per_s: float | None, stopping: Event) -> None:
        self._bytes_per_s = bytes_per_s
        self._stopping = stopping
        self._lock = Lock()
        self._free_at_s = 0.0
        self.piece_bytes = SEND_BYTES
        if bytes_per_s is not None:
            smooth_bytes = max(PACED_SEND_BYTES, int(bytes_per_s * PACED_SEND_S))
            self.piece_bytes = max(1, min(smooth_bytes, int(bytes_per_s / 20)))

    def wait(self, num_bytes: int) -> None:
        """Wait for the time that these bytes take."""
        if self._bytes_per_s is None:
            return
        with self._lock:
            now_s = time.monotonic()
            start_s = max(now_s - BURST_S, self._free_at_s)
            self._free_at_s = done_s = start_s + num_bytes / self._bytes_per_s
        if done_s > now_s:
            self._stopping.wait(done_s - now_s)


class OriginServer(ThreadingHTTPServer):
    """One of the two origins; knows its open connections, so that it can end them."""

    daemon_threads = True
    # A client opens many connections at once; the usual queue of 5 makes some of them wait 1 s.
    request_queue_size = 128
    hub: HubState

    def __init__(
        self,
        origin: Origin,
        port: int,
        pacer: Pacer,
        stopping: Event,
        certificate: Path | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", port), HubHandler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # Shaking hands is left to the connection's own thread: others go on meanwhile.
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self.origin: Origin = origin
        self.pacer = pacer
        self.stopping = stopping
        self._connections: set[Any] = set()
        self._changed = Condition()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection."""
        with self._changed:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def close(self) -> None:
        """Stop listening, end every connection and wait for their threads."""
        self.shutdown()
        with self._changed:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._connections, CLOSE_TIMEOUT_S)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over clients that went away or do not trust us; show everything else."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, ssl.SSLError, BrokenBodyError)):
            super().handle_error(request, client_address)


class HubHandler(BaseHTTPRequestHandler):
    """Carries the requests of one connection."""

    protocol_version = "HTTP/1.1"
    # Headers and body are written apart; Nagle's algorithm would hold the body back for 40 ms.
    disable_nagle_algorithm = True
    server: OriginServer

    def do_GET(self) -> None:
        """Serve a request of any method."""
        request = self._read_request()
        faults = self.server.hub.faults
        early = faults.take(request)
        if early and early.kind == "slow":
            self.server.stopping.wait(early.seconds)
        if early and early.kind == "drop":
            self._drop(request)
            return
        if early and early.kind == "status":
            response = Response(early.status, early.headers, early.text.encode())
        else:
            response = answer(self.server.hub, request)
        request.body.drain()
        late = faults.take(request, response)
        self._send(request, response, late)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests are in the log that tests read."""

    def _read_request(self) -> Request:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        return Request(
            method=self.command,
            origin=self.server.origin,
            path=url.path,
            segments=tuple(unquote(part) for part in url.path.strip("/").split("/")),
            query={name: tuple(values) for name, values in query.items()},
            headers=self.headers,
            body=RequestBody(self.rfile, self.headers),
        )

    def _send(self, request: Request, response: Response, fault: Fault | None) -> None:
        sent = change_answer(response, fault) if fault else response
        num_bytes = 0 if request.is_head else sent.num_body_bytes
        is_reset = fault is not None and fault.kind == "reset"
        says_nothing = is_reset and fault is not None and fault.after_bytes == 0
        record = self._record(request, response, sent, num_bytes)
        if says_nothing:
            record = replace(record, status=0, bytes_sent=0, range=None)
        number = None
        if not request.path.startswith(CONTROL_PREFIX):
            number = self.server.hub.log.add(record)
        if not says_nothing:
            self._send_headers(sent)
            body = _BodySender(self.connection, sent, self.server.pacer)
            try:
                self._send_body(body, num_bytes, fault)
            finally:
                body.close()
                if number is not None and body.sent_bytes != num_bytes:
                    self.server.hub.log.correct(number, body.sent_bytes)
        if is_reset:
            self._reset()

    def _record(
        self, request: Request, response: Response, sent: Response, num_bytes: int
    ) -> RequestRecord:
        # A body that a fault packed or altered still stands for the span of the file.
        body = sent.body if isinstance(sent.body, FileSpan) else response.body
        is_file = isinstance(body, FileSpan) and not request.is_head
        return RequestRecord(
            method=request.method,
            origin=request.origin,
            path=request.path,
            repo=response.repo,
            file_path=response.file_path,
            revision=response.revision,
            range=(body.start, body.stop) if is_file and isinstance(body, FileSpan) else None,
            bytes_sent=num_bytes,
            bytes_received=request.body.received_bytes,
            status=sent.status,
            had_authorization="Authorization" in request.headers,
        )

    def _send_headers(self, response: Response) -> None:
        self.send_response_only(response.status)
        self.send_header("Date", formatdate(usegmt=True))
        for name, value in response.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(response.num_body_bytes))
        self.end_headers()

    def _send_body(self, body: "_BodySender", num_bytes: int, fault: Fault | None) -> None:
        if fault is None or fault.kind not in ("cut", "stall", "reset"):
            body.send_until(num_bytes)
            return
        body.send_until(min(fault.after_bytes, num_bytes))
        if fault.kind == "stall":
            self.server.stopping.wait(fault.seconds)
            body.send_until(num_bytes)
        else:
            self.close_connection = True

    def _drop(self, request: Request) -> None:
        request.body.drain()
        self.close_connection = True
        silence = Response(0, (), b"")
        self.server.hub.log.add(self._record(request, silence, silence, 0))

    def _reset(self) -> None:
        """Close at once with a TCP reset, which lingering for 0 s asks for."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


class _BodySender:
    """Sends the body of one answer in pieces, and knows how much of it has gone."""

    def __init__(self, connection: socket.socket, response: Response, pacer: Pacer) -> None:
        self._connection, self._pacer = connection, pacer
        self._file: BinaryIO
        if isinstance(response.body, FileSpan):
            self._start = response.body.start
            self._file = response.body.path.open("rb")
        else:
            self._start = 0
            self._file = BytesIO(response.body)
        self._file.seek(self._start)
        self.sent_bytes = 0

    def send_until(self, stop: int) -> None:
        """Send up to, without, byte `stop` of the body."""
        while self.sent_bytes < stop:
            count = min(self._pacer.piece_bytes, stop - self.sent_bytes)
            self._pacer.wait(count)
            try:
                self._send_piece(count)
            finally:
                # After an error, too, `sendfile` leaves the file where the sent bytes end.
                self.sent_bytes = self._file.tell() - self._start

    def _send_piece(self, count: int) -> None:
        if isinstance(self._connection, ssl.SSLSocket):
            # Its own sendfile goes by 8 KiB, half a record.
            self._connection.sendall(self._file.read(min(count, TLS_SEND_BYTES)))
        else:
            self._connection.sendfile(self._file, self._start + self.sent_bytes, count)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

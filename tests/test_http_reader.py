"""The range reader against servers that misbehave in every way that has a name."""

from __future__ import annotations

import gzip
import os
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest

from alpharl_hub.errors import RangeReadError, SourceError
from alpharl_hub.sources.http_answers import asked_wait_s
from alpharl_hub.sources.http_reader import RangeReader, SignedAddress
from alpharl_hub.sources.patience import Cancelled, Patience

DATA = bytes(range(251)) * 40
SIZE = len(DATA)
TOKEN = "hf_aVerySecretToken"
SIGNATURE = "X-Amz-Signature=0123456789abcdef&Expires=123456789%2Bx"
# Made for these tests, valid for loopback names only: openssl req -x509, with its key.
CERTIFICATE = Path(__file__).parent / "data" / "loopback.pem"

BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

Answer = Callable[["Handler"], None]


class Origin(ThreadingHTTPServer):
    """A server on loopback that answers from a script, then as it should."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, tls: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Answer] = []
        self.requests: list[tuple[str, Mapping[str, str]]] = []
        self.num_connections = 0
        self.released = threading.Event()
        self.lock = threading.Lock()
        if tls:
            self.socket = server_context().wrap_socket(self.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server_address[1]}"

    def ranges(self) -> list[str]:
        """The ranges asked for, in order."""
        return [headers["range"] for _, headers in self.requests]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    """Serves DATA by ranges, unless the script of its server says otherwise."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Origin

    def setup(self) -> None:
        """Counts connections."""
        super().setup()
        with self.server.lock:
            self.server.num_connections += 1

    def log_message(self, format: str, *args: object) -> None:
        """Keeps quiet."""

    def do_GET(self) -> None:
        """Records the request and answers it."""
        with self.server.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.requests.append((self.path, headers))
            answer = self.server.script.pop(0) if self.server.script else partial()
        answer(self)

    def do_CONNECT(self) -> None:
        """As a proxy for every TLS server: answers in its place, inside the tunnel."""
        with self.server.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.requests.append((f"CONNECT {self.path}", headers))
        self.send_response(200)
        self.end_headers()
        with server_context().wrap_socket(self.connection, server_side=True) as tunnel:
            self.rfile, self.wfile = tunnel.makefile("rb"), tunnel.makefile("wb", 0)
            self.handle_one_request()
            self.rfile.close()
            self.wfile.close()
        self.close_connection = True

    def asked(self) -> tuple[int, int]:
        """The range of the request, half-open."""
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        return int(first), int(last) + 1

    def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Status, headers and as much body as there is."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def server_context() -> ssl.SSLContext:
    """TLS with the certificate that only these tests trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def partial(shift: int = 0, total: str | None = None, **changed: str | None) -> Answer:
    """The right answer, or one whose range, total or headers (None: left out) are not."""

    def answer(handler: Handler) -> None:
        start, stop = (position + shift for position in handler.asked())
        headers: dict[str, str | None] = {
            "Content_Range": f"bytes {start}-{stop - 1}/{total or SIZE}",
            "Content_Length": str(stop - start),
            **changed,
        }
        kept = {name.replace("_", "-"): value for name, value in headers.items() if value}
        handler.send(206, kept, DATA[start:stop])
        handler.close_connection = "Content-Length" not in kept

    return answer


def cut(num_bytes: int, *, reset: bool = False) -> Answer:
    """The right headers, `num_bytes` of the body, then the end of the connection."""

    def answer(handler: Handler) -> None:
        start, stop = handler.asked()
        headers = {
            "Content-Range": f"bytes {start}-{stop - 1}/{SIZE}",
            "Content-Length": str(stop - start),
        }
        handler.send(206, headers, DATA[start : start + num_bytes])
        hang_up(handler, reset=reset)

    return answer


def hang_up(handler: Handler, *, reset: bool = False) -> None:
    """Ends the connection, properly or with a reset."""
    if reset:
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(handler.connection.detach())  # at once, before socketserver ends it properly
    handler.close_connection = True


def drop(*, reset: bool = False) -> Answer:
    """No answer at all."""
    return lambda handler: hang_up(handler, reset=reset)


def stall(num_bytes: int) -> Answer:
    """The beginning of the right answer, then silence."""

    def answer(handler: Handler) -> None:
        cut(num_bytes)(handler)
        handler.server.released.wait(20)

    return answer


def silence(handler: Handler) -> None:
    """Nothing, for longer than anybody waits."""
    handler.server.released.wait(20)
    handler.close_connection = True


def too_many(headers: Mapping[str, str]) -> Answer:
    """Status 429 with these headers only, none of the library's own."""

    def answer(handler: Handler) -> None:
        handler.send_response_only(429)
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    """A bare status with a body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.send(code, {"Content-Length": str(len(body)), **named}, body)


def whole(body: bytes = DATA, **headers: str) -> Answer:
    """Status 200 and the whole file."""
    return status(200, body, **headers)


def endless_whole(handler: Handler) -> None:
    """Status 200 and more than anybody should read; the test fails if somebody does."""
    handler.send(200, {"Content-Length": str(2**40)}, b"")
    sent = 0
    try:
        while sent < 2**26:
            sent += handler.connection.send(bytes(2**16))
    except OSError:
        return
    handler.server.script.append(status(500, b"was read to the end"))


def unmeasured_whole(handler: Handler) -> None:
    """Status 200 without a length: it could be the file, or any other page."""
    handler.send(200, {}, DATA)
    handler.close_connection = True


def cut_whole(num_bytes: int) -> Answer:
    """Status 200, and no more than the beginning of the file."""

    def answer(handler: Handler) -> None:
        handler.send(200, {"Content-Length": str(SIZE)}, DATA[:num_bytes])
        hang_up(handler)

    return answer


def chunked_too_long(handler: Handler) -> None:
    """Transfer in chunks, one byte more than the range has."""
    start, stop = handler.asked()
    headers = {
        "Content-Range": f"bytes {start}-{stop - 1}/{SIZE}",
        "Transfer-Encoding": "chunked",
    }
    body = DATA[start:stop] + b"x"
    handler.send(206, headers, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))


def redirect(to: str, code: int = 302) -> Answer:
    """Sends the client elsewhere."""
    return status(code, b"", Location=to)


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in BUNDLES:
            monkeypatch.delenv(name)


def serving(origin: Origin) -> Iterator[Origin]:
    """Runs a server until the test is over."""
    thread = threading.Thread(target=origin.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield origin
    finally:
        origin.released.set()
        origin.shutdown()
        origin.server_close()
        thread.join()


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A server."""
    yield from serving(Origin())


@pytest.fixture
def other_origin() -> Iterator[Origin]:
    """A second server, on another port and therefore another origin."""
    yield from serving(Origin())


@pytest.fixture
def tls_origin() -> Iterator[Origin]:
    """A server with TLS."""
    yield from serving(Origin(tls=True))


class Reading:
    """A reader whose waits are written down instead of waited for."""

    def __init__(self, read_timeout_s: float = 10) -> None:
        self.waits: list[float] = []
        self.reasons: list[str] = []
        patience = Patience(
            sleep=self.waits.append,
            on_wait=lambda seconds, reason: self.reasons.append(f"{seconds:g} s: {reason}"),
        )
        self.reader = RangeReader(patience, read_timeout_s=read_timeout_s)

    def bytes_of(
        self, url: str, start: int = 100, stop: int = 5000, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Reads a range at one address that is never renewed."""
        address = SignedAddress(url, headers or {})
        return self.bytes_at(lambda renew: address, start, stop)

    def bytes_at(
        self, address: Callable[[bool], SignedAddress], start: int = 100, stop: int = 5000
    ) -> bytes:
        """Reads a range."""
        buffer = bytearray(stop - start)
        self.reader.read_into(
            address, start, memoryview(buffer), file_num_bytes=SIZE, what="org/run@abc model"
        )
        return bytes(buffer)

    def error(self, url: str, start: int = 100, stop: int = 5000, **headers: str) -> SourceError:
        """The error that a read ends with, after the checks that hold for every error."""
        with pytest.raises(SourceError) as caught:
            self.bytes_of(url, start, stop, headers)
        message = str(caught.value)
        assert message.startswith("org/run@abc model: ")
        assert message.isprintable()
        assert len(message) < 450
        for secret in (TOKEN, *SIGNATURE.replace("&", "=").split("=")[1::2]):
            assert secret not in message
        return caught.value


@pytest.fixture
def reading() -> Iterator[Reading]:
    """A reader, closed in the end."""
    found = Reading()
    yield found
    found.reader.close()


@pytest.fixture
def impatient() -> Iterator[Reading]:
    """A reader that gives a silent server little time."""
    found = Reading(read_timeout_s=0.3)
    yield found
    found.reader.close()


def test_reads_exactly_the_range(origin: Origin, reading: Reading) -> None:
    """The bytes come from the right place; the request is for them only, and unencoded."""
    assert reading.bytes_of(origin.url + "/f?" + SIGNATURE) == DATA[100:5000]
    path, headers = origin.requests[0]
    assert path == "/f?" + SIGNATURE
    assert headers["range"] == "bytes=100-4999"
    assert headers["accept-encoding"] == "identity"
    assert headers["user-agent"].startswith("alpharl-hub/")
    assert reading.waits == []


def test_the_last_byte_and_nothing(origin: Origin, reading: Reading) -> None:
    """A range of one byte works; an empty one asks nobody; one beyond the file is a bug."""
    assert reading.bytes_of(origin.url, SIZE - 1, SIZE) == DATA[-1:]
    assert reading.bytes_of(origin.url, SIZE, SIZE) == b""
    assert len(origin.requests) == 1
    with pytest.raises(ValueError, match="outside of"):
        reading.bytes_of(origin.url, SIZE, SIZE + 1)


def test_connections_are_kept(origin: Origin, reading: Reading) -> None:
    """Twenty reads after each other use one connection."""
    for start in range(20):
        assert reading.bytes_of(origin.url, start, 5000) == DATA[start:5000]
    assert origin.num_connections == 1


def test_threads_share_a_reader(origin: Origin, reading: Reading) -> None:
    """Two hundred ranges over eight threads arrive where they belong."""
    bounds = [(start, min(start + 97, SIZE)) for start in range(0, SIZE, 53)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda bound: reading.bytes_of(origin.url, *bound), bounds))
    assert found == [DATA[start:stop] for start, stop in bounds]


@pytest.mark.parametrize("code", [408, 429, 500, 501, 502, 503, 504, 599])
def test_a_busy_server_is_asked_again(origin: Origin, reading: Reading, code: int) -> None:
    """Four failures in a row are waited out with growing pauses, each of them told."""
    origin.script = [status(code)] * 4
    assert reading.bytes_of(origin.url) == DATA[100:5000]
    assert reading.waits == [1, 2, 4, 8]
    host = origin.url.removeprefix("http://")
    assert reading.reasons[0] == f"1 s: org/run@abc model: {host} answered {code}"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(503), "answered 503, 5 times in a row"),
        (drop(), "connection closed without an answer, 5 times"),
        (drop(reset=True), "Connection reset by peer, 5 times"),
        (cut(0), "the answer was cut short, 5 times"),
    ],
)
def test_five_failures_in_a_row_are_the_end(
    origin: Origin, reading: Reading, fault: Answer, reason: str
) -> None:
    """After the fifth the reason is told, with what to do next."""
    origin.script = [fault] * 10
    message = str(reading.error(origin.url))
    assert reason in message
    assert message.endswith("try again later")
    assert len(origin.requests) == 5
    assert reading.waits == [1, 2, 4, 8]


@pytest.mark.parametrize("reset", [False, True])
def test_a_lost_connection_is_made_again(origin: Origin, reading: Reading, reset: bool) -> None:
    """Dropped before the answer, properly or with a reset."""
    origin.script = [drop(reset=reset)] * 2
    assert reading.bytes_of(origin.url) == DATA[100:5000]
    assert reading.waits == [1, 2]


def test_connection_refused(reading: Reading) -> None:
    """Nobody listens: the reason is told and the name of the machine."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        message = str(reading.error(f"http://{host}/f?{SIGNATURE}"))
    assert f"{host}: Connection refused, 5 times in a row" in message


def test_unknown_host(reading: Reading) -> None:
    """A name that does not resolve (reserved for that by RFC 6761)."""
    assert "hub.invalid" in str(reading.error(f"http://hub.invalid/f?{SIGNATURE}"))


def test_a_cut_body_is_continued_from_the_byte_reached(origin: Origin, reading: Reading) -> None:
    """No byte that arrived is asked for again; every piece of progress starts the count anew."""
    origin.script = [cut(count) for count in (1000, 1, 500, 500, 500, 500)]
    assert reading.bytes_of(origin.url) == DATA[100:5000]
    starts = [100, 1100, 1101, 1601, 2101, 2601, 3101]
    assert origin.ranges() == [f"bytes={start}-4999" for start in starts]
    assert reading.waits == [1] * 6


def test_a_reset_in_the_body_is_continued(origin: Origin, reading: Reading) -> None:
    """A reset may discard what was sent, but never moves the reader backwards or too far."""
    origin.script = [cut(count, reset=True) for count in (1000, 1, 500, 500)]
    assert reading.bytes_of(origin.url) == DATA[100:5000]
    starts = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in origin.ranges()]
    steps = [later - earlier for earlier, later in pairwise(starts)]
    assert len(steps) == 4
    assert all(0 <= step <= sent for step, sent in zip(steps, (1000, 1, 500, 500), strict=True))


def test_a_stalled_server_is_left(origin: Origin, impatient: Reading) -> None:
    """No byte for the length of the timeout: the rest is asked for on a new connection."""
    origin.script = [stall(700)]
    assert impatient.bytes_of(origin.url) == DATA[100:5000]
    assert origin.ranges() == ["bytes=100-4999", "bytes=800-4999"]
    assert "no answer in time" in impatient.reasons[0]


def test_a_server_that_never_answers_is_left(origin: Origin, impatient: Reading) -> None:
    """Silence before the first byte of the answer ends after the timeout, too."""
    origin.script = [silence]
    assert impatient.bytes_of(origin.url) == DATA[100:5000]
    assert "no answer in time" in impatient.reasons[0]


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({"Retry-After": "17"}, 17),
        ({"Retry-After": "0"}, 1),
        ({"Retry-After": "600"}, 600),
        ({"Retry-After": "soon"}, 1),
        ({"Retry-After": "-5"}, 1),
        ({"Retry-After": formatdate(1e9 + 40, usegmt=True), "Date": formatdate(1e9)}, 40),
        ({"Retry-After": formatdate(1e9, usegmt=True)}, 1),
        ({"RateLimit": '"resolvers";r=0;t=123'}, 123),
        ({"RateLimit": '"api";r=7;t=250, "resolvers"; r=0; t=55'}, 55),
        ({"RateLimit": '"resolvers";r=0;t=20', "Retry-After": "30"}, 30),
        ({"RateLimit": "nonsense"}, 1),
    ],
)
def test_waits_as_long_as_the_server_asks(
    origin: Origin, reading: Reading, headers: dict[str, str], expected_s: float
) -> None:
    """Seconds, dates by the server's clock and the Hub's rate limit; at least our own second."""
    origin.script = [too_many(headers)]
    assert reading.bytes_of(origin.url) == DATA[100:5000]
    assert reading.waits == [expected_s]


def test_a_date_without_the_servers_clock_counts_by_ours() -> None:
    """`Retry-After` as a date, in an answer without `Date`."""
    asked_s = asked_wait_s({"retry-after": formatdate(time.time() + 90, usegmt=True)})
    assert asked_s == pytest.approx(90, abs=5)
    assert asked_wait_s({"Retry-After": "Mon, 01 Jan 99999999999999 00:00:00 GMT"}) == 0


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "601"}, {"RateLimit": '"api";r=0;t=3600'}, {"Retry-After": "9" * 9}]
)
def test_more_than_ten_minutes_are_not_waited(
    origin: Origin, reading: Reading, headers: dict[str, str]
) -> None:
    """Beyond the limit the read ends at once and says how long the server wants."""
    origin.script = [too_many(headers)]
    message = str(reading.error(origin.url))
    assert "asks to wait" in message
    assert "try again later" in message
    assert reading.waits == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (partial(shift=1), "another part"),
        (partial(total=str(SIZE + 1)), "file of another size"),
        (partial(total="*"), "file of another size"),
        (partial(Content_Range=None), "another part"),
        (partial(Content_Range="bytes */5"), "another part"),
        (partial(Content_Range=f"bytes 100-{SIZE}/{SIZE}"), "another part"),
        (partial(Content_Length="4901"), "another length"),
        (partial(Content_Length="10"), "another length"),
        (partial(Content_Encoding="gzip"), "compressed"),
        (whole(DATA + b"x"), "file of another size"),
        (whole(b"<html>Please log in</html>"), "file of another size"),
        (whole(gzip.compress(DATA), Content_Encoding="gzip"), "compressed"),
        (endless_whole, "file of another size"),
        (unmeasured_whole, "whole file instead of a part"),
        (chunked_too_long, "too many bytes"),
    ],
)
def test_another_answer_than_asked_for(
    origin: Origin, reading: Reading, fault: Answer, reason: str
) -> None:
    """Wrong range, total, length or encoding: no byte believed, asked again on a new connection.

    Four are survived and told; after the fifth in a row there is one line.
    """
    url = f"{origin.url}/f?{SIGNATURE}"
    origin.script = [fault] * 4
    assert reading.bytes_of(url) == DATA[100:5000]
    assert origin.ranges() == ["bytes=100-4999"] * 5
    assert origin.num_connections == 5
    assert reading.waits == [1, 2, 4, 8]
    assert all(reason in told and SIGNATURE not in told for told in reading.reasons)
    origin.script = [fault] * 5
    error = reading.error(url)
    assert isinstance(error, RangeReadError)
    assert re.search(rf"{reason}.*, 5 times in a row; ", str(error))
    assert len(origin.requests) == 10
    assert origin.script == []


@pytest.mark.parametrize("code", [204, 304])
def test_an_answer_without_bytes_is_final(origin: Origin, reading: Reading, code: int) -> None:
    """A status that has no body is what the server means, and not asked for twice."""
    origin.script = [status(code)]
    error = reading.error(f"{origin.url}/f?{SIGNATURE}")
    assert isinstance(error, RangeReadError)
    assert f"answered {code}" in str(error)
    assert len(origin.requests) == 1


def test_after_a_wrong_answer_the_way_is_asked_for_anew(origin: Origin, reading: Reading) -> None:
    """One of many stores may be wrong: the Hub may send us to another one the next time."""
    address = Renewable(origin.url + "/old", origin.url + "/new")
    origin.script = [cut(1000), partial(shift=1)]
    assert reading.bytes_at(address) == DATA[100:5000]
    assert [path for path, _ in origin.requests] == ["/old", "/old", "/new"]
    assert origin.ranges()[1:] == ["bytes=1100-4999"] * 2


def test_a_server_that_knows_no_ranges(origin: Origin, reading: Reading) -> None:
    """What comes before the part is dropped and what comes after it is not received: no wait."""
    origin.script = [whole()] * 4
    for start, stop in ((100, 5000), (0, 1), (SIZE - 1, SIZE), (9000, SIZE)):
        assert reading.bytes_of(origin.url, start, stop) == DATA[start:stop]
    assert reading.waits == []
    assert len(origin.requests) == 4


@pytest.mark.parametrize("num_bytes", [50, 100, 2000])
def test_a_whole_file_that_is_cut(origin: Origin, reading: Reading, num_bytes: int) -> None:
    """Before the part, at its first byte and in it: goes on from the byte of the part reached."""
    origin.script = [cut_whole(num_bytes)] * 2 + [whole()]
    assert reading.bytes_of(origin.url) == DATA[100:5000]
    reached = max(100, num_bytes)
    assert origin.ranges() == [f"bytes={start}-4999" for start in (100, reached, reached)]


@pytest.mark.parametrize(("start", "num_requests"), [(8 << 20, 1), ((8 << 20) + 1, 5)])
def test_no_more_is_dropped_than_is_cheap(
    origin: Origin, reading: Reading, start: int, num_requests: int
) -> None:
    """Up to 8 MiB into a file of any size; further in the whole of it is refused, unread."""
    origin.script = [endless_whole] * num_requests
    address, buffer = SignedAddress(origin.url), memoryview(bytearray(b"?" * 1000))

    def read() -> None:
        reading.reader.read_into(
            lambda renew: address, start, buffer, file_num_bytes=2**40, what="file"
        )

    if num_requests == 1:
        read()
        assert bytes(buffer) == bytes(1000)
    else:
        with pytest.raises(RangeReadError, match="whole file instead of a part, 5 times in a row"):
            read()
    assert len(origin.requests) == num_requests
    assert origin.script == []


def test_no_content_length_is_fine(origin: Origin, reading: Reading) -> None:
    """A partial answer whose end is the end of the connection is read, and its length checked."""
    origin.script = [partial(Content_Length=None)]
    assert reading.bytes_of(origin.url) == DATA[100:5000]


def test_the_whole_file_may_come_as_such(origin: Origin, reading: Reading) -> None:
    """Status 200 is right when the range is the file; wrong when the file has another size."""
    origin.script = [whole(), *[whole(DATA + b"x")] * 5]
    assert reading.bytes_of(origin.url, 0, SIZE) == DATA
    assert "file of another size" in str(reading.error(origin.url, 0, SIZE))


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (400, "check the endpoint"),
        (401, "pass a token"),
        (403, "check that your token"),
        (404, "moved or deleted"),
        (410, "moved or deleted"),
        (416, "may have changed"),
        (451, "check the endpoint"),
    ],
)
def test_a_refusal_is_final_and_in_the_servers_words(
    origin: Origin, reading: Reading, code: int, advice: str
) -> None:
    """No repetition (but for one renewal of the address), its words, and what to do next."""
    origin.script = [status(code, b"<html><b>No such</b>\r\n\x1b[31m file!</html>")] * 2
    message = str(reading.error(origin.url))
    assert f"answered {code} (No such [31m file!); " in message
    assert advice in message
    assert len(origin.requests) == (2 if code in (401, 403) else 1)
    assert reading.waits == []


def test_words_are_short_and_hold_no_secret(origin: Origin, reading: Reading) -> None:
    """A server that echoes the request gives nothing away; long answers are trimmed."""
    url = f"{origin.url}/f?{SIGNATURE}"
    echo = f"signed {SIGNATURE} Bearer {TOKEN} 123456789+x {url}".encode()
    origin.script = [status(400, echo + b" word" * 10_000), status(400, X_Error_Message=TOKEN)]
    message = str(reading.error(url, Authorization=f"Bearer {TOKEN}"))
    assert "(signed *** " in message
    assert "word..." in message
    assert "(***)" in str(reading.error(url, Authorization=f"Bearer {TOKEN}"))


def test_addresses_hide_in_tracebacks() -> None:
    """The representation of an address shows neither query nor headers."""
    address = SignedAddress("https://cdn/f?" + SIGNATURE, {"Authorization": TOKEN})
    assert repr(address) == "SignedAddress()"


class Renewable:
    """An address that is replaced when asked for it; counts how often."""

    def __init__(self, *urls: str) -> None:
        self.urls = list(urls)
        self.num_renewals = 0

    def __call__(self, renew: bool) -> SignedAddress:
        """The first address, or the next one."""
        if renew:
            self.num_renewals += 1
            self.urls.pop(0)
        return SignedAddress(self.urls[0])


def expiring(num_good: int) -> Answer:
    """Right answers for /old, a number of times, then 403 for ever."""
    lock = threading.Lock()
    left = [num_good]

    def answer(handler: Handler) -> None:
        with lock:
            left[0] -= handler.path == "/old"
            is_expired = handler.path == "/old" and left[0] < 0
        with handler.server.lock:
            handler.server.script.append(answer)
        (status(403, b"expired") if is_expired else partial())(handler)

    return answer


def test_an_expired_address_is_renewed_once(origin: Origin, reading: Reading) -> None:
    """After a 403 the new address is used, without a wait, and kept by its owner."""
    address = Renewable(origin.url + "/old", origin.url + "/new")
    origin.script = [cut(1000), status(403)]
    assert reading.bytes_at(address) == DATA[100:5000]
    assert [path for path, _ in origin.requests] == ["/old", "/old", "/new"]
    assert origin.ranges()[1:] == ["bytes=1100-4999"] * 2
    assert address.num_renewals == 1


def test_every_expiry_has_its_renewal(origin: Origin, reading: Reading) -> None:
    """An address that expires again after it gave bytes is renewed again."""
    address = Renewable(*(f"{origin.url}/{number}" for number in range(3)))
    origin.script = [status(403), cut(1000), status(401)]
    assert reading.bytes_at(address) == DATA[100:5000]
    assert address.num_renewals == 2


def test_threads_renew_an_address_once_between_them(origin: Origin, reading: Reading) -> None:
    """Many reads meet the expiry together: one new address serves them all."""
    address = Renewable(origin.url + "/old", origin.url + "/new")
    origin.script = [expiring(num_good=10)] * 8
    starts = range(0, 4000, 50)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda s: reading.bytes_at(address, s, s + 100), starts))
    assert found == [DATA[start : start + 100] for start in starts]
    assert address.num_renewals == 1


def test_redirects_within_an_origin_keep_credentials(origin: Origin, reading: Reading) -> None:
    """Relative ones are followed, with the range and the token."""
    origin.script = [redirect("/a", 307), redirect("b", 301)]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert reading.bytes_of(origin.url + "/f", headers=headers) == DATA[100:5000]
    assert [path for path, _ in origin.requests] == ["/f", "/a", "/b"]
    assert [sent["authorization"] for _, sent in origin.requests] == [f"Bearer {TOKEN}"] * 3
    assert origin.ranges() == ["bytes=100-4999"] * 3


def test_credentials_stay_at_their_origin(
    origin: Origin, other_origin: Origin, reading: Reading
) -> None:
    """At another port, and back again, no header of the address is sent; the range still is."""
    origin.script = [redirect(other_origin.url + "/x")]
    other_origin.script = [redirect(origin.url + "/y", 308)]
    headers = {"authorization": f"Bearer {TOKEN}", "Cookie": TOKEN, "X-Api-Key": TOKEN}
    assert reading.bytes_of(origin.url + "/f", headers=headers) == DATA[100:5000]
    assert TOKEN in str(origin.requests[0])
    assert TOKEN not in str(other_origin.requests)
    assert TOKEN not in str(origin.requests[1])
    assert origin.ranges() + other_origin.ranges() == ["bytes=100-4999"] * 3


def test_redirects_end(origin: Origin, reading: Reading) -> None:
    """Five are followed, the sixth is one too many."""
    origin.script = [redirect(f"/{number}") for number in range(5)]
    assert reading.bytes_of(origin.url) == DATA[100:5000]
    origin.script = [redirect("/again") for _ in range(10)]
    assert "more than 5 times" in str(reading.error(origin.url))


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/f", "data:,x", "http://[::1"]
)
def test_redirects_lead_to_web_addresses_only(
    origin: Origin, reading: Reading, target: str
) -> None:
    """Other schemes and broken addresses are refused; so are they as first addresses."""
    origin.script = [redirect(target)]
    assert "check the endpoint" in str(reading.error(origin.url))
    assert "check the endpoint" in str(reading.error(target))
    assert "check the endpoint" in str(reading.error("http:///f"))
    assert len(origin.requests) == 1


def test_own_certificates(
    tls_origin: Origin, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate unknown to the system is refused at once, and accepted by its bundle."""
    assert "certificate of 127.0.0.1" in str(reading.error(tls_origin.url))
    assert reading.waits == []
    for name in BUNDLES:
        with monkeypatch.context() as patched:
            patched.setenv(name, str(CERTIFICATE))
            fresh = Reading()
            assert fresh.bytes_of(tls_origin.url) == DATA[100:5000]
            fresh.reader.close()
            patched.setenv(name, str(CERTIFICATE) + ".missing")
            assert "CA bundle" in str(Reading().error(tls_origin.url))


def test_no_way_down_from_https(
    tls_origin: Origin, origin: Origin, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect from https to http is not followed; the other way it is, without the token."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    tls_origin.script = [redirect(origin.url)]
    assert "without encryption" in str(reading.error(tls_origin.url))
    assert origin.requests == []
    origin.script = [redirect(tls_origin.url)]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert reading.bytes_of(origin.url, headers=headers) == DATA[100:5000]
    assert TOKEN not in str(tls_origin.requests)


def test_proxies_of_the_environment(
    origin: Origin, other_origin: Origin, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY with a login is used for every host that NO_PROXY does not name."""
    proxy = other_origin.url.replace("http://", "http://me:pass%20word@")
    monkeypatch.setenv("http_proxy", proxy)
    assert reading.bytes_of("http://hub.invalid/f") == DATA[100:5000]
    path, headers = other_origin.requests[0]
    assert path == "http://hub.invalid/f"
    assert headers["proxy-authorization"] == "Basic bWU6cGFzcyB3b3Jk"  # me:pass word
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert reading.bytes_of(origin.url) == DATA[100:5000]
    assert len(origin.requests) == len(other_origin.requests) == 1
    assert "proxy-authorization" not in origin.requests[0][1]


def test_https_through_a_proxy(
    other_origin: Origin, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy sees the name of the host only; the token travels inside the tunnel."""
    monkeypatch.setenv("HTTPS_PROXY", other_origin.url.removeprefix("http://"))
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert reading.bytes_of("https://hub.invalid/f", headers=headers) == DATA[100:5000]
    (tunnel, outside), (path, inside) = other_origin.requests
    assert (tunnel, path) == ("CONNECT hub.invalid:443", "/f")
    assert TOKEN not in str(outside)
    assert inside["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "http://[::1", "http://"])
def test_proxies_that_cannot_be_used_are_named(
    reading: Reading, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """A SOCKS proxy or a broken address is a line of its own, not a failed connection."""
    monkeypatch.setenv("HTTP_PROXY", proxy)
    assert "set HTTP_PROXY" in str(reading.error("http://hub.invalid/f"))


def test_a_proxy_that_is_down_is_the_reason(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says that it was the proxy, and keeps its password to itself."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        monkeypatch.setenv("HTTP_PROXY", f"http://me:{TOKEN}@127.0.0.1:{port}")
        message = str(reading.error("http://hub.invalid/f"))
    assert "the proxy to hub.invalid: Connection refused" in message


def test_a_stop_ends_a_wait(origin: Origin) -> None:
    """A wait of minutes ends when the event is set, with what no `except Exception` catches."""
    stop = threading.Event()
    reader = RangeReader(Patience(stop=stop, on_wait=lambda seconds, reason: stop.set()))
    origin.script = [too_many({"Retry-After": "300"})]
    started_s = time.monotonic()
    with pytest.raises(Cancelled):
        read_all(reader, origin.url)
    assert time.monotonic() - started_s < 5
    assert not issubclass(Cancelled, Exception)
    with pytest.raises(Cancelled):
        read_all(reader, origin.url)
    assert len(origin.requests) == 1
    reader.close()


def read_all(reader: RangeReader, url: str) -> None:
    """Reads the file from its first byte."""
    address = SignedAddress(url)
    buffer = memoryview(bytearray(SIZE))
    reader.read_into(lambda renew: address, 0, buffer, file_num_bytes=SIZE, what="file")

"""HTTP messages as the endpoints see them: a request that came in and the answer to it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from email.message import Message
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal

READ_BYTES = 1 << 20
# Addresses of the Hub's own switches, which no log shows and no fault touches.
CONTROL_PREFIX = "/local-hub/"

Origin = Literal["api", "storage"]
Header = tuple[str, str]


class BrokenBodyError(Exception):
    """The client stopped in the middle of a request body."""


class RequestBody:
    """The body of one request, read once, by Content-Length or in chunks."""

    def __init__(self, stream: BufferedIOBase, headers: Message) -> None:
        self._stream = stream
        self._is_chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        self._remaining_bytes = 0 if self._is_chunked else int(headers.get("Content-Length") or 0)
        self.received_bytes = 0

    def pieces(self) -> Iterator[bytes]:
        """Yield what is left of the body in pieces of at most 1 MiB."""
        while True:
            if not self._remaining_bytes and self._is_chunked:
                self._open_chunk()
            if not self._remaining_bytes:
                return
            piece = self._stream.read(min(READ_BYTES, self._remaining_bytes))
            if not piece:
                raise BrokenBodyError
            self._remaining_bytes -= len(piece)
            self.received_bytes += len(piece)
            if not self._remaining_bytes and self._is_chunked:
                self._stream.readline()
            yield piece

    def _open_chunk(self) -> None:
        size_line = self._stream.readline()
        if not size_line:
            raise BrokenBodyError
        self._remaining_bytes = int(size_line.split(b";")[0], 16)
        if not self._remaining_bytes:
            self._is_chunked = False
            while self._stream.readline().strip():
                pass

    def read(self) -> bytes:
        """Return what is left of the body."""
        return b"".join(self.pieces())

    def drain(self) -> None:
        """Read what is left, so that the connection can carry the next request."""
        for _ in self.pieces():
            pass


@dataclass(frozen=True)
class Request:
    """One request; `segments` is the path, split first and unquoted afterwards."""

    method: str
    origin: Origin
    path: str
    segments: tuple[str, ...]
    query: Mapping[str, tuple[str, ...]]
    headers: Message
    body: RequestBody
    user: str | None = None

    @property
    def is_head(self) -> bool:
        """Whether only the headers of the answer are wanted."""
        return self.method == "HEAD"

    def parameter(self, name: str, default: str = "") -> str:
        """Return the first value of a query parameter."""
        return self.query.get(name, (default,))[0]

    def flag(self, name: str) -> bool:
        """Return a query parameter as a switch."""
        return self.parameter(name).lower() in ("1", "true", "yes")

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object, or answer 400."""
        try:
            value = json.loads(self.body.read() or b"{}")
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from error
        if not isinstance(value, dict):
            raise HubError(400, "Invalid JSON: not an object")
        return value


@dataclass(frozen=True)
class FileSpan:
    """Bytes start up to, without, stop of a file on disk that has size_bytes in all."""

    path: Path
    start: int
    stop: int
    size_bytes: int


@dataclass(frozen=True)
class Response:
    """One answer; `repo`, `file_path` and `revision` are what its address named, for the log."""

    status: int
    headers: tuple[Header, ...] = ()
    body: bytes | FileSpan = b""
    repo: str | None = None
    file_path: str | None = None
    revision: str | None = None

    @property
    def num_body_bytes(self) -> int:
        """Length of the body, which a HEAD request only hears of."""
        if isinstance(self.body, FileSpan):
            return self.body.stop - self.body.start
        return len(self.body)

    def with_headers(self, *headers: Header) -> "Response":
        """Return the same answer with more headers."""
        return replace(self, headers=(*self.headers, *headers))


class HubError(Exception):
    """A refusal, answered as the Hub does: JSON body, X-Error-Message and X-Error-Code."""

    def __init__(self, status: int, message: str, code: str = "", headers: tuple[Header, ...] = ()):
        super().__init__(message)
        # Header values are one line of Latin-1.
        line = " ".join(message.split()).encode("latin-1", "replace").decode("latin-1")
        marks = (("X-Error-Message", line), *((("X-Error-Code", code),) if code else ()), *headers)
        self.response = json_response({"error": message}, status).with_headers(*marks)


def json_response(value: Any, status: int = 200) -> Response:
    """Answer with a JSON document."""
    headers = (("Content-Type", "application/json; charset=utf-8"),)
    return Response(status, headers, json.dumps(value).encode())


def text_response(text: str, status: int = 200) -> Response:
    """Answer with plain text."""
    return Response(status, (("Content-Type", "text/plain; charset=utf-8"),), text.encode())

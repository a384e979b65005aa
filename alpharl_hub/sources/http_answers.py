"""What an answer over HTTP means: the bytes asked for, a wish to be left alone, or a refusal."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from alpharl_hub.byte_ranges import parse_content_range
from alpharl_hub.errors import RangeReadError, SourceError
from alpharl_hub.sources.blotting import without_secrets
from alpharl_hub.sources.http_routes import host_of

ADVICE = "a proxy or mirror on the way may not know byte ranges, use another endpoint"

_START_AGAIN = "start again"
_MAX_WORDS = 200
_RATE_LIMIT = re.compile(r"r\s*=\s*(\d{1,9})\s*;\s*t\s*=\s*(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class Wanted:
    """Bytes `start` to `stop` of a file of `file_num_bytes`, which messages call `what`."""

    start: int
    stop: int
    file_num_bytes: int
    what: str

    @property
    def is_whole_file(self) -> bool:
        """Whether nothing of the file is left out."""
        return self.start == 0 and self.stop == self.file_num_bytes


MAX_SKIPPED_BYTES = 8 << 20
"""How much of a file is read and dropped where a server sends all of it instead of a part."""


class Misread(Exception):
    """An answer to another question than was asked; the next one may be right.

    `reason` is what is wrong with it, `advice` what to do when it stays so.
    """

    def __init__(self, reason: str, advice: str = ADVICE) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


class Refused(Exception):
    """Status 401 or 403: the address has expired, or there is no permission."""


def asked_wait_s(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to be left alone for, 0 if it does not say.

    Understands `Retry-After` (RFC 9110: seconds, or a date, then by the server's own clock) and the
    Hub's `RateLimit: "resolvers";r=0;t=123`, an IETF draft: of the exhausted limits the longest.
    """
    found = urllib3.HTTPHeaderDict(headers)
    waits = [float(t) for r, t in _RATE_LIMIT.findall(found.get("RateLimit", "")) if int(r) == 0]
    retry_after = found.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", retry_after):
        waits.append(float(retry_after))
    elif (moment_s := _unix_time(retry_after)) is not None:
        now_s = _unix_time(found.get("Date", ""))
        waits.append(moment_s - (time.time() if now_s is None else now_s))
    return max([0.0, *waits])


def _unix_time(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def check_answer(response: urllib3.BaseHTTPResponse, url: str, wanted: Wanted) -> int:
    """Return how many bytes of the body of a status 200 or 206 come before those that are wanted.

    Where a part was asked for the whole file will do, if not much of it must be read in vain.

    Raises:
        Misread: it answers another question; its body need not be read.
    """
    where = host_of(url)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Misread(f"{where} sent compressed bytes without being asked")
    length = response.headers.get("Content-Length", "").strip()
    if response.status == 200:
        if length not in ("", str(wanted.file_num_bytes)):
            raise Misread(f"{where} has a file of another size", _START_AGAIN)
        if wanted.is_whole_file:
            return 0
        if not length or wanted.start > MAX_SKIPPED_BYTES:
            raise Misread(f"{where} sent the whole file instead of a part")
        return wanted.start
    content = parse_content_range(response.headers.get("Content-Range", ""))
    if content is None or (content.start, content.stop) != (wanted.start, wanted.stop):
        raise Misread(f"{where} sent another part of the file")
    if content.total != wanted.file_num_bytes:
        raise Misread(f"{where} has a file of another size", _START_AGAIN)
    if length not in ("", str(wanted.stop - wanted.start)):
        raise Misread(f"{where} announced another length than its part has")
    return 0


_NEXT_STEPS = {
    401: "pass a token that may read it",
    403: "check that your token may read it",
    404: "it may have been moved or deleted",
    410: "it may have been moved or deleted",
    416: "the file may have changed, start again",
}


def refusal(
    response: urllib3.BaseHTTPResponse, url: str, wanted: Wanted, secrets: Sequence[str]
) -> Exception:
    """The error for an answer that no repetition would change, with the server's own words.

    `secrets` are blotted out of the words: some stores echo the signed request.
    """
    words = _server_words(response, secrets)
    message = f"{wanted.what}: {host_of(url)} answered {response.status}"
    message += f" ({words})" if words else ""
    if response.headers.get("X-Error-Code") == "GatedRepo":
        message += "; ask for access on its page, then pass your token"
    else:
        message += "; " + _NEXT_STEPS.get(response.status, "check the endpoint")
    if response.status in (401, 403):
        return Refused(message)
    return SourceError(message) if response.status >= 400 else RangeReadError(message)


def _server_words(response: urllib3.BaseHTTPResponse, secrets: Sequence[str]) -> str:
    """What the server says, on one printable line without markup and without our secrets."""
    text = response.headers.get("X-Error-Message", "")
    if not text and "Content-Encoding" not in response.headers:
        try:
            text = response.read(2**14).decode("utf-8", errors="replace")
        except HTTPError:
            text = ""
    text = without_secrets(text, secrets)
    text = re.sub(r"<[^<>]*>", " ", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _MAX_WORDS else text[: _MAX_WORDS - 3] + "..."


def secrets_in(url: str, headers: Mapping[str, str]) -> list[str]:
    """Values of query and headers, as written and decoded, longest first; short ones are words."""
    query = parse_url(url).query or ""
    values = [query, *(pair.partition("=")[2] for pair in query.split("&"))]
    # The first word of a header's names what follows: "Bearer" is no secret.
    values += [part for value in headers.values() for part in (value, *value.split()[1:])]
    values += [unquote(value) for value in values]
    return sorted({value for value in values if len(value) >= 6}, key=len, reverse=True)

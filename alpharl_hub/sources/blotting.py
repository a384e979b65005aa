"""What may not be read in any message, cause, warning or log: tokens, signatures and logins.

Everything that a server or a library says goes through `without_secrets`. All patterns take time
in proportion to the text: its length is the server's choice.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Collection, Iterator

_HIDDEN = "***"
_MIN_SECRET_CHARS = 6  # what is shorter is a word

_PATTERNS = (
    # The Hub's tokens: https://huggingface.co/docs/hub/security-tokens
    re.compile(r"hf(?:_|%5[Ff])[A-Za-z0-9]{10,}"),
    # To the end, because libraries also name a token that they refuse to send for its blanks. A
    # server's "Bearer token" and "Bearer authentication" are words.
    re.compile(r"(?i)(?<=bearer )(?!(?:tokens?|auth[a-z]*)\b)[^\"]*"),
    re.compile(r"(?<=//)[^/\s@]+(?=@)"),
)
_QUERY = re.compile(r"\?([^\s'\"<>)]+)")


def without_secrets(text: str, secrets: Collection[str] = ()) -> str:
    """Return a text with tokens, signatures and logins written over.

    `secrets` are known ones, hidden also where they are percent-encoded or stand in base64.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _MIN_SECRET_CHARS:
            text = re.sub("|".join(_spellings(secret)), _HIDDEN, text)
    for pattern in _PATTERNS:
        text = pattern.sub(_HIDDEN, text)
    return _QUERY.sub(_hide_query, text)


def _hide_query(found: re.Match[str]) -> str:
    return f"?{_HIDDEN}" if "=" in found[1][1:] else found[0]


def _spellings(secret: str) -> Iterator[str]:
    """Patterns of a secret: each character plain or percent-encoded, or base64 around it."""
    octets = [char.encode("utf-8", "surrogatepass") for char in secret]
    encoded = ["".join(f"%{octet:02X}" for octet in char) for char in octets]
    pairs = zip(secret, encoded, strict=True)
    yield "".join(f"(?:{re.escape(char)}|(?i:{code}))" for char, code in pairs)
    whole = b"".join(octets)
    # What stands before it ("user:") moves it by whole bytes, and three bytes are four digits; the
    # digits at both ends hold bits of what stands around it.
    for num_before in range(3):
        digits = b64encode(bytes(num_before) + whole).decode("ascii")
        inner = digits[-(-num_before * 8 // 6) : (num_before + len(whole)) * 8 // 6]
        either = re.escape(inner).replace(r"\+", "[+-]").replace("/", "[/_]")
        yield either + r"[A-Za-z0-9+/_-]*=*"

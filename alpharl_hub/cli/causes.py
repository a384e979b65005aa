"""Why an error came up, in the words of what failed first, and without anybody's secrets."""

from __future__ import annotations

import re

_MAX_CAUSES = 5
_HIDDEN = "***"

_SECRETS = (
    # The Hub's tokens, also cut by what may stand in no header: its words come from a library that
    # refuses to send such a one.
    re.compile(r"(?<![A-Za-z0-9])hf_\S*"),
    re.compile(r"(?i)(?<=bearer )[^\"]*"),
    # The signature of a signed address, and the login of a proxy.
    re.compile(r"(?<=\?)[^\s'\"<>)]+(?==)[^\s'\"<>)]*"),
    re.compile(r"(?<=//)[^/\s@]+(?=@)"),
)


def causes_of(error: BaseException) -> list[str]:
    """Return a line for each error that this one was made of, the nearest first."""
    lines: list[str] = []
    cause = error.__cause__
    while cause is not None and len(lines) < _MAX_CAUSES:
        line = f"because of {type(cause).__name__}: {without_secrets(str(cause))}"
        if line not in lines:  # httpx wraps what httpcore says, in the same words
            lines.append(line)
        # Libraries chain in both ways; `from None` hides what would only confuse.
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return lines


def without_secrets(text: str) -> str:
    """Return a text with tokens, signatures and logins written over."""
    for secret in _SECRETS:
        text = secret.sub(_HIDDEN, text)
    return text

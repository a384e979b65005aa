"""Why an error came up, in the words of what failed first, and without anybody's secrets."""

from __future__ import annotations

from alpharl_hub.sources.blotting import without_secrets

_MAX_CAUSES = 5


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

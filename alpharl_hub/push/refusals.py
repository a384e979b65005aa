"""How a push fails: the errors, and what they say of the answer that they came from."""

from __future__ import annotations

import re

from alpharl_hub.errors import PushError

_ADDRESS_QUERY = re.compile(r"\?[^\s'\"<>)]+=[^\s'\"<>)]*")


class RefusedError(PushError):
    """The Hub said no; `status` is that of its answer, None where none came."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status


class UnsureError(PushError):
    """Whether a commit was made is not known: its answer was lost, or the branch has moved."""

    def __init__(self, message: str, cause: Exception) -> None:
        super().__init__(message)
        self.cause = cause


def status_of(error: Exception) -> int | None:
    """Return the status of the answer that an error is about, None where none came."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def one_line(error: BaseException) -> str:
    """Return the words of an error, without what signs the addresses in them."""
    words = getattr(error, "server_message", None) or str(error) or type(error).__name__
    text = " ".join(_ADDRESS_QUERY.sub("?...", str(words)).split())
    return text if len(text) <= 300 else text[:297] + "..."

"""How a push fails: the errors, and what they say of the answer that they came from."""

from __future__ import annotations

from collections.abc import Collection

from huggingface_hub.errors import OfflineModeIsEnabled

from alpharl_hub.errors import PushError
from alpharl_hub.sources.blotting import without_secrets
from alpharl_hub.sources.http_routes import host_of
from alpharl_hub.sources.hub_session import untrusted_certificate


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


def one_line(error: BaseException, secrets: Collection[str]) -> str:
    """Return the words of an error, without these and other secrets."""
    words = getattr(error, "server_message", None) or str(error) or type(error).__name__
    text = " ".join(without_secrets(str(words), secrets).split())
    return text if len(text) <= 300 else text[:297] + "..."


def refusal(error: Exception, repo: str, endpoint: str, secrets: Collection[str]) -> RefusedError:
    """Put the Hub's answer, or the lack of one, into one line: what, why, what next."""
    status, words, host = status_of(error), one_line(error, secrets), host_of(endpoint)
    if isinstance(error, OfflineModeIsEnabled):
        text = "HF_HUB_OFFLINE is set; unset it to push"
    elif (why := untrusted_certificate(error)) is not None:
        text = f"the certificate of {host} is not trusted ({why}); name its CA in SSL_CERT_FILE"
    elif status is None:
        text = f"no answer from {host} ({words}); push again, nothing is sent twice"
    elif status == 401:
        text = "the Hub does not know this token; make a new one (hf auth login)"
    elif status == 412:
        text = "somebody else committed to the branch meanwhile; look at it, then push again"
    elif status == 403:
        text = f"not allowed (403: {words}); use a token that may write, or mend what it says"
    else:
        text = f"the Hub refuses (status {status}): {words}"
    return RefusedError(f"{repo}: {text}", status)

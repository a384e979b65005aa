"""What the tests of the loopback Hub share: users, contents, and one plain HTTP request."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import close_session

from alpharl_hub.local_hub import LocalHub

ALICE, BOB = "hf_alice", "hf_bob"
WEIGHTS = bytes(range(256)) * 40
CONFIG = b'{"model_type": "llama"}\n'


@dataclass(frozen=True)
class Answer:
    """What came back; the names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(
    url: str,
    method: str = "GET",
    body: bytes | None = None,
    timeout_s: float = 10.0,
    **headers: str,
) -> Answer:
    """Send one request over a connection of its own, following nothing."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, sent)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        connection.close()


@contextmanager
def hub_for_clients(root: Path) -> Iterator[LocalHub]:
    """Serve two users and an organisation of alice's, with three entries to a page."""
    tokens = {ALICE: "alice", BOB: "bob"}
    with LocalHub(root, tokens, orgs={"lab": ["alice"]}, page_size=3) as served:
        yield served
    # The client keeps its connections for the whole process.
    close_session()


@contextmanager
def hub_with_files(root: Path) -> Iterator[LocalHub]:
    """Serve a public repo of alice's with a large, a small and an empty file."""
    with LocalHub(root, {ALICE: "alice"}) as served:
        files = {"model.safetensors": WEIGHTS, "config.json": CONFIG, "empty": b""}
        served.add_commit("alice/model", files=files)
        yield served


def resolve_url(hub: LocalHub, path: str = "model.safetensors", revision: str = "main") -> str:
    """The address that names a file of alice/model."""
    return f"{hub.endpoint}/alice/model/resolve/{revision}/{path}"


def signed_url(hub: LocalHub) -> str:
    """The address that the large file is read from."""
    return ask(resolve_url(hub), "HEAD").headers["location"]

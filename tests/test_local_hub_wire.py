"""The loopback Hub on the wire: redirects, ranges, signed addresses, counters."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from local_hub_helpers import ALICE, CONFIG, WEIGHTS, ask, hub_with_files, resolve_url, signed_url

from alpharl_hub.local_hub import LocalHub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A Hub with a public repo of alice's."""
    with hub_with_files(tmp_path / "hub") as served:
        yield served


def test_resolve_sends_large_files_to_the_other_origin_and_small_ones_to_the_cache(
    hub: LocalHub,
) -> None:
    """HEAD and GET redirect alike, with commit, name and size of the content in the headers."""
    commit = hub.refs("alice/model")["refs/heads/main"]
    for method in ("HEAD", "GET"):
        large = ask(resolve_url(hub), method)
        assert (large.status, large.headers["x-repo-commit"]) == (302, commit)
        assert large.headers["x-linked-size"] == str(len(WEIGHTS))
        assert large.headers["location"].startswith("http://localhost:")
        small = ask(resolve_url(hub, "config.json"), method)
        assert small.status == 307
        assert small.headers["location"].startswith(
            f"/api/resolve-cache/models/alice/model/{commit}"
        )
    content = ask(hub.endpoint + small.headers["location"])
    assert (content.status, content.body) == (200, CONFIG)
    head = ask(hub.endpoint + small.headers["location"], "HEAD")
    assert (head.headers["content-length"], head.body) == (str(len(CONFIG)), b"")
    assert head.headers["etag"] == content.headers["etag"] == small.headers["etag"]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=10200-", 10200, 10240),
        ("bytes=-40", 10200, 10240),
        ("bytes=-99999", 0, 10240),
        ("bytes=10000-99999", 10000, 10240),
    ],
)
def test_a_range_is_served_exactly(hub: LocalHub, asked: str, start: int, stop: int) -> None:
    """206 with the asked bytes, their place and the size of the whole."""
    answer = ask(signed_url(hub), Range=asked)
    assert (answer.status, answer.body) == (206, WEIGHTS[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/10240"
    assert hub.log[-1].range == (start, stop)


@pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "bytes=9-3", "lines=1-2", "bytes=-", ""])
def test_a_range_that_may_be_passed_over_gives_the_whole_file(hub: LocalHub, asked: str) -> None:
    """Several ranges at once and malformed ones are answered with 200."""
    answer = ask(signed_url(hub), Range=asked)
    assert (answer.status, answer.body) == (200, WEIGHTS)
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=99999-100000", "bytes=-0"])
def test_a_range_past_the_end_is_416(hub: LocalHub, asked: str) -> None:
    """416 says how large the file is."""
    answer = ask(signed_url(hub), Range=asked)
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */10240")


def test_the_second_origin_refuses_credentials(hub: LocalHub) -> None:
    """A signed address with an Authorization header is refused; the log shows who sent one."""
    answer = ask(signed_url(hub), Authorization=f"Bearer {ALICE}")
    assert answer.status == 400
    assert (hub.log[-1].origin, hub.log[-1].had_authorization) == ("storage", True)
    assert ask(signed_url(hub)).status == 200
    assert ask(hub.storage_endpoint + "/download/alice/model/main/config.json").status == 403


def test_a_signed_address_is_for_one_file_and_one_method(hub: LocalHub) -> None:
    """Another path, another method or another time of expiry does not fit the signature."""
    url = signed_url(hub)
    assert ask(url, "HEAD").status == 200
    assert ask(url.replace("model.safetensors", "config.json")).status == 403
    assert ask(url.replace("Expires=", "Expires=9")).status == 403
    assert ask(url.replace("/download/", "/upload/"), "PUT", b"x").status in (403, 404)


def test_a_signed_address_expires(tmp_path: Path) -> None:
    """403 once the time is up; a new address works again."""
    with LocalHub(tmp_path / "hub", signed_url_lifetime_s=0.5) as hub:
        hub.add_commit("alice/model", files={"model.safetensors": WEIGHTS})
        url = signed_url(hub)
        assert ask(url).status == 200
        time.sleep(0.6)
        assert ask(url).status == 403
        assert ask(signed_url(hub)).body == WEIGHTS


def test_an_upload_that_is_not_what_it_says_is_refused(hub: LocalHub) -> None:
    """Bytes with another SHA-256 are not kept, and a commit cannot point to them."""
    oid = "ab" * 32
    item = {"operation": "upload", "objects": [{"oid": oid, "size": 3}], "ref": {"name": "main"}}
    url = f"{hub.endpoint}/alice/model.git/info/lfs/objects/batch"
    bearer = f"Bearer {ALICE}"
    batch = ask(url, "POST", json.dumps(item).encode(), Authorization=bearer)
    action = json.loads(batch.body)["objects"][0]["actions"]
    assert ask(action["upload"]["href"], "PUT", b"abc").status == 400
    payload = json.dumps({"oid": oid, "size": 3}).encode()
    assert ask(action["verify"]["href"], "POST", payload, Authorization=bearer).status == 404
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": oid, "size": 3}},
    ]
    body = "\n".join(json.dumps(line) for line in lines).encode()
    commit_url = f"{hub.endpoint}/api/models/alice/model/commit/main"
    assert ask(commit_url, "POST", body, Authorization=bearer).status == 400


def test_many_ranges_at_once_over_kept_connections(hub: LocalHub) -> None:
    """Sixteen connections with eight requests each get every byte, and the log counts them."""
    url = urlsplit(signed_url(hub))
    hub.clear_log()

    def read(part: int) -> bytes:
        connection = HTTPConnection(url.netloc, timeout=10)
        pieces = []
        for i in range(8):
            start = (8 * part + i) * 80
            headers = {"Range": f"bytes={start}-{start + 79}"}
            connection.request("GET", f"{url.path}?{url.query}", headers=headers)
            pieces.append(connection.getresponse().read())
        connection.close()
        return b"".join(pieces)

    with ThreadPoolExecutor(16) as pool:
        assert b"".join(pool.map(read, range(16))) == WEIGHTS
    spans = sorted(record.range or (0, 0) for record in hub.log)
    assert spans == [(start, start + 80) for start in range(0, 10240, 80)]
    assert sum(record.bytes_sent for record in hub.log) == len(WEIGHTS)


def test_log_tells_file_revision_and_bytes(hub: LocalHub) -> None:
    """One record a request: what was named, what was served, and with which rights."""
    commit = hub.refs("alice/model")["refs/heads/main"]
    hub.clear_log()
    ask(signed_url(hub), Range="bytes=5-9")
    ask(f"{hub.endpoint}/api/models/alice/model", Authorization=f"Bearer {ALICE}")
    named, served, info = hub.log
    assert (named.method, named.origin, named.status) == ("HEAD", "api", 302)
    assert (named.repo, named.file_path, named.revision) == (
        "alice/model",
        "model.safetensors",
        "main",
    )
    assert (served.origin, served.revision, served.range) == ("storage", commit, (5, 10))
    assert (served.file_path, served.bytes_sent, served.status) == ("model.safetensors", 5, 206)
    assert (info.repo, info.range, info.had_authorization) == ("alice/model", None, True)

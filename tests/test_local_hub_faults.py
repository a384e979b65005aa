"""Faults that the loopback Hub makes on request, its pace, and its end."""

import gzip
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead, RemoteDisconnected
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from local_hub_helpers import ALICE, WEIGHTS, ask, hub_with_files, resolve_url, signed_url

from alpharl_hub.local_hub import Fault, LocalHub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A Hub with a public repo of alice's."""
    with hub_with_files(tmp_path / "hub") as served:
        yield served


def test_status_fault_comes_before_the_work_and_as_often_as_asked(hub: LocalHub) -> None:
    """A 503 with its headers is answered twice, after one request that passes."""
    rule = Fault("resolve", "status", times=2, skip=1, headers=(("Retry-After", "7"),))
    hub.add_fault(rule)
    answers = [ask(resolve_url(hub), "HEAD") for _ in range(4)]
    assert [answer.status for answer in answers] == [302, 503, 503, 302]
    assert answers[1].headers["retry-after"] == "7"
    hub.add_fault(Fault("branch/new", "status", status=429, method="POST"))
    url, bearer = f"{hub.endpoint}/api/models/alice/model/branch/new", f"Bearer {ALICE}"
    assert ask(url, "POST", b"{}", Authorization=bearer).status == 429
    assert "refs/heads/new" not in hub.refs("alice/model")


def test_reset_fault_loses_the_answer_but_not_the_work(hub: LocalHub) -> None:
    """The connection ends without a word, or in mid-body; a change that was asked for is made."""
    hub.add_fault(Fault("branch/new", "reset"))
    url, bearer = f"{hub.endpoint}/api/models/alice/model/branch/new", f"Bearer {ALICE}"
    with pytest.raises((ConnectionResetError, RemoteDisconnected)):
        ask(url, "POST", b"{}", Authorization=bearer)
    assert "refs/heads/new" in hub.refs("alice/model")
    assert (hub.log[-1].status, hub.log[-1].bytes_sent) == (0, 0)
    hub.add_fault(Fault("model.safetensors", "reset", origin="storage", after_bytes=100))
    with pytest.raises((ConnectionResetError, IncompleteRead)):
        ask(signed_url(hub))


def test_cut_fault_ends_the_body_early(hub: LocalHub) -> None:
    """The announced length stays, the bytes do not come; the log says how many did."""
    hub.add_fault(Fault("model.safetensors", "cut", origin="storage", after_bytes=1000))
    with pytest.raises(IncompleteRead) as error:
        ask(signed_url(hub), Range="bytes=100-2099")
    assert error.value.partial == WEIGHTS[100:1100]
    assert (hub.log[-1].range, hub.log[-1].bytes_sent) == ((100, 2100), 1000)


def test_range_faults_answer_with_other_bytes(hub: LocalHub) -> None:
    """A range is ignored, or shifted by one byte; both answers say what they hold."""
    url = signed_url(hub)
    hub.add_fault(Fault("model.safetensors", "ignore_range"))
    hub.add_fault(Fault("model.safetensors", "wrong_range", times=2))
    whole = ask(url, Range="bytes=10-19")
    assert (whole.status, whole.body, "content-range" in whole.headers) == (200, WEIGHTS, False)
    wrong = ask(url, Range="bytes=10-19")
    assert (wrong.status, wrong.body) == (206, WEIGHTS[11:21])
    assert wrong.headers["content-range"] == "bytes 11-20/10240"
    assert hub.log[-1].range == (11, 21)
    end = ask(url, Range="bytes=10230-10239")
    assert end.headers["content-range"] == "bytes 10229-10238/10240"


def test_gzip_and_flip_faults_change_the_body(hub: LocalHub) -> None:
    """A packed body says that it is packed; a turned bit is the only difference."""
    url = signed_url(hub)
    hub.add_fault(Fault("model.safetensors", "gzip"))
    hub.add_fault(Fault("model.safetensors", "flip", after_bytes=3))
    packed = ask(url, Range="bytes=0-999")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == WEIGHTS[:1000]
    flipped = ask(url, Range="bytes=0-999").body
    assert [i for i in range(1000) if flipped[i] != WEIGHTS[i]] == [3]
    assert ask(url, Range="bytes=0-999").body == WEIGHTS[:1000]


@pytest.mark.parametrize("kind", ["slow", "stall"])
def test_waiting_faults_outlast_a_timeout_and_then_go_on(hub: LocalHub, kind: str) -> None:
    """A client with less patience gives up; one with more gets everything."""
    url = signed_url(hub)
    hub.add_fault(Fault("model.safetensors", kind, seconds=0.4, after_bytes=100, times=2))
    with pytest.raises(TimeoutError):
        ask(url, timeout_s=0.1)
    start_s = time.monotonic()
    assert ask(url).body == WEIGHTS
    assert time.monotonic() - start_s > 0.35


def test_closing_does_not_wait_for_a_stalled_answer(tmp_path: Path) -> None:
    """A Hub with a waiting fault and an idle connection ends at once."""
    hub = LocalHub(tmp_path / "hub")
    hub.add_commit("alice/model", files={"model.safetensors": WEIGHTS})
    url = signed_url(hub)
    hub.add_fault(Fault("model.safetensors", "stall", seconds=60.0, origin="storage"))
    idle = socket.create_connection(("127.0.0.1", urlsplit(hub.endpoint).port or 0))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, url)
        while not any(record.origin == "storage" for record in hub.log):
            time.sleep(0.01)
        start_s = time.monotonic()
        hub.close()
        assert time.monotonic() - start_s < 5
        assert waiting.exception() is not None or waiting.result().body == WEIGHTS
    idle.close()


def test_rate_holds_for_all_downloads_together(tmp_path: Path) -> None:
    """Four downloads at once take as long as their bytes at the given rate."""
    content = bytes(100_000)
    with LocalHub(tmp_path / "hub", bytes_per_s=800_000) as hub:
        hub.add_commit("alice/model", files={"model.safetensors": content})
        url = signed_url(hub)
        start_s = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            bodies = [answer.body for answer in pool.map(ask, [url] * 4)]
        elapsed_s = time.monotonic() - start_s
    assert bodies == [content] * 4
    assert 0.45 < elapsed_s < 2.0

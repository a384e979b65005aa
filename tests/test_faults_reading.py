"""Reading through a network that fails in every way: real commands, real HTTP, a faulty Hub."""

from __future__ import annotations

import ast
import ctypes
import gzip
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from faulty_network import (
    Reply,
    foreign_settings,
    free_port,
    listening,
    meanwhile,
    place_of,
    proxied,
    rename_loopback,
)
from hub_fixtures import (
    ALICE,
    Commands,
    Done,
    add_base,
    add_branches,
    commands_for,
    files_of,
    wide_line,
)
from local_hub_helpers import ask
from trajectories import Run, digest, rank_one_line, with_method, write_run

import alpharl_hub
from alpharl_hub.errors import RangeReadError, SourceError
from alpharl_hub.local_hub import Fault, LocalHub
from alpharl_hub.sources.contents import open_contents
from alpharl_hub.sources.http_addresses import AddressRules, is_private
from alpharl_hub.sources.hub import HubFolder, pin_place
from alpharl_hub.sources.hub_client import HubClient
from alpharl_hub.sources.hub_uri import parse_place
from alpharl_hub.sources.patience import Cancelled, Patience
from alpharl_hub.sources.verification import verify_weights
from alpharl_hub.trajectory import Checkpoint

STEPS = (10, 20, 30)
CERTIFICATE = Path(__file__).parent / "data" / "loopback.pem"
PACKAGE = Path(alpharl_hub.__file__).parent


@pytest.fixture(autouse=True)
def _own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in foreign_settings():
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def calm(hub: LocalHub) -> None:
    """Start every test without faults and with an empty log."""
    hub.clear_faults()
    hub.clear_log()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, hub: LocalHub) -> Run:
    """A tiny run, as lab/run and lab/base on the Hub."""
    found = write_run(tmp_path_factory.mktemp("run"), STEPS, rank_one_line())
    add_base(hub, "lab/base", found)
    add_branches(hub, "lab/run", found)
    return found


@pytest.fixture(scope="module")
def whole(run: Run, commands: Commands) -> str:
    """What predict makes of the run's folders, with no network at all."""
    output = commands.folder / "local"
    done = commands.run("predict", *run.arguments("-o", str(output), "--target-step", "60"))
    assert done.code == 0, done.stderr
    return digest(output)


def predict(commands: Commands, output: Path, *more: str, **options: str) -> Done:
    """Predict from lab/run with -v."""
    named = ("lab/run", "--base", "lab/base") if not more or more[0].startswith("-") else ()
    words = ("predict", *named, *more, "--target-step", "60", "-o", output, "-v")
    return commands.run(*words, **options)


Connect = Callable[..., HubClient]


@pytest.fixture
def connect(hub: LocalHub) -> Iterator[Connect]:
    """Make clients whose own waits take no time, of this Hub unless told, closed at the end."""
    made: list[HubClient] = []

    def make(token: str | None = None, endpoint: str = hub.endpoint, **options: Any) -> HubClient:
        patience = Patience(sleep=lambda seconds: None)
        made.append(HubClient(token, patience, endpoint=endpoint, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


def folder_of(client: HubClient, repo: str = "lab/base", **place: object) -> HubFolder:
    """The main branch of a repo, or another place in it."""
    if place:
        return HubFolder(client, Checkpoint(source=repo, **place))  # type: ignore[arg-type]
    _, store = pin_place(client, parse_place(repo))
    assert isinstance(store, HubFolder)
    return store


def read_file(store: HubFolder, name: str = "model.safetensors", size: int | None = None) -> bytes:
    """A file in two pieces, or its first `size` bytes in one."""
    stored = store.files()[name]
    buffer = bytearray(stored.num_bytes if size is None else size)
    middle = len(buffer) // 2 if size is None else 0
    store.read_into(name, 0, memoryview(buffer)[:middle])
    store.read_into(name, middle, memoryview(buffer)[middle:])
    return bytes(buffer)


def one_line(done: Done) -> str:
    """The one line that a command failed with, between what -v has told and its causes."""
    assert (done.code, done.stdout) == (1, ""), done.stderr
    lines = done.stderr.splitlines()
    while lines[-1].startswith("  because of "):
        del lines[-1]
    *told, line = lines
    assert line.startswith("Error: "), done.stderr
    assert not [words for words in told if words.startswith(("Error", "Traceback"))]
    return line


# -- a busy or failing server --------------------------------------------------------------------


def test_bursts_of_failures_are_waited_out_and_told(
    hub: LocalHub, commands: Commands, run: Run, whole: str, tmp_path: Path
) -> None:
    """500, 502, 503 and 504 of the API and the store, one after the other: the same bytes."""
    for status in (500, 502):
        hub.add_fault(Fault("/refs", "status", status=status))
    for status in (503, 504):
        hub.add_fault(Fault(".safetensors", "status", status=status, origin="storage"))
    done = predict(commands, tmp_path / "out")
    assert done.code == 0, done.stderr
    assert digest(tmp_path / "out") == whole
    assert {500, 502, 503, 504} <= {record.status for record in hub.log}
    for status in (500, 502, 503, 504):
        assert f"answered {status}" in done.stderr


def test_limits_are_kept_as_long_as_the_server_says(
    hub: LocalHub, commands: Commands, run: Run
) -> None:
    """Retry-After and the Hub's RateLimit: each time the two seconds pass, and are shown."""
    seconds, limit = ("Retry-After", "2"), ("RateLimit", '"resolvers";r=0;t=2')
    hub.add_fault(Fault("/api/models/lab/base/refs", "status", status=429, headers=(limit,)))
    hub.add_fault(Fault("/download/", "status", status=429, headers=(seconds,)))
    started_s = time.monotonic()
    done = commands.run("inspect", "lab/run", "--base", "lab/base", "-v")
    assert time.monotonic() - started_s >= 4
    assert done.code == 0, done.stderr
    waits = [line for line in done.stderr.splitlines() if line.startswith("waiting 2 s: ")]
    assert len([line for line in waits if "answered 429" in line]) == 2


def test_a_longer_wait_stops_and_the_run_goes_on_later(
    hub: LocalHub, commands: Commands, tmp_path: Path
) -> None:
    """In the middle of the weights the store asks for an hour: one line; then it is finished."""
    found = write_run(tmp_path / "wide", STEPS, wide_line(300), last_options={"num_shards": 4})
    add_base(hub, "lab/wide-base", found)
    add_branches(hub, "lab/wide", found)
    more = ("lab/wide", "--base", "lab/wide-base")
    assert predict(commands, tmp_path / "straight", *more).code == 0
    served = [r.bytes_sent for r in hub.log if r.origin == "storage"]
    hour = (("Retry-After", "3600"),)
    skip = next(i for i, sent in enumerate(accumulate(served)) if sent > 0.8 * sum(served))
    hub.add_fault(Fault("/download/", "status", status=429, headers=hour, times=99, skip=skip))
    line = one_line(predict(commands, tmp_path / "out", *more))
    assert "asks to wait 3600 s, more than the 600 s that are waited here; try again later" in line
    assert not (tmp_path / "out").exists()
    hub.clear_faults()
    hub.clear_log()
    done = predict(commands, tmp_path / "out", *more)
    assert done.code == 0, done.stderr
    assert digest(tmp_path / "out") == digest(tmp_path / "straight")
    assert sum(r.bytes_sent for r in hub.log if r.origin == "storage") < 0.9 * sum(served)


def test_a_hub_that_comes_up_late(run: Run, tmp_path: Path) -> None:
    """Connections are refused at first; every attempt is told, and then it is read."""
    with LocalHub(tmp_path / "hub") as hub:
        add_base(hub, "lab/base", run)
        add_branches(hub, "lab/run", run)
    port = free_port()
    late = Commands(tmp_path, f"http://127.0.0.1:{port}", tmp_path / "home")
    found: list[Done] = []
    words = ("inspect", "lab/run", "--base", "lab/base", "-v")
    thread = threading.Thread(target=lambda: found.append(late.run(*words)))
    thread.start()
    time.sleep(1.5)
    with LocalHub(tmp_path / "hub", port=port):
        thread.join()
    late.close()
    assert found[0].code == 0, found[0].stderr
    assert f"127.0.0.1:{port} is out of reach" in found[0].stderr


def test_lost_connections_everywhere_at_once(
    hub: LocalHub, commands: Commands, run: Run, whole: str, tmp_path: Path
) -> None:
    """Dropped before the answer, reset, cut in a body: the same bytes, from the byte reached."""
    for match in ("/refs", "/resolve/", "/download/"):
        hub.add_fault(Fault(match, "drop"))
    for match in ("/tree/", "config.json", "/download/"):
        hub.add_fault(Fault(match, "reset"))
    hub.add_fault(Fault("/tree/", "cut", after_bytes=20, skip=1))
    hub.add_fault(Fault("/download/", "cut", after_bytes=900, times=3))
    hub.add_fault(Fault("/download/", "reset", after_bytes=500, times=2))
    done = predict(commands, tmp_path / "out")
    assert done.code == 0, done.stderr
    assert digest(tmp_path / "out") == whole
    assert json.loads(ask(f"{hub.endpoint}/local-hub/faults").body) == []
    assert "connection closed without an answer" in done.stderr
    cut_at = [
        (r.path, r.range[0] + r.bytes_sent, r.range[1])
        for r in hub.log
        if r.origin == "storage" and r.range and r.bytes_sent == 900 != r.range[1] - r.range[0]
    ]
    asked = {(r.path, *r.range) for r in hub.log if r.range}
    assert len(cut_at) == 3
    assert set(cut_at) <= asked


def test_answers_to_another_question(
    hub: LocalHub, commands: Commands, run: Run, whole: str, tmp_path: Path
) -> None:
    """The whole file, another part of it, or packed bytes: the same model, and -v tells of them."""
    for kind in ("ignore_range", "wrong_range", "gzip"):
        hub.add_fault(Fault("/download/", kind))  # type: ignore[arg-type]
    done = predict(commands, tmp_path / "out")
    assert done.code == 0, done.stderr
    assert digest(tmp_path / "out") == whole
    assert json.loads(ask(f"{hub.endpoint}/local-hub/faults").body) == []
    waits = [line for line in done.stderr.splitlines() if line.startswith("waiting 1 s: lab/")]
    assert len([line for line in waits if line.endswith("sent another part of the file")]) == 1
    assert len([line for line in waits if "sent compressed bytes" in line]) == 1


def questions(client: HubClient) -> dict[str, Callable[[], object]]:
    """What is asked for page by page."""
    return {
        "tree": lambda: client.tree("lab/x", "0" * 40),
        "history": lambda: client.history("lab/x", "0" * 40),
        "repos": lambda: client.models_of("lab", "x"),
    }


@pytest.mark.parametrize("name", ["tree", "history", "repos"])
def test_listings_without_end(connect: Connect, name: str) -> None:
    """A page that comes again is noticed at once, and of new ones a thousand are read."""

    def link(query: str) -> dict[str, str]:
        return {"Link": f'</anywhere?{query}>; rel="next"'}

    def ends_in(reply: Callable[[int], Reply]) -> tuple[str, int]:
        with listening(reply) as other, pytest.raises(SourceError) as caught:
            questions(connect(endpoint=other.url))[name]()
        return str(caught.value), len(other.requests)

    text, num_pages = ends_in(lambda number: (200, link(f"cursor={number % 3}"), b"[]"))
    assert "leads back to a page that it gave before; check HF_ENDPOINT" in text
    assert num_pages == 4
    text, num_pages = ends_in(lambda number: (200, link(f"cursor={number}"), b"[]"))
    assert "the Hub's listing is longer than 1000 pages or 256 MiB; check HF_ENDPOINT" in text
    assert num_pages < 1001
    long = b"[" + b" " * (60 << 20) + b"]"
    text, num_pages = ends_in(lambda number: (200, link(f"cursor={number}"), long))
    assert "longer than 1000 pages or 256 MiB" in text
    assert num_pages == 5


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("status", [200, 404])
def test_answers_without_end(connect: Connect, status: int, is_packed: bool) -> None:
    """Of an answer, or of a refusal, no more is unpacked or kept than 64 MiB."""
    body = b" " * ((64 << 20) + 1)
    headers = {"Content-Encoding": "gzip"} if is_packed else {}
    reply = (status, headers, gzip.compress(body, 1) if is_packed else body)
    with listening(lambda number: reply) as other:
        client = connect(endpoint=other.url)
        with pytest.raises(SourceError, match="more than 64 MiB to one question; check HF_END"):
            client.refs("lab/x")
    assert len(other.requests) == 1


SHAPES = {
    "a page": b"<html>Please log in</html>",
    "nothing": b"",
    "a number": b"7",
    "depth": b"[" * 100_000,
    "digits": b"[" + b"9" * 100_000 + b"]",
    "no text": b"\xff\xfe\x00",
    "no rows": b"[7]",
    "a size of words": b'[{"type": "file", "path": "x", "size": "large"}]',
    "a size below nothing": b'[{"type": "file", "path": "x", "size": -1}]',
    "an endless size": b'[{"type": "file", "path": "x", "size": 1e999}]',
}


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_that_are_none_of_a_hubs(connect: Connect, shape: str) -> None:
    """A login page, half a document, another one: one line that names the server."""
    with listening(lambda number: (200, {}, SHAPES[shape])) as other:
        client = connect(endpoint=other.url)
        with pytest.raises(SourceError) as caught:
            client.tree("lab/x", "0" * 40)
    host = other.url.removeprefix("http://")
    line = f"lab/x@{'0' * 12}: {host} does not answer as a Hub does; check HF_ENDPOINT"
    assert str(caught.value) == line


@pytest.mark.parametrize("shape", SHAPES)
def test_refusals_of_any_shape(connect: Connect, shape: str) -> None:
    """The same as the body of a 404, and of a 503 that passes: what counts is the status."""

    def reply(number: int) -> Reply:
        return 503 if number == 1 else 404, {}, SHAPES[shape]

    refused = pytest.raises(SourceError, match=r"refused by the Hub \(status 404\)")
    with listening(reply) as other, refused:
        connect(endpoint=other.url).tree("lab/x", "0" * 40)
    assert len(other.requests) == 2


@pytest.mark.parametrize("match", ["/refs", "/tree/", "/resolve/"])
@pytest.mark.parametrize("kind", ["slow", "stall"])
def test_a_silent_api_is_left(
    connect: Connect, hub: LocalHub, run: Run, kind: str, match: str
) -> None:
    """No byte for longer than the timeout: asked again, where the answer then comes."""
    if (kind, match) == ("stall", "/resolve/"):
        match = "/revision/"  # a HEAD request has no body that could stall
    hub.add_fault(Fault(match, kind, seconds=5.0, after_bytes=10))  # type: ignore[arg-type]
    started_s = time.monotonic()
    client = connect(timeout_s=0.3)
    assert client.commit_of("lab/base", "main") == hub.refs("lab/base")["refs/heads/main"]
    assert read_file(folder_of(client)) == (run.base / "model.safetensors").read_bytes()
    assert time.monotonic() - started_s < 4
    assert json.loads(ask(f"{hub.endpoint}/local-hub/faults").body) == []


@pytest.mark.parametrize("kind", ["slow", "stall"])
def test_a_silent_store_is_left(connect: Connect, hub: LocalHub, run: Run, kind: str) -> None:
    """The same for the bytes of weights; those that came are not asked for again."""
    hub.add_fault(Fault("/download/", kind, seconds=5.0, after_bytes=100))  # type: ignore[arg-type]
    started_s = time.monotonic()
    found = read_file(folder_of(connect(timeout_s=0.3)))
    assert found == (run.base / "model.safetensors").read_bytes()
    assert time.monotonic() - started_s < 4
    starts = [r.range[0] for r in hub.log if r.origin == "storage" and r.range]
    assert (100 in starts) == (kind == "stall")


def test_a_steady_trickle_is_no_silence(connect: Connect, run: Run, tmp_path: Path) -> None:
    """The timeout holds for every receive and not for the whole: slow is slow and nothing else."""
    size = (run.base / "model.safetensors").stat().st_size
    with LocalHub(tmp_path / "hub", bytes_per_s=size / 1.5) as slow:
        add_base(slow, "lab/base", run)
        started_s = time.monotonic()
        found = read_file(folder_of(connect(endpoint=slow.endpoint, timeout_s=0.5)))
        assert time.monotonic() - started_s > 1
        assert found == (run.base / "model.safetensors").read_bytes()
        assert {r.status for r in slow.log if r.origin == "storage"} == {206}


CLOCKS = re.compile(r"time\.(time|time_ns|localtime)|(datetime\.)?date(time)?\.(utc)?(now|today)")


def test_waits_and_timeouts_know_no_clock_that_can_be_set() -> None:
    """time.time, datetime.now and their like are asked in one place: a date without the server's.

    Of a clock that is set back a wait must not notice anything.
    """
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "local_hub"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and CLOCKS.fullmatch(ast.unparse(node)):
                found.add((path.relative_to(PACKAGE).as_posix(), ast.unparse(node)))
    assert found == {("sources/http_answers.py", "time.time")}


# -- what changes under a run --------------------------------------------------------------------


def test_a_commit_that_goes_in_the_middle(
    hub: LocalHub, commands: Commands, run: Run, tmp_path: Path
) -> None:
    """A force push takes a pinned commit away: one line names its step and its commit."""
    commits = add_branches(hub, "lab/gone", run)
    slow = Fault("/lab/gone/", "slow", origin="storage", skip=4, seconds=1.0, times=4)
    hub.add_fault(slow)

    def is_reading() -> bool:
        return len([r for r in hub.log if r.origin == "storage" and r.repo == "lab/gone"]) >= 4

    with meanwhile(is_reading, lambda: hub.forget_commit("lab/gone", commits[20])):
        line = one_line(predict(commands, tmp_path / "out", "lab/gone", "--base", "lab/base"))
    assert f"lab/gone@step_20 (commit {commits[20][:12]}): model.safetensors: " in line
    assert line.endswith("it may have been moved or deleted")


def test_a_commit_that_is_gone_when_it_is_resolved(
    connect: Connect, hub: LocalHub, run: Run
) -> None:
    """Where nothing else tells the step the line does; it is told apart from a wrong name."""
    sha = hub.add_commit("lab/commits", files=files_of(run.folder(20)))
    place = {"step": 20, "revision": sha, "commit": sha, "folder": ""}
    store = folder_of(connect(), "lab/commits", **place)
    assert "model.safetensors" in store.files()
    hub.forget_commit("lab/commits", sha)
    hub.add_commit("lab/commits", files={"x": b""})
    with pytest.raises(SourceError) as caught:
        read_file(store)
    assert str(caught.value).startswith(
        f"lab/commits@{sha[:12]} (step 20): model.safetensors: the commit is gone"
    )


def test_a_repo_that_turns_private_in_the_middle(
    hub: LocalHub, commands: Commands, run: Run, tmp_path: Path
) -> None:
    """Its signed addresses end, new ones are refused: one line says so, and how to go on."""
    add_branches(hub, "lab/closing", run)
    hub.add_fault(Fault("/lab/closing/", "slow", origin="storage", times=999, seconds=0.1))

    def is_opened() -> bool:
        return any(r.path == "/api/models/lab/closing" for r in hub.log)

    def close() -> None:
        hub.set_private("lab/closing", True)
        hub.clear_faults()
        expired = Fault("/lab/closing/", "status", status=403, origin="storage", times=99)
        hub.add_fault(expired)

    with meanwhile(is_opened, close):
        line = one_line(predict(commands, tmp_path / "out", "lab/closing", "--base", "lab/base"))
    assert "lab/closing@step_" in line
    assert "(commit " in line
    assert "made private or deleted meanwhile; private repos need --token or HF_TOKEN" in line
    hub.clear_faults()
    done = predict(commands, tmp_path / "out", "lab/closing", "--base", "lab/base", token=ALICE)
    assert done.code == 0, done.stderr


# -- bytes are checked ---------------------------------------------------------------------------


def test_a_changed_bit_in_a_small_file_is_noticed(
    hub: LocalHub, commands: Commands, run: Run, tmp_path: Path
) -> None:
    """git's own name for config.json is compared: it is copied into the model."""
    hub.add_fault(Fault("config.json", "flip", after_bytes=40, times=9, method="GET"))
    line = one_line(predict(commands, tmp_path / "out"))
    assert "config.json: its bytes are not those that the Hub has a checksum of" in line
    assert not (tmp_path / "out").exists()


def test_a_changed_bit_in_a_large_file_read_whole(
    connect: Connect, hub: LocalHub, run: Run, tmp_path: Path
) -> None:
    """A tokenizer lies in LFS: its SHA-256 is compared."""
    content = bytes(range(256)) * 50
    commit = hub.add_commit("lab/token", files={"tokenizer.model": content})
    store = folder_of(connect(), "lab/token")
    assert store.files()["tokenizer.model"].sha256 == hashlib.sha256(content).hexdigest()
    assert read_file(store, "tokenizer.model", len(content)) == content
    hub.add_fault(Fault("tokenizer.model", "flip", after_bytes=7, origin="storage"))
    with pytest.raises(RangeReadError, match=f"lab/token@main .commit {commit[:12]}.*checksum"):
        read_file(store, "tokenizer.model", len(content))


def test_every_weight_file_can_be_verified(connect: Connect, hub: LocalHub, run: Run) -> None:
    """Read whole, each file has the SHA-256 that the Hub tells; a changed bit names its step."""
    client = connect()
    commits = {s: hub.refs("lab/run")[f"refs/heads/step_{s}"] for s in STEPS}
    places = [Checkpoint(s, "lab/run", f"step_{s}", sha, "") for s, sha in commits.items()]
    opened = [open_contents(place, HubFolder(client, place)) for place in places]
    seen: list[tuple[int, int]] = []
    found = verify_weights(opened, on_progress=lambda *bytes_: seen.append(bytes_))
    size = sum((run.folder(s) / "model.safetensors").stat().st_size for s in STEPS)
    assert (found.num_files, found.num_bytes, found.unknown) == (3, size, ())
    assert seen[-1] == (size, size)
    hub.add_fault(Fault(f"/{commits[20]}/model.safetensors", "flip", after_bytes=1000))
    with pytest.raises(RangeReadError, match=r"lab/run@step_20 \(step 20\): model.safetensors: "):
        verify_weights(opened, piece_bytes=4096)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Cancelled):
        verify_weights(opened, stop=stopped)


def test_verify_reads_all_files_before_anything_is_done(
    hub: LocalHub, commands: Commands, tmp_path: Path
) -> None:
    """--verify says what was compared; a changed bit ends the command before its first window."""
    done = predict(commands, tmp_path / "a", "--verify")
    assert done.code == 0, done.stderr
    assert "4 weight files" in done.stderr
    commit = hub.refs("lab/run")["refs/heads/step_20"]
    hub.add_fault(Fault(f"/{commit}/model.safetensors", "flip", after_bytes=1000))
    refused = predict(commands, tmp_path / "b", "--verify")
    assert (refused.code, (tmp_path / "b").exists()) == (1, False)
    assert "model.safetensors" in refused.stderr.splitlines()[-1]


# -- where requests go ---------------------------------------------------------------------------


def test_all_requests_go_through_the_proxy(
    hub: LocalHub, commands: Commands, run: Run, whole: str, tmp_path: Path
) -> None:
    """API and weights alike; NO_PROXY takes both out of it, of a proxy that is down too."""
    with proxied() as proxy:
        done = predict(commands, tmp_path / "a", HTTP_PROXY=proxy.url, NO_PROXY="")
        assert done.code == 0, done.stderr
        assert digest(tmp_path / "a") == whole
        served = [f"{r.method} {r.path}" for r in hub.log]
        asked = [words.partition("?")[0].split("127.0.0.1")[-1] for words in proxy.asked]
        assert len(asked) == len(served) > 10
        assert {"/refs" in path for path in asked} == {True, False}
        assert {"/download/" in path for path in asked} == {True, False}
        num_asked = len(proxy.asked)
        options = {"HTTP_PROXY": proxy.url, "NO_PROXY": "127.0.0.1,localhost"}
        assert predict(commands, tmp_path / "b", **options).code == 0
        assert len(proxy.asked) == num_asked
    dead = f"http://127.0.0.1:{free_port()}"
    options = {"HTTP_PROXY": dead, "NO_PROXY": "127.0.0.1,localhost"}
    assert predict(commands, tmp_path / "c", **options).code == 0


@pytest.fixture(scope="module")
def tls_commands(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalHub, Commands]]:
    """A Hub that is reached by TLS only, with a certificate that nobody trusts, and commands."""
    folder = tmp_path_factory.mktemp("tls")
    with LocalHub(folder / "hub", certificate=CERTIFICATE, all_over_tls=True) as hub:
        add_base(hub, "lab/base", run)
        add_branches(hub, "lab/run", run)
        with commands_for(folder / "commands", hub) as found:
            yield hub, found


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_company_certificate_and_proxy(
    tls_commands: tuple[LocalHub, Commands], whole: str, tmp_path: Path, name: str
) -> None:
    """With the bundle all is read through tunnels; the proxy sees names of hosts and no more."""
    hub, commands = tls_commands
    with proxied() as proxy:
        empty = {"SSL_CERT_FILE": "", "REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": ""}
        variables = {**empty, name: str(CERTIFICATE), "HTTPS_PROXY": proxy.url, "NO_PROXY": ""}
        done = predict(commands, tmp_path / "out", **variables)
    assert done.code == 0, done.stderr
    assert digest(tmp_path / "out") == whole
    hosts = {place_of(url) for url in (hub.endpoint, hub.storage_endpoint)}
    assert set(proxy.asked) == {f"CONNECT {host}:{port}" for host, port in hosts}


def test_a_certificate_that_is_not_trusted(
    tls_commands: tuple[LocalHub, Commands], tmp_path: Path
) -> None:
    """Refused at once, with the variable that would help; a bundle that is not there is named."""
    _, commands = tls_commands
    started_s = time.monotonic()
    line = one_line(predict(commands, tmp_path / "out"))
    assert time.monotonic() - started_s < 5
    assert "is not trusted (" in line
    assert line.endswith("name the right CA bundle in SSL_CERT_FILE")
    missing = {"REQUESTS_CA_BUNDLE": str(tmp_path / "missing.pem")}
    assert "CA bundle" in one_line(predict(commands, tmp_path / "out", **missing))


PUBLIC, NEAR = "http://hub.invalid:80", "http://localhost:1"


@pytest.mark.parametrize(
    "url",
    [
        *("http://10.1.2.3/x", "http://127.0.0.1:80", "http://169.254.169.254/meta", NEAR),
        *("http://[::1]/", "http://[fd00::1]/", "http://[::ffff:10.0.0.1]/", "http://a.localhost"),
        *("http://2130706433/", "http://0x7f.1/", "http://100.64.0.1/", "http://0.0.0.0/"),
        *("http://LOCALHOST./", "http://224.0.0.1/", "http://192.168.1.1:9000"),
    ],
)
def test_what_counts_as_private(url: str) -> None:
    """Numbers of private networks in every notation, this machine, and metadata services."""
    assert is_private(url)
    with pytest.raises(
        SourceError, match=r"a private network, which is not followed; .*allow-host"
    ):
        AddressRules(PUBLIC).check(url, "file")
    AddressRules("http://127.0.0.1:1").check(url, "file")  # then the user is inside, too


@pytest.mark.parametrize("url", ["http://93.184.216.34/x", "http://[2606:4700::1111]/", PUBLIC])
def test_what_counts_as_public(url: str) -> None:
    """Other numbers, and names that nobody knows here."""
    assert not is_private(url)
    AddressRules(PUBLIC).check(url, "file")


def test_a_public_proxy_makes_no_private_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A private endpoint beyond a public proxy lies in that proxy's network, not in the user's."""
    monkeypatch.setenv("HTTP_PROXY", "http://93.184.216.34:3128")
    rules = AddressRules("http://10.0.0.5")
    with pytest.raises(SourceError, match="private network"):
        rules.check("http://10.0.0.6/x", "file")
    monkeypatch.setenv("HTTP_PROXY", "http://10.0.0.1:3128")
    rules.check("http://10.0.0.6/x", "file")


def through(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, proxy_url: str) -> None:
    """Make a public name of this Hub, by way of a proxy that knows it."""
    monkeypatch.setenv("HTTP_PROXY", proxy_url)
    monkeypatch.setenv("NO_PROXY", "")


def test_a_public_hub_sends_nobody_into_a_private_network(
    connect: Connect, hub: LocalHub, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store of this Hub is on localhost: refused for a public endpoint, unless allowed."""
    with proxied({"hub.invalid": place_of(hub.endpoint)}) as proxy:
        through(hub, monkeypatch, proxy.url)
        client = connect(endpoint="http://hub.invalid")
        with pytest.raises(SourceError) as caught:
            read_file(folder_of(client))
        assert "is sent on to localhost, an address of a private network" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not [r for r in hub.log if r.origin == "storage"]
        allowed = connect(endpoint="http://hub.invalid", allowed_hosts={"localhost"})
        assert read_file(folder_of(allowed)) == (run.base / "model.safetensors").read_bytes()


def test_a_mirror_may_be_named_to_every_command(hub: LocalHub, run: Run, tmp_path: Path) -> None:
    """The store of this Hub is on localhost: --allow-host lets `inspect` and `compare` go there."""
    with proxied({"hub.invalid": place_of(hub.endpoint)}) as proxy:
        commands = Commands(tmp_path, "http://hub.invalid", tmp_path / "home")
        through_it = {"HTTP_PROXY": proxy.url, "NO_PROXY": ""}
        compared = ("compare", "lab/run@step_20", "lab/run@step_30", "--base", "lab/base")
        for words in (compared, ("inspect", "lab/run", "--base", "lab/base")):
            line = one_line(commands.run(*words, **through_it))
            assert "an address of a private network" in line
            assert line.endswith("say so with --allow-host localhost")
            done = commands.run(*words, "--allow-host", "LOCALHOST.", **through_it)
            assert done.code == 0, done.stderr
        commands.close()


HOSTS = {
    "https://mirror.corp:8443/x": "write --allow-host mirror.corp",
    "mirror.corp:80": "write --allow-host mirror.corp",
    "mirror.corp/": "write --allow-host mirror.corp",
    "http://[fd00::1]:80/": "write --allow-host fd00::1",
    "me@mirror.corp": "write --allow-host mirror.corp",
    "*.corp": "write --allow-host HOST, once for each",
    "a.corp,b.corp": "write --allow-host HOST, once for each",
    "http://[::1": "write --allow-host HOST, once for each",
    "": "write --allow-host HOST, once for each",
}


@pytest.mark.parametrize("text", HOSTS)
def test_no_other_text_passes_for_a_host(commands: Commands, text: str) -> None:
    """A URL, a port, a pattern or a list would allow nothing: what to type is said instead."""
    for words in (("compare", "a/b", "a/c"), ("push", ".", "a/b"), ("inspect", "a/b")):
        done = commands.run(*words, "--allow-host", text)
        assert (done.code, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1].endswith(HOSTS[text]), done.stderr


TARGETS = {
    "file:///etc/passwd": "not one of the web",
    "ftp://127.0.0.1/x": "not one of the web",
    "http://169.254.169.254/latest/meta-data": "a private network, which is not followed",
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("match", ["/refs", "/tree/", "/resolve/", "config.json", "/download/"])
def test_redirects_to_where_nobody_should_go(
    connect: Connect,
    hub: LocalHub,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    match: str,
    target: str,
) -> None:
    """Whatever was asked, such a redirect is one line, and nothing goes there."""
    location = (("Location", target),)
    hub.add_fault(Fault(match, "status", status=302, headers=location, times=9))
    with proxied({"hub.invalid": place_of(hub.endpoint)}) as proxy:
        through(hub, monkeypatch, proxy.url)
        client = connect(endpoint="http://hub.invalid", allowed_hosts={"localhost"})
        with pytest.raises(SourceError, match=TARGETS[target]) as caught:
            read_file(folder_of(client), "config.json" if match == "config.json" else WEIGHTS)
        assert "\n" not in str(caught.value)
        assert not [words for words in proxy.asked if "169.254" in words]


WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("match", ["/refs", "/tree/", "/resolve/", "config.json", "/download/"])
def test_a_name_that_leads_elsewhere_when_it_is_used(
    connect: Connect,
    hub: LocalHub,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    match: str,
) -> None:
    """Public when it is checked, here when it is asked: the connection is looked at before use."""
    rename_loopback(monkeypatch, "hub.example", "store.example")
    endpoint = hub.endpoint.replace("127.0.0.1", "hub.example")
    name = "config.json" if match == "config.json" else WEIGHTS
    with listening() as other:
        inside = other.url.replace("127.0.0.1", "store.example")
        location = (("Location", f"{inside}/x"),)
        hub.add_fault(Fault(match, "status", status=302, headers=location, times=9))
        client = connect(endpoint=endpoint, allowed_hosts={"localhost"})
        line = "is sent on to store.example, an address of a private network, which is not followed"
        with pytest.raises(SourceError, match=line) as caught:
            read_file(folder_of(client), name)
        assert "\n" not in str(caught.value)
        assert other.requests == []
        allowed = connect(endpoint=endpoint, allowed_hosts={"localhost", "store.example"})
        with pytest.raises(SourceError, match="404"):
            read_file(folder_of(allowed), name)
        assert other.requests
    hub.clear_faults()
    assert read_file(folder_of(client), WEIGHTS) == (run.base / WEIGHTS).read_bytes()


def test_no_way_down_from_tls(
    connect: Connect,
    tls_commands: tuple[LocalHub, Commands],
    hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Hub with TLS that sends on to an address without is refused; a company may allow it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    secure, _ = tls_commands
    for match in ("/refs", "/resolve/"):
        plain = hub.endpoint.replace("127.0.0.1", "localhost")
        location = (("Location", f"{plain}/lab/base/x"),)
        secure.add_fault(Fault(match, "status", status=302, headers=location))
        client = connect(endpoint=secure.endpoint)
        with pytest.raises(SourceError, match="without encryption, which is not followed"):
            read_file(folder_of(client))
    assert hub.log == ()
    rules = AddressRules(secure.endpoint, frozenset({"localhost"}))
    assert rules.follow(secure.endpoint, f"{hub.storage_endpoint}/x", "file").startswith("http:")


@pytest.mark.parametrize("match", ["/refs", "/tree/", "/resolve/", "config.json"])
def test_the_token_goes_to_no_other_server(
    connect: Connect, hub: LocalHub, run: Run, match: str
) -> None:
    """Sent elsewhere by an API answer, a resolve or a small file: no header and no URL has it."""
    with listening() as other:
        location = (("Location", f"{other.url}/elsewhere"),)
        hub.add_fault(Fault(match, "status", status=302, headers=location, times=9))
        client = connect(ALICE)
        with pytest.raises(SourceError):
            read_file(folder_of(client), "config.json" if match == "config.json" else WEIGHTS)
    assert [path for path, _ in other.requests if path.endswith("/elsewhere")]
    assert all("authorization" not in headers for _, headers in other.requests)
    assert ALICE not in str(other.requests)
    assert {r.had_authorization for r in hub.log if r.origin == "api"} == {True}


def test_renamed_repos_are_found_where_they_are(connect: Connect, hub: LocalHub, run: Run) -> None:
    """A redirect within the Hub is followed with the token: renamed repos answer so."""
    secret = hub.add_commit("lab/secret", files=files_of(run.base), private=True)
    location = (("Location", "/api/models/lab/secret/refs"),)
    hub.add_fault(Fault("/lab/old/refs", "status", status=307, headers=location))
    client = connect(ALICE)
    assert client.refs("lab/old").branches == {"main": secret}


def test_a_login_in_the_endpoint_is_not_shown(connect: Connect, run: Run) -> None:
    """HF_ENDPOINT may hold a password; messages name the host only."""
    place = f"127.0.0.1:{free_port()}"
    with pytest.raises(SourceError, match=f"{place} is out of reach") as caught:
        connect(endpoint=f"http://me:pa55word@{place}").refs("lab/run")
    assert "pa55word" not in str(caught.value)


# -- what is written -----------------------------------------------------------------------------


def file_sizes(folder: Path) -> list[int]:
    """The lengths of all files of a folder."""
    return sorted({path.stat().st_size for path in folder.rglob("*") if path.is_file()})


def test_a_full_disk_at_any_write(
    hub: LocalHub, commands: Commands, run: Run, whole: str, tmp_path: Path
) -> None:
    """The kernel refuses files beyond a length, at every length that matters: one line, then on.

    Each start goes on where the one before it was stopped.
    """
    assert predict(commands, tmp_path / "first").code == 0
    lengths = [4000, *(size - 1 for size in file_sizes(tmp_path / "first") if size > 4000)]
    output = tmp_path / "out"
    for limit in lengths:
        done = commands.run(
            *("predict", "lab/run", "--base", "lab/base", "--target-step", "60", "-q"),
            *("-o", output),
            max_file_bytes=limit,
        )
        line = one_line(done)
        assert "cannot be written (File too large)" in line, limit
        assert str(tmp_path) in line
        assert not output.exists()
    assert predict(commands, output).code == 0
    assert digest(output) == whole


def _obey_permissions() -> None:
    """Take from root, for a child, the right to pass over permissions (linux/capability.h)."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; not allowed to others, nor needed


def test_an_output_that_turned_read_only(
    hub: LocalHub, commands: Commands, run: Run, whole: str, tmp_path: Path
) -> None:
    """A folder in which nothing can be made: one line; with its rights back the run ends well."""
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o500)
    words = ("predict", "lab/run", "--base", "lab/base", "--target-step", "60", "-o", "place/out")
    ended = subprocess.run(
        [sys.executable, "-m", "alpharl_hub", *with_method(words)],
        env=commands.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=_obey_permissions,
    )
    place.chmod(0o700)
    line = one_line(Done(ended.returncode, ended.stdout, ended.stderr))
    assert "Permission denied" in line
    assert os.listdir(place) == []
    assert predict(commands, place / "out").code == 0
    assert digest(place / "out") == whole


# -- what is said --------------------------------------------------------------------------------


TOKENS = ["hf_" + "aB3" * 11, "company/key+42=="]
ECHOES = {
    "header": lambda words: ({"X-Error-Message": words}, b""),
    "JSON": lambda words: ({}, json.dumps({"error": words}).encode()),
    "escaped": lambda words: (
        {},
        b'{"errors": [{"message": "%s"}]}' % "".join(f"\\u{ord(c):04x}" for c in words).encode(),
    ),
    "text": lambda words: ({"Content-Type": "text/plain"}, words.encode()),
}


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("place", ECHOES)
def test_a_token_that_the_hub_echoes_is_not_shown(connect: Connect, place: str, token: str) -> None:
    """In no line, cause or traceback, as it is, percent-encoded, or in base64 behind a name."""
    encoded = "".join(f"%{ord(char):02x}" for char in token)
    basic = [b64encode(f"{name}:{token}".encode()).decode() for name in ("a", "ab", "abc")]
    headers, body = ECHOES[place](" and ".join([f"you sent {token}", encoded, *basic]))
    refused = pytest.raises(SourceError)
    with listening(lambda number: (418, headers, body)) as other, refused as caught:
        connect(token, endpoint=other.url).refs("lab/run")
    assert other.requests[0][1]["authorization"] == f"Bearer {token}"
    assert "(status 418): you sent *** and *** and " in str(caught.value)
    told = "".join(traceback.format_exception(caught.value))
    assert "HfHubHTTPError" in told
    for secret in (token, encoded, *(text[-12:] for text in basic)):
        assert secret not in told


def test_an_echoed_token_is_not_shown_by_a_command(
    hub: LocalHub, commands: Commands, run: Run
) -> None:
    """Neither by the one line nor by its causes at -v; the server's other words are."""
    token = TOKENS[0]
    echo = (("X-Error-Message", f"no tea: you sent Bearer {token}"),)
    hub.add_fault(Fault("/refs", "status", status=418, headers=echo, times=9))
    done = commands.run("inspect", "lab/run", "-v", token=token)
    assert "(status 418): no tea: you sent *** injected fault" in one_line(done)
    assert "because of HfHubHTTPError: " in done.stderr
    assert token not in done.stderr


def test_an_echoed_token_is_not_in_the_log(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The client logs what the Hub warns of, once per topic, also where all went well."""
    headers = {"X-HF-Warning": f"echo; you sent {TOKENS[1]}"}
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(caplog.handler)
    try:
        with listening(lambda number: (200, headers, b"{}")) as other:
            connect(TOKENS[1], endpoint=other.url).facts("lab/run")
    finally:
        logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"you sent ***"}


def test_a_long_refusal_takes_no_long_time(connect: Connect) -> None:
    """A text made to be searched for secrets again from each of its letters is read in a moment."""
    body = b"?" * 200_000 + b"hf_" * 100_000 + b"//" * 100_000
    with listening(lambda number: (418, {"Content-Type": "text/plain"}, body)) as other:
        start_s = time.monotonic()
        with pytest.raises(SourceError, match="status 418"):
            connect("hf_" * 10, endpoint=other.url).refs("lab/run")
        assert time.monotonic() - start_s < 10


@pytest.mark.parametrize("variables", [{}, {"ALPHARL_DEBUG": "1", "HF_DEBUG": "1"}])
def test_nothing_secret_is_written_or_said(
    hub: LocalHub, commands: Commands, run: Run, tmp_path: Path, variables: dict[str, str]
) -> None:
    """Neither token nor signature: at -vv, in a traceback, in a journal, manifest or card."""
    repo = f"lab/private{len(variables)}"
    add_branches(hub, repo, run, private=True)
    more = ("--token", ALICE, "-vv", "--target-step", "60", "-o", tmp_path / "out")
    hub.add_fault(Fault("/download/", "status", status=503))
    hub.add_fault(Fault("/refs", "status", status=429))
    hub.add_fault(Fault("/download/", "status", status=418, skip=12, times=99))
    words = ("predict", repo, "--base", "lab/base", *more)
    failed = commands.run(*words, **variables)
    assert failed.code == 1
    assert "418" in failed.stderr
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    hub.clear_faults()
    done = commands.run(*words, **variables)
    assert done.code == 0, done.stderr
    kept += [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"alpharl.json", "README.md"} <= {path.name for path in kept if path.exists()}
    texts = [failed.stdout, failed.stderr, done.stdout, done.stderr]
    texts += [path.read_bytes().decode("latin-1") for path in kept if path.exists()]
    for text in texts:
        assert ALICE not in text
        assert "Signature=" not in text
    sent = defaultdict(set)
    for record in hub.log:
        sent[record.origin].add(record.had_authorization)
    assert sent == {"api": {True}, "storage": {False}}

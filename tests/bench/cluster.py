"""How much faster two machines with links of their own read than one: `--executor ray`.

The machines are nodes of a Ray cluster on this one. Each reaches the Hub through a proxy of its
own, which lets through so many bytes a second, as the link of a machine would.
`python -m tests.bench.cluster` measures this part alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

from ray.cluster_utils import Cluster

from alpharl_hub.local_hub.transport import Pacer
from tests.bench.figures import Figure, Table, at_least
from tests.bench.measuring import median, spread
from tests.bench.models import Shapes
from tests.bench.serving import ROOT
from tests.bench.workspace import Workspace, extract_arguments

LINK_BYTES_PER_S = 30e6
NUM_STEPS = 2
SHAPES = Shapes(1024, 2816, 256, 64, layers=16, vocabulary=256)
WINDOW_BYTES = 8 << 20
"""So that there are some fifty windows to share out, without reading for an hour."""

_WARM_UP = ("--include", r"layers\.0\..*[qk]_proj")
_PIECE_BYTES = 64 << 10
_NODE: Mapping[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}

DRIVER = f"""
import json, os, sys, time
from alpharl_hub.windows import plan
plan.WINDOW_BYTES = {WINDOW_BYTES}
from alpharl_hub.cli import main
answers, sys.stdout = sys.stdout, open(os.devnull, "w")
for line in sys.stdin:
    started_s = time.perf_counter()
    main(json.loads(line), standalone_mode=False)
    print(time.perf_counter() - started_s, file=answers, flush=True)
"""


def measure(workspace: Workspace) -> Table:
    """Extract a run with one machine, with two, and again."""
    run = workspace.run(SHAPES, NUM_STEPS)
    num_rounds = 1 if workspace.quick else 3
    one, two = [], []
    with ExitStack() as stack:
        server = stack.enter_context(workspace.serving(run))
        links = [stack.enter_context(link()) for _ in range(2)]
        cluster = stack.enter_context(started_cluster())
        cluster.add_node(**_NODE, env_vars=links[0])
        driver = stack.enter_context(started_driver(server.environment()))
        on_ray = ["--executor", "ray", "--address", cluster.address]

        def extract(*more: str) -> float:
            return driver([*extract_arguments(workspace.fresh("factors")), *on_ray, *more])

        for _ in range(num_rounds):
            extract(*_WARM_UP)
            one.append(extract())
            node = cluster.add_node(**_NODE, env_vars=links[1])
            extract(*_WARM_UP)
            server.clear_log()
            two.append(extract())
            num_bytes = server.asked().sent_bytes
            cluster.remove_node(node)
    ratios = [a / b for a, b in zip(one, two, strict=True)]
    speeds = [[num_bytes / 1e6 / seconds for seconds in found] for found in (one, two)]
    figures = (
        Figure("one machine", median(speeds[0]), "MB/s", None, spread(speeds[0])),
        Figure("two machines", median(speeds[1]), "MB/s", None, spread(speeds[1])),
        Figure("two / one", median(ratios), "x", at_least(1.8), spread(ratios)),
    )
    notes = (
        f"{num_bytes / 1e9:.2f} GB, each machine behind {LINK_BYTES_PER_S / 1e6:.0f} MB/s of its "
        f"own, one CPU each; windows of {WINDOW_BYTES >> 20} MiB; worker processes started before.",
    )
    return Table("cluster", "extract on Ray", figures, notes)


class _Relay(BaseHTTPRequestHandler):
    """Passes requests on, and answers back at the rate of the link."""

    protocol_version = "HTTP/1.1"
    server: _Link

    def do_GET(self) -> None:
        """Fetch from the Hub."""
        place = urlsplit(self.path)
        assert place.hostname is not None
        upstream = HTTPConnection(place.hostname, place.port or 80, timeout=60)
        try:
            target = f"{place.path}?{place.query}" if place.query else place.path
            upstream.request("GET", target, headers=dict(self.headers.items()))
            answer = upstream.getresponse()
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            while data := answer.read(_PIECE_BYTES):
                self.server.pacer.wait(len(data))
                self.wfile.write(data)
        finally:
            upstream.close()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class _Link(ThreadingHTTPServer):
    """A proxy that lets so many bytes through in a second."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.pacer = Pacer(LINK_BYTES_PER_S, Event())


@contextmanager
def link() -> Iterator[dict[str, str]]:
    """Serve one machine's way to the Hub; gives the environment that leads there."""
    with _Link() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield {"HTTP_PROXY": url, "http_proxy": url, "NO_PROXY": "", "no_proxy": ""}
        server.shutdown()


@contextmanager
def started_cluster() -> Iterator[Any]:
    """Start the head of a cluster, on which nothing is computed."""
    path_before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    head = {**_NODE, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.pop("PYTHONPATH")
        if path_before is not None:
            os.environ["PYTHONPATH"] = path_before


@contextmanager
def started_driver(environment: Mapping[str, str]) -> Iterator[Any]:
    """Start a process that runs commands; gives a function that returns a command's seconds."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(arguments: list[str]) -> float:
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        yield run
        process.stdin.close()


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="alpharl-bench-") as folder:
        started_s = time.monotonic()
        table = measure(Workspace(Path(folder), quick="--quick" in sys.argv))
        print(table.text() + f"{time.monotonic() - started_s:.0f} s")


if __name__ == "__main__":
    main()

"""Starts measurements in fresh processes, and puts their figures together."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.serving import ROOT, ServedFile, Server


@dataclass(frozen=True)
class Cost:
    """What one process cost after its imports; peak memory counts everything.

    `read_bytes` are those read from files.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    read_bytes: int


def run_child(name: str, environment: Mapping[str, str] | None = None, **options: object) -> Cost:
    """Do one of the works of `child` in a fresh process."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.bench.child", name],
        input=json.dumps(options),
        env=None if environment is None else dict(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise RuntimeError(f"{name} {options} failed:\n{ended.stderr[-2000:]}")
    return Cost(**json.loads(ended.stdout.splitlines()[-1]))


def run_raw(server: Server, ranges: Sequence[ServedFile], num_threads: int) -> Cost:
    """Read ranges and compute nothing."""
    files = list(dict.fromkeys((r.repo, r.revision, r.path) for r in ranges))
    addresses = [_signed(server, *file) for file in files]
    places = {file: place for place, file in enumerate(files)}
    wanted = [[places[r.repo, r.revision, r.path], r.start, r.stop] for r in ranges]
    environment = {**os.environ, **server.extra_environment}
    options = {"addresses": addresses, "ranges": wanted, "num_threads": num_threads}
    return run_child("raw", environment, **options)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: object) -> None:
        return None


def _signed(server: Server, repo: str, revision: str, path: str) -> str:
    """Return the address that the Hub redirects to."""
    url = f"{server.endpoint}/{repo}/resolve/{revision}/{path}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)
    try:
        opener.open(urllib.request.Request(url, method="HEAD"), timeout=60)
    except urllib.error.HTTPError as answer:
        return str(answer.headers["Location"])
    raise RuntimeError(f"{url} is not redirected")


def spread(values: Sequence[float]) -> str:
    """Say how far values lie apart, in few signs."""
    if len(values) < 2:
        return "one run"
    return f"{min(values):.3g} to {max(values):.3g}, {len(values)} runs"


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)

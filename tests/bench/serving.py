"""The loopback Hub in a process of its own, filled with runs, at any rate."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpharl_hub.local_hub import LocalHub, child_environment
from tests.bench.models import RunFolders

ROOT = Path(__file__).parents[2]
RUN_REPO, BASE_REPO = "bench/run", "bench/base"


@dataclass(frozen=True)
class ServedFile:
    """One range of a file that the Hub sent."""

    repo: str
    revision: str
    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class Asked:
    """What was asked of the Hub since its log was cleared."""

    ranges: tuple[ServedFile, ...]
    sent_bytes: int
    num_resolves: int
    num_resolved_files: int
    num_api_calls: int


@dataclass(frozen=True)
class Server:
    """A Hub that serves; `home` is the empty HF_HOME of its clients."""

    endpoint: str
    storage_endpoint: str
    home: Path
    extra_environment: Mapping[str, str]

    def environment(self) -> dict[str, str]:
        """Return the environment of a client."""
        return {**child_environment(self.endpoint, self.home), **self.extra_environment}

    def clear_log(self) -> None:
        """Forget what was asked so far."""
        self._control("DELETE")

    def asked(self) -> Asked:
        """Return what was asked since the last `clear_log`."""
        records = self._control("GET")
        assert isinstance(records, list)
        ranges = [r for r in records if r["origin"] == "storage" and r["range"]]
        resolves = [r for r in records if "/resolve/" in r["path"]]
        api = [r for r in records if r["path"].startswith("/api/") and not _is_file(r)]
        return Asked(
            ranges=tuple(
                ServedFile(r["repo"], r["revision"], r["file_path"], *r["range"]) for r in ranges
            ),
            sent_bytes=sum(r["bytes_sent"] for r in records),
            num_resolves=len(resolves),
            num_resolved_files=len({r["path"] for r in resolves}),
            num_api_calls=len(api),
        )

    def _control(self, method: str) -> object:
        request = urllib.request.Request(f"{self.endpoint}/local-hub/log", method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)


def _is_file(record: Mapping[str, Any]) -> bool:
    return str(record["path"]).startswith("/api/resolve-cache/")


def fill_hub(root: Path, run: RunFolders) -> None:
    """Put a run on a Hub that is not being served: its base, and a branch for each step."""
    with LocalHub(root) as hub:
        hub.add_commit(BASE_REPO, files=_files_of(run.base))
        hub.add_commit(RUN_REPO, files={"notes.txt": b"see the branches\n"})
        for step in run.steps:
            files = _files_of(run.folder(step))
            hub.add_commit(RUN_REPO, files=files, revision=f"step_{step}")


def _files_of(folder: Path) -> dict[str, bytes | Path | None]:
    return {path.name: path for path in sorted(folder.iterdir())}


@contextmanager
def serve(
    root: Path, home: Path, rate_bytes_per_s: float | None = None, certificate: Path | None = None
) -> Iterator[Server]:
    """Serve a filled Hub until the end of the block."""
    command: Sequence[str] = [
        *(sys.executable, "-m", "alpharl_hub.local_hub", "--root", str(root)),
        *(() if rate_bytes_per_s is None else ("--rate", str(rate_bytes_per_s))),
        *(() if certificate is None else ("--certificate", str(certificate))),
    ]
    home.mkdir(exist_ok=True)
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            names = () if certificate is None else ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
            extra = dict.fromkeys(names, str(certificate))
            yield Server(
                **json.loads(process.stdout.readline()), home=home, extra_environment=extra
            )
        finally:
            process.stdin.close()
            process.wait(30)

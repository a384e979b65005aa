"""`python -m tests.bench [--quick] [--parts LIST] [--json FILE]`: how fast, how small, how exact.

Ratios within one run count: the machine may do other things beside. `--quick` takes under five
minutes, everything under thirty on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from tests.bench import cluster, endtoend, kernel, memory, peers, requests, small, stream
from tests.bench.figures import Table, document
from tests.bench.workspace import Workspace

PARTS: dict[str, Callable[[Workspace], Table]] = {
    "stream": stream.measure,
    "requests": requests.measure,
    "kernel": kernel.measure,
    "memory": memory.measure,
    "end-to-end": endtoend.measure,
    "small": small.measure,
    "peers": peers.measure,
    "cluster": cluster.measure,
}


def main() -> None:
    """Measure the parts asked for and print their tables as they are done."""
    options = _options()
    found_machine = machine()
    print(", ".join(f"{name} {value}" for name, value in found_machine.items()), flush=True)
    tables = []
    with tempfile.TemporaryDirectory(prefix="alpharl-bench-", dir=options.folder) as folder:
        workspace = Workspace(Path(folder), options.quick)
        for part in options.parts:
            started_s = time.monotonic()
            table = PARTS[part](workspace)
            tables.append(replace(table, seconds=time.monotonic() - started_s))
            print(f"\n{tables[-1].text()}", end="", flush=True)
            if options.json is not None:
                answer = document(found_machine, options.quick, tables)
                options.json.write_text(json.dumps(answer, indent=1) + "\n")


def machine() -> dict[str, object]:
    """Describe the machine and how busy it is."""
    return {
        "CPU": _cpu_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "Python": platform.python_version(),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, at one rate")
    parser.add_argument("--parts", type=_parts, default=list(PARTS), metavar="LIST")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    return parser.parse_args()


def _parts(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name}: not one of {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    main()

"""What is measured in a process of its own: `python -m tests.bench.child NAME` with JSON on stdin.

Prints one line of JSON: seconds of wall clock and CPU without the imports, and peak memory.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from queue import Empty, SimpleQueue
from typing import Any

Measured = dict[str, float]


def measured(work: Callable[[], object]) -> Measured:
    """Run something and say what it cost this process, all its threads together."""
    read_before = _read_bytes()
    before, started_s = os.times(), time.perf_counter()
    work()
    wall_s, after = time.perf_counter() - started_s, os.times()
    cpu_s = after.user + after.system - before.user - before.system
    read_bytes = _read_bytes() - read_before
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_bytes": peak_bytes(),
        "read_bytes": read_bytes,
    }


def _read_bytes() -> int:
    """Return how much this process has read from files so far."""
    with open("/proc/self/io", encoding="ascii") as lines:
        return int(next(line for line in lines if line.startswith("rchar:")).split()[1])


def peak_bytes() -> int:
    """Return the peak resident memory: of this process alone, which ru_maxrss of a fork is not."""
    with open("/proc/self/status", encoding="ascii") as lines:
        (line,) = [line for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])


def run_cli(arguments: list[str]) -> Measured:
    """Run one command of the tool as a user would, its imports made before."""
    from alpharl_hub import pipeline
    from alpharl_hub.cli import main
    from alpharl_hub.cli.running import limit_threads

    assert pipeline.__doc__, "imported for its imports"
    limit_threads()
    with redirect_stdout(StringIO()):
        return measured(lambda: main(arguments, standalone_mode=False))


def run_cli_with_lowrank(arguments: list[str], q: int, niter: int) -> Measured:
    """The same with torch.svd_lowrank in place of the kernel."""
    from alpharl_hub.numerics import factors
    from tests.bench.rivals import lowrank_triplets

    vars(factors)["leading_triplets"] = lowrank_triplets(q, niter)
    return run_cli(arguments)


def read_raw(addresses: list[str], ranges: list[list[int]], num_threads: int) -> Measured:
    """Read ranges [place of the address, start, stop] into reused buffers and compute nothing."""
    import urllib3

    context = None
    if addresses[0].startswith("https"):
        import ssl

        context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    pool = urllib3.PoolManager(maxsize=num_threads, ssl_context=context)
    todo: SimpleQueue[list[int]] = SimpleQueue()
    for item in ranges:
        todo.put(item)
    largest = max(stop - start for _, start, stop in ranges)
    failures: list[BaseException] = []

    def work() -> None:
        buffer = memoryview(bytearray(largest))
        try:
            while True:
                place, start, stop = todo.get_nowait()
                read_range(pool, addresses[place], start, buffer[: stop - start])
        except Empty:
            return
        except BaseException as error:
            failures.append(error)

    def read_all() -> None:
        threads = [threading.Thread(target=work) for _ in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    found = measured(read_all)
    if failures:
        raise failures[0]
    return found


def read_range(pool: Any, address: str, start: int, buffer: memoryview) -> None:
    """Fill a buffer with one range."""
    headers = {"Range": f"bytes={start}-{start + len(buffer) - 1}", "Accept-Encoding": "identity"}
    response = pool.request("GET", address, headers=headers, preload_content=False, retries=False)
    assert response.status == 206, response.status
    done = 0
    while done < len(buffer):
        count = response.readinto(buffer[done : done + (1 << 20)])
        assert count, "the answer was cut short"
        done += count
    response.release_conn()


def main() -> None:
    """Do what the arguments name and print what it cost."""
    from tests.bench import reference

    works: dict[str, Callable[..., Measured]] = {
        "cli": run_cli,
        "cli_with_lowrank": run_cli_with_lowrank,
        "raw": read_raw,
        "download": reference.download,
        "load": reference.load,
        "merge": reference.merge,
    }
    print(json.dumps(works[sys.argv[1]](**json.load(sys.stdin))))


if __name__ == "__main__":
    main()

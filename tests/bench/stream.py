"""How near reading with arithmetic comes to reading alone: raw, extract, raw, predict in turn.

Raw reads the very ranges that extract asked for, in its order, with as many threads, into buffers
that are used again. Each speed is set against the mean of the raw ones before and after it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from alpharl_hub.executors.local import READ_THREADS
from tests.bench.figures import MAX_RAW_SPREAD, Figure, Table, Target, at_least, at_most
from tests.bench.measuring import Cost, median, run_child, run_raw, spread
from tests.bench.models import QUARTER_GB, SEVEN_B_PAIR
from tests.bench.serving import Server
from tests.bench.workspace import PlacedRun, Workspace, extract_arguments, predict_arguments

NUM_STEPS = 3
MIN_ROUNDS, MAX_ROUNDS, MAX_LINK_S = 3, 5, 150.0
"""Rounds of one link: no more are begun after so long, for the whole must end in half an hour."""

CPU_PER_GB, CPU_PER_GB_TLS = at_most(1.2), at_most(1.8)


@dataclass(frozen=True)
class Link:
    """A rate of all connections together (None: what loopback gives), and what is to be reached."""

    name: str
    bytes_per_s: float | None
    extract: Target | None
    tls: bool = False


LINKS = (
    Link("300 MB/s", 300e6, at_least(0.95)),
    Link("650 MB/s", 650e6, at_least(0.90)),
    Link("unthrottled", None, at_least(0.45)),
    Link("TLS", None, None, tls=True),
)


@dataclass(frozen=True)
class Round:
    """What one round cost; bytes as served."""

    raw: tuple[Cost, Cost]
    extract: Cost
    predict: Cost


@dataclass(frozen=True)
class Read:
    """Bytes that each kind of process reads, by the Hub's log."""

    raw: int
    extract: int
    predict: int


def measure(workspace: Workspace) -> Table:
    """Measure all links, or one when quick."""
    run = workspace.run(QUARTER_GB if workspace.quick else SEVEN_B_PAIR, NUM_STEPS)
    figures: list[Figure] = []
    peaks: list[Cost] = []
    for link in LINKS[1:2] if workspace.quick else LINKS:
        read, rounds = _rounds(workspace, run, link, MIN_ROUNDS if workspace.quick else MAX_ROUNDS)
        figures += figures_of(link, read, rounds)
        peaks += [cost for found in rounds for cost in (found.extract, found.predict)]
    largest = run.shapes.largest_matrix_bytes
    promise = 0.60 + 6 * largest / 1e9
    peak = max(cost.peak_bytes for cost in peaks) / 1e9
    figures.append(Figure("peak RSS of all of these", peak, "GB", at_most(promise)))
    notes = (
        f"{run.shapes.layers} layers, hidden {run.shapes.hidden}, MLP {run.shapes.intermediate}, "
        f"{run.shapes.matrix_bytes / 1e9:.2f} GB of matrices, base and T = {NUM_STEPS}; "
        f"{READ_THREADS} threads; a fresh process each, timed after its imports; the Hub is a "
        "process of its own on the same machine.",
    )
    return Table("stream", "share of raw range reading", tuple(figures), notes)


def _rounds(
    workspace: Workspace, run: PlacedRun, link: Link, max_rounds: int
) -> tuple[Read, list[Round]]:
    with workspace.serving(run, link.bytes_per_s, link.tls) as server:
        # Not counted: it brings the files into the page cache and tells which ranges are read.
        server.clear_log()
        _extract(workspace, server)
        asked = server.asked()
        ranges, extract_bytes = asked.ranges, sum(r.stop - r.start for r in asked.ranges)
        server.clear_log()
        _predict(workspace, server, run)
        predict_bytes = sum(r.stop - r.start for r in server.asked().ranges)
        read = Read(extract_bytes, extract_bytes, predict_bytes)
        rounds: list[Round] = []
        raw = run_raw(server, ranges, READ_THREADS)
        end_s = time.monotonic() + MAX_LINK_S
        while len(rounds) < max_rounds and (len(rounds) < MIN_ROUNDS or time.monotonic() < end_s):
            extract = _extract(workspace, server)
            between = run_raw(server, ranges, READ_THREADS)
            predict = _predict(workspace, server, run)
            rounds.append(Round((raw, between), extract, predict))
            raw = run_raw(server, ranges, READ_THREADS)
        rounds.append(Round((raw, raw), rounds[-1].extract, rounds[-1].predict))
    return read, rounds


def _extract(workspace: Workspace, server: Server) -> Cost:
    arguments = extract_arguments(workspace.fresh("factors"))
    return run_child("cli", server.environment(), arguments=arguments)


def _predict(workspace: Workspace, server: Server, run: PlacedRun) -> Cost:
    arguments = predict_arguments(run, workspace.fresh("predicted"))
    return run_child("cli", server.environment(), arguments=arguments)


def figures_of(link: Link, read: Read, found: Sequence[Round]) -> list[Figure]:
    """Turn rounds into figures; the last of `found` holds only the closing raw reading."""
    rounds, closing = found[:-1], found[-1].raw[0]
    first = [read.raw / r.raw[0].wall_s for r in rounds] + [read.raw / closing.wall_s]
    second = [read.raw / r.raw[1].wall_s for r in rounds]
    raw = first + second
    extract = [read.extract / r.extract.wall_s for r in rounds]
    predict = [read.predict / r.predict.wall_s for r in rounds]
    extract_share = [e / ((a + b) / 2) for e, a, b in zip(extract, first, second, strict=False)]
    predict_share = [p / ((b + c) / 2) for p, b, c in zip(predict, second, first[1:], strict=True)]
    of_extract = [p / e for p, e in zip(predict, extract, strict=True)]
    varies = max(raw) / min(raw)
    doubt = f"raw x{varies:.1f}" if varies > MAX_RAW_SPREAD else ""
    raw_cpu = [1e9 * cost.cpu_s / read.raw for r in rounds for cost in r.raw]
    extract_cpu = [1e9 * r.extract.cpu_s / read.extract for r in rounds]
    predict_cpu = [1e9 * r.predict.cpu_s / read.predict for r in rounds]

    def figure(
        name: str, values: Sequence[float], unit: str, target: Target | None = None
    ) -> Figure:
        name = f"{link.name}: {name}"
        return Figure(name, median(values), unit, target, spread(values), doubt)

    cpu = CPU_PER_GB_TLS if link.tls else CPU_PER_GB
    return [
        figure("raw", [value / 1e9 for value in raw], "GB/s"),
        figure("extract / raw", extract_share, "x", link.extract),
        figure("predict / raw", predict_share, "x"),
        figure("predict / extract", of_extract, "x", at_least(0.8)),
        figure("raw CPU", raw_cpu, "s/GB"),
        figure("extract CPU", extract_cpu, "s/GB", cpu),
        figure("predict CPU", predict_cpu, "s/GB"),
    ]

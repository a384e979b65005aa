"""Which devices compute, and how many workers a memory budget allows."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from alpharl_hub.errors import ResourceError, did_you_mean
from alpharl_hub.windows.plan import Window, peak_memory_bytes

CPU = "cpu"

OutOfDeviceMemory = torch.OutOfMemoryError
"""What torch raises when the memory of a GPU does not suffice; on the CPU it has another error."""

_MAX_CPU_WORKERS = 4
_KNOWN_DEVICES = (CPU, "cuda", *(f"cuda:{i}" for i in range(16)))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Give torch one thread per worker: its own pool fights with ours over the cores.

    With two threads on two virtual cores small operations took 8 ms instead of 10 us at random
    (libgomp spins while its partner is not scheduled).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Workers:
    """One worker for each entry of `devices`; `peak_memory_bytes` bounds the whole process."""

    devices: tuple[str, ...]
    peak_memory_bytes: int


def choose_devices(requested: Sequence[str]) -> tuple[str, ...]:
    """Return the devices asked for, else all visible GPUs, else the CPU with a few workers.

    Raises:
        ResourceError: a device that is not there.
    """
    if requested:
        return tuple(_checked(name) for name in requested)
    if torch.cuda.is_available():
        return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    return ("cpu",) * max(1, min(_MAX_CPU_WORKERS, (os.cpu_count() or 1) // 2))


def _checked(name: str) -> str:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        meant = did_you_mean(name.lower().replace("gpu", "cuda"), _KNOWN_DEVICES)
        raise ResourceError(f"--devices {name}: no device; write cpu or cuda:0{meant}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            there = f"cuda:0 to cuda:{count - 1}" if count else "cpu"
            raise ResourceError(
                f"--devices {name}: {count} CUDA devices are visible here; write {there}"
            )
        return f"cuda:{device.index or 0}"
    if device.type != "cpu":
        raise ResourceError(
            f"--devices {name}: only cpu and cuda devices are supported; write cpu or cuda:0"
        )
    return "cpu"


def fit_workers(
    windows: Sequence[Window],
    devices: Sequence[str],
    num_deltas_held: int,
    num_outputs: int,
    memory_bytes: int | None,
) -> Workers:
    """Take as many workers as the budget allows; results do not depend on how many.

    Raises:
        ResourceError: not even one fits; the message says what is needed.
    """
    for count in range(min(len(devices), max(1, len(windows))), 0, -1):
        peak = peak_memory_bytes(windows, count, num_deltas_held, num_outputs)
        if memory_bytes is None or peak <= memory_bytes:
            return Workers(tuple(devices[:count]), peak)
    minimum = peak_memory_bytes(windows, 1, num_deltas_held, num_outputs)
    raise ResourceError(
        f"--memory {(memory_bytes or 0) / 1e6:g}MB: the largest tensors need at least "
        f"{minimum / 1e9:.3g} GB; give --memory {-(-minimum // 10**6)}MB or more"
    )


def compute_name(devices: Sequence[str]) -> str:
    """Name what results are reproducible on, to the bit: instruction set, or GPU model."""
    names = set()
    for device in devices:
        if device.startswith("cuda"):
            names.add(torch.cuda.get_device_name(device))
        else:
            names.add(f"cpu {torch.backends.cpu.get_cpu_capability()}")
    return ", ".join(sorted(names))


def is_out_of_memory(error: RuntimeError | OSError) -> bool:
    """Tell whether the memory of the machine itself did not suffice, for a tensor or a mapping.

    torch's allocator on the CPU raises a bare RuntimeError; only its words tell (torch 2.13).
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return "DefaultCPUAllocator: can't allocate memory" in str(error)


def release_memory(device: str) -> None:
    """Give back what nobody uses any more: tensors in cycles, and what torch keeps for later.

    An error that went through a generator is such a cycle, with all the frames that it passed.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()

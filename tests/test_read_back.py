"""Every byte of an output is read back from the disk before the output appears."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lora_runs import write_lora_run
from test_resume import STEPS, tensors_at
from trajectories import Run, digest, succeed, write_run

from alpharl_hub.errors import WriteError
from alpharl_hub.output.shards import DamagedError, OutputTensor, ShardWriter, lay_out
from alpharl_hub.pipeline import extract_run, predict_run
from alpharl_hub.prediction.destination import Destination
from alpharl_hub.prediction.setting import PredictOptions
from alpharl_hub.prediction.targets import TargetOptions
from alpharl_hub.preparation import ScopeOptions
from alpharl_hub.reporting.extraction import FactorOutput
from alpharl_hub.sources.opening import RunRequest
from alpharl_hub.windows import plan
from alpharl_hub.windows.streaming import Compute, Hooks

OPTIONS = PredictOptions("alpharl", TargetOptions((110.0,)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose output has three shards."""
    return write_run(tmp_path_factory.mktemp("read_back"), STEPS, tensors_at, num_shards=3)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eighty windows."""
    monkeypatch.setattr(plan, "WINDOW_BYTES", 40_000)


def flip(path: Path, place: int) -> None:
    """Change one bit from outside."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 16]))


class Striker:
    """A hook that strikes a file of the work folder once, as soon as something can be struck."""

    def __init__(self, find: Callable[[], Path | None], place: int) -> None:
        self.find = find
        self.place = place
        self.struck: Path | None = None

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        if self.struck is None and (path := self.find()) is not None:
            time.sleep(0.05)  # the next tick of the clock that dates files: one may be 10 ms
            flip(path, self.place)
            self.struck = path


def windows_done(work: Path) -> int:
    """How many results the journal holds."""
    journal = work / "journal.jsonl"
    return len(journal.read_bytes().splitlines()) - 1 if journal.exists() else 0


@pytest.mark.parametrize(
    "name", ["model-00001-of-00003.safetensors.partial", "model-00001-of-00003.safetensors"]
)
def test_a_byte_that_changes_while_the_run_goes_on(run: Run, tmp_path: Path, name: str) -> None:
    """In a shard that is being written, or that is whole and waits for the others: noticed, with
    the file's name, nothing appears; the same call goes on to the right bytes.
    """
    work, output = tmp_path / ".out.alpharl-hub", tmp_path / "out"
    request = RunRequest(str(run.root), str(run.base))

    def find() -> Path | None:
        path = work / "result" / name
        return path if windows_done(work) > 5 and path.exists() else None

    # Behind the header, in the first tensor: that is the first one done.
    place = 8 + int.from_bytes(
        (run.folder(50) / name.removesuffix(".partial")).read_bytes()[:8], "little"
    )
    striker = Striker(find, place + 600)

    def go(hooks: Hooks) -> None:
        where, compute = Destination(output), Compute(("cpu",))
        predict_run(request, ScopeOptions(), OPTIONS, where, compute, hooks)

    with pytest.raises(WriteError, match="reads back other than it was written") as caught:
        go(Hooks(striker))
    assert striker.struck is not None
    assert str(work / "result" / name.removesuffix(".partial")) in str(caught.value)
    assert not output.exists()
    go(Hooks())
    succeed("predict", *run.arguments("-o", str(tmp_path / "whole"), "--target-step", "110"))
    assert digest(output) == digest(tmp_path / "whole")


def test_factors_that_change(run: Run, tmp_path: Path) -> None:
    """The same for the file of factors that extract writes."""
    work, request = tmp_path / ".out.alpharl-hub", RunRequest(str(run.root), str(run.base))
    partial = work / "result" / "factors.safetensors.partial"
    striker = Striker(lambda: partial if windows_done(work) > 5 else None, 40_000)
    output = FactorOutput(tmp_path / "out", False, None)

    def go(hooks: Hooks) -> None:
        extract_run(request, ScopeOptions(), 1, output, Compute(("cpu",)), hooks)

    with pytest.raises(WriteError, match=r"\.u reads back other|\.v reads back other"):
        go(Hooks(striker))
    assert not output.folder.exists()
    resumed: list[tuple[int, int]] = []
    go(Hooks(on_resume=lambda done, total: resumed.append((done, total))))
    ((done, total),) = resumed
    assert done == total - 1
    succeed("extract", *run.arguments("-o", str(tmp_path / "whole")))
    name = "factors.safetensors"
    assert (output.folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_parts_of_an_adapter_that_change(tmp_path: Path) -> None:
    """What windows left of an adapter is read back before it is put together."""
    run = write_lora_run(tmp_path / "lora", target_modules=["q_proj", "v_proj", "up_proj"])
    work, request = tmp_path / ".out.alpharl-hub", RunRequest(str(run.root), str(run.base))

    def find() -> Path | None:
        found = sorted((work / "result" / "parts" / "0").glob("factors-*.safetensors"))
        return found[0] if windows_done(work) > 0 and found else None

    striker = Striker(find, 1000)
    options = PredictOptions("alpharl", TargetOptions((90.0,)), others=None, as_adapter=True)

    def go(hooks: Hooks) -> None:
        where = Destination(tmp_path / "out")
        predict_run(request, ScopeOptions(), options, where, Compute(("cpu",)), hooks)

    with pytest.raises(WriteError, match="reads back other than it was written"):
        go(Hooks(striker))
    assert not (tmp_path / "out").exists()
    go(Hooks())
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


LAYOUT = lay_out("w.safetensors", [OutputTensor(f"t{i}", "U8", (3_000_000,)) for i in range(3)], {})


@pytest.mark.parametrize("place", [3, *(ref.start for ref in LAYOUT.tensors), LAYOUT.num_bytes - 1])
def test_any_byte(tmp_path: Path, place: int) -> None:
    """Of the header, at either end, at a border: found, and only the tensor that it is in named."""
    writer = ShardWriter(tmp_path, [LAYOUT])
    writer.open()
    for ref in LAYOUT.tensors:
        writer.write(ref.filename, ref.start, memoryview(os.urandom(ref.num_bytes)))
        writer.sync(ref.filename)
    flip(tmp_path / "w.safetensors.partial", place)
    names = [ref.name for ref in LAYOUT.tensors if ref.start <= place < ref.stop] or ["the header"]
    with pytest.raises(DamagedError, match=f"partial: {names[0]} reads back"):
        writer.complete("w.safetensors")
    writer.close()
    assert not (tmp_path / "w.safetensors").exists()


def test_what_was_never_written_is_no_tensor_of_zeros(tmp_path: Path) -> None:
    """A shard is whole only with a digest for every byte."""
    writer = ShardWriter(tmp_path, [LAYOUT])
    writer.open()
    for ref in LAYOUT.tensors[:2]:
        writer.write(ref.filename, ref.start, memoryview(bytes(ref.num_bytes)))
    with pytest.raises(DamagedError, match="t2 reads back"):
        writer.complete("w.safetensors")
    last = LAYOUT.tensors[2]
    writer.write(last.filename, last.start, memoryview(bytes(last.num_bytes)))
    assert writer.complete("w.safetensors").read_bytes() == LAYOUT.header + bytes(9_000_000)
    writer.close()

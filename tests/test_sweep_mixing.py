"""Candidates between two models on disk: their values, their dtypes, their bits at both ends."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from alpharl_hub.errors import FitError, WriteError
from alpharl_hub.methods.correction import combine
from alpharl_hub.output.shards import OutputFile, OutputTensor, lay_out
from alpharl_hub.sources.patience import Cancelled
from alpharl_hub.sweeping.mixing import Mixer, mix

SINGLE = "model.safetensors"
LONG = 2 * (1 << 20) + 5
"""More entries than two chunks hold."""

MODEL = {"a.weight": (7, 5), "b.weight": (LONG,), "scalar": (), "empty": (0, 4)}
FRACTIONS = [-0.5, 0.0, 0.3, 1.0, 1.62, 8.0]


def model(seed: int) -> dict[str, Tensor]:
    """Random fp32 tensors, with integers, booleans and fp8 among them that never differ."""
    source = torch.Generator().manual_seed(seed)
    floats = {name: torch.randn(shape, generator=source) for name, shape in MODEL.items()}
    return {
        **floats,
        "index": torch.arange(9),
        "mask": torch.tensor([True, False, True]),
        "f8": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn),
    }


def layout(dtype: str, filename: str = SINGLE) -> OutputFile:
    """The output file of such a model with another dtype for its floats."""
    floats = [OutputTensor(name, dtype, shape) for name, shape in MODEL.items()]
    others = [
        OutputTensor("index", "I64", (9,)),
        OutputTensor("mask", "BOOL", (3,)),
        OutputTensor("f8", "F8_E4M3", (2,)),
    ]
    return lay_out(filename, [*floats, *others], {"format": "pt"})


def write_model(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write an endpoint in one file."""
    folder.mkdir()
    save_file(dict(tensors), folder / SINGLE, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two endpoints on disk."""
    folder = tmp_path_factory.mktemp("ends")
    return write_model(folder / "low", model(1)), write_model(folder / "high", model(2))


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor's bytes, whatever its dtype."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def mixer(ends: tuple[Path, Path], files: Sequence[OutputFile]) -> Mixer:
    """A mixer that nobody stops."""
    return Mixer(*ends, files, threading.Event())


def in_float64(fraction: float) -> dict[str, NDArray[np.float64]]:
    """The mixture of the floats without any rounding."""
    low, high = model(1), model(2)
    found = {}
    for name in MODEL:
        low_P, high_P = (side[name].numpy().astype(np.float64) for side in (low, high))
        found[name] = low_P + fraction * (high_P - low_P)
    return found


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize(
    ("code", "relative"), [("F32", 2.0**-22), ("BF16", 2.0**-8), ("F16", 2.0**-11)]
)
def test_candidates_are_the_mixture_rounded_once(
    ends: tuple[Path, Path], tmp_path: Path, fraction: float, code: str, relative: float
) -> None:
    """Every entry, across chunks, within half a step of its dtype; others are copied."""
    mixer(ends, [layout(code)]).write(fraction, tmp_path)
    found = load_file(tmp_path / SINGLE)
    wanted = in_float64(fraction)
    # fp32 sums of terms up to `reach` stand before the one rounding.
    reach = (1 + abs(fraction)) * 10
    for name, truth in wanted.items():
        error = np.abs(found[name].double().numpy() - truth)
        assert (error <= relative * np.abs(truth) + 2.0**-23 * reach).all(), name
    for name in ("index", "mask", "f8"):
        assert raw_bytes(found[name]) == raw_bytes(model(1)[name])


def test_the_ends_are_exact(ends: tuple[Path, Path], tmp_path: Path) -> None:
    """Fraction 0 gives the low endpoint's bits and 1 the high one's; bf16 rounds as torch does."""
    for fraction, seed in ((0.0, 1), (1.0, 2)):
        for code, dtype in (("F32", torch.float32), ("BF16", torch.bfloat16)):
            mixer(ends, [layout(code)]).write(fraction, tmp_path)
            found = load_file(tmp_path / SINGLE)
            for name in MODEL:
                assert torch.equal(found[name], model(seed)[name].to(dtype)), name


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_mixing_is_damping(fraction: float) -> None:
    """The bits are those of a prediction with that damping: W_T + d (W_hat - W_T)."""
    low_P, high_P = torch.randn(1000), torch.randn(1000)
    damped = combine(torch.zeros(1000), low_P, high_P.clone(), None, fraction)
    assert torch.equal(mix(low_P, high_P, fraction), damped)


def test_shards_need_not_be_those_of_the_endpoints(ends: tuple[Path, Path], tmp_path: Path) -> None:
    """Tensors are found by name; each shard has its header, metadata and order as laid out."""
    whole = layout("F32")
    files = [
        lay_out(f"model-{i}.safetensors", [OutputTensor(r.name, r.dtype, r.shape)], {"n": str(i)})
        for i, r in enumerate(reversed(whole.tensors))
    ]
    mixer(ends, files).write(0.5, tmp_path)
    mixer(ends, [whole]).write(0.5, tmp_path)
    together = load_file(tmp_path / SINGLE)
    assert len(list(tmp_path.iterdir())) == len(files) + 1
    for i, file in enumerate(files):
        assert (tmp_path / file.filename).stat().st_size == file.num_bytes
        with safe_open(tmp_path / file.filename, "pt") as shard:
            (name,) = shard.keys()
            assert shard.metadata() == {"n": str(i)}
            found = shard.get_tensor(name)
        assert raw_bytes(found) == raw_bytes(together[name])


def test_rounding_is_pooled_over_chunks(ends: tuple[Path, Path], tmp_path: Path) -> None:
    """Norm lost, norm of the update from the low end, and entries left as they are there."""
    roundings = mixer(ends, [layout("BF16")]).write(0.01, tmp_path)
    found = load_file(tmp_path / SINGLE)
    assert set(roundings) == set(MODEL) - {"empty"}
    for name, rounding in roundings.items():
        low = model(1)[name]
        truth = in_float64(0.01)[name]
        lost = found[name].double().numpy() - truth
        update = truth - low.double().numpy()
        assert rounding.lost_squared == pytest.approx((lost**2).sum(), rel=1e-3)
        assert rounding.update_squared == pytest.approx((update**2).sum(), rel=1e-3)
        assert rounding.num_entries == low.numel()
        same = int((found[name] == low.to(torch.bfloat16)).sum())
        assert rounding.num_unchanged == same
    assert 0 < roundings["b.weight"].num_unchanged < LONG


def test_at_the_low_end_nothing_changes(ends: tuple[Path, Path], tmp_path: Path) -> None:
    """No update: no loss to speak of, and every entry is the low end's."""
    roundings = mixer(ends, [layout("BF16")]).write(0.0, tmp_path)
    assert all(r.loss is None and r.unchanged == 1 for r in roundings.values())


def test_overflow_is_an_error(ends: tuple[Path, Path], tmp_path: Path) -> None:
    """A candidate beyond fp16's range is refused by the tensor's name, and gets no final name."""
    with pytest.raises(FitError, match=r"a\.weight: not finite in float16"):
        mixer(ends, [layout("F16")]).write(1e6, tmp_path)
    assert not (tmp_path / SINGLE).exists()


def test_endpoints_of_another_model_are_refused(ends: tuple[Path, Path], tmp_path: Path) -> None:
    """A missing tensor, another shape, or a float that is not fp32: the work folder is stale."""
    for change in ({"a.weight": torch.zeros(5, 7)}, {"a.weight": torch.zeros(7, 5).bfloat16()}):
        folder = write_model(tmp_path / str(len(list(tmp_path.iterdir()))), model(1) | change)
        with pytest.raises(WriteError, match=r"no F32 tensor a\.weight"):
            mixer((ends[0], folder), [layout("F32")]).write(0.5, tmp_path)
    missing = lay_out("other.safetensors", [OutputTensor("new", "I64", (1,))], {})
    with pytest.raises(WriteError, match="no I64 tensor new"):
        mixer(ends, [missing]).write(0.5, tmp_path)


def test_a_stop_ends_the_writing(ends: tuple[Path, Path], tmp_path: Path) -> None:
    """Once the end was asked for no file gets its final name."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        Mixer(*ends, [layout("F32")], stop).write(0.5, tmp_path)
    assert not (tmp_path / SINGLE).exists()

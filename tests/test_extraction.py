"""Extracted factors: right against numpy, enough for report and predict, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from trajectories import (
    Q_PROJ,
    Run,
    as_float64,
    curved_run,
    digest,
    fail,
    generator,
    load_model,
    matrix_names,
    model_config,
    model_tensors,
    succeed,
    write_checkpoint,
    write_run,
)

from alpharl_hub.output import factor_files
from alpharl_hub.windows import plan

STEPS = (4, 10, 24, 31, 40)
SCORES = (0.2, 0.31, 0.45, 0.52, 0.7)


def separated(step: int) -> dict[str, torch.Tensor]:
    """Deltas of rank 3 with clear gaps, moving unevenly, so that every triplet is well defined."""
    base = {n: t.bfloat16().float() for n, t in model_tensors().items()}
    if step == 0:
        return base
    moved = {}
    for i, name in enumerate(matrix_names(base)):
        rows, columns = base[name].shape
        source = generator(100 + i)
        left, _ = torch.linalg.qr(torch.randn(rows, 3, generator=source))
        right, _ = torch.linalg.qr(torch.randn(columns, 3, generator=source))
        sigma = 5e-4 * torch.tensor([step, 0.5 * step**0.9, 0.1 * step])
        noise = torch.randn(rows, columns, generator=generator(1000 * step + i))
        moved[name] = base[name] + (left * sigma) @ right.T + 5e-6 * noise
    return {**base, **moved}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose deltas have three clear directions, in fp32 over a bf16 base."""
    return write_run(
        tmp_path_factory.mktemp("separated"),
        STEPS,
        separated,
        base_options={"dtype": torch.bfloat16},
    )


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A score for every step."""
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    path.write_text(json.dumps(dict(zip(map(str, STEPS), SCORES, strict=True))))
    return path


@pytest.fixture(scope="module")
def folders(run: Run, scores: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Factors of rank 1 and 3."""
    where = tmp_path_factory.mktemp("factors")
    for rank in (1, 3):
        options = ("--rank", str(rank), "--scores", str(scores))
        succeed("extract", *run.arguments("-o", str(where / str(rank)), *options))
    return {rank: where / str(rank) for rank in (1, 3)}


def test_factors_are_those_of_numpy(run: Run, folders: dict[int, Path]) -> None:
    """sigma, u, v and norm of every delta equal numpy's SVD in float64; signs follow the last."""
    factors = load_file(folders[3] / "factors.safetensors")
    base = load_model(run.base)
    for name in matrix_names(base):
        u, sigma, v, norm = (factors[f"{name}.{f}"] for f in ("u", "sigma", "v", "frobenius"))
        rows, columns = base[name].shape
        assert u.shape == (len(STEPS), 3, rows)
        assert v.shape == (len(STEPS), 3, columns)
        assert {t.dtype for t in (u, sigma, v, norm)} == {torch.float32}
        for t, step in enumerate(STEPS):
            delta = as_float64(load_model(run.folder(step))[name]) - as_float64(base[name])
            u_MK, sigma_K, vt_KN = np.linalg.svd(delta)
            assert norm[t] == pytest.approx(np.linalg.norm(delta), rel=1e-6)
            assert sigma[t].numpy() == pytest.approx(sigma_K[:3], rel=1e-5)
            for r in range(3):
                assert abs(as_float64(u[t, r]) @ u_MK[:, r]) == pytest.approx(1, abs=1e-6)
                assert abs(as_float64(v[t, r]) @ vt_KN[r]) == pytest.approx(1, abs=1e-6)
                assert torch.dot(u[t, r], u[-1, r]) > 0.9
        for r in range(3):
            assert u[-1, r][u[-1, r].abs().argmax()] > 0


def test_a_rank_above_the_shorter_side_is_filled_up_with_zeros(run: Run, tmp_path: Path) -> None:
    """The files have as many triplets as asked for; those beyond numpy's values are zero."""
    succeed("extract", *run.arguments("-o", str(tmp_path / "all"), "--rank", "200"))
    factors = load_file(tmp_path / "all" / "factors.safetensors")
    base = load_model(run.base)
    for name in matrix_names(base):
        u, sigma, v = (factors[f"{name}.{f}"] for f in ("u", "sigma", "v"))
        shorter = min(base[name].shape)
        assert u.shape[:2] == v.shape[:2] == sigma.shape == (len(STEPS), 200)
        assert not any(bool(part[:, shorter:].any()) for part in (u, sigma, v))
        delta = as_float64(load_model(run.folder(STEPS[-1]))[name]) - as_float64(base[name])
        sigma_K = np.linalg.svd(delta, compute_uv=False)
        np.testing.assert_allclose(sigma[-1, :shorter], sigma_K, rtol=1e-5, atol=1e-6 * sigma_K[0])


def test_first_triplets_do_not_depend_on_rank(folders: dict[int, Path]) -> None:
    """The first of three triplets is the only one of rank 1, to the bit."""
    one, three = (load_file(folders[rank] / "factors.safetensors") for rank in (1, 3))
    assert one.keys() == three.keys()
    for name, tensor in one.items():
        other = three[name] if name.endswith(".frobenius") else three[name][:, :1]
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize("rank", [1, 3])
def test_report_of_factors_is_report_of_run(
    run: Run, scores: Path, folders: dict[int, Path], rank: int
) -> None:
    """`report DIR` says in every number what `report RUN` says."""
    from_run = succeed("report", *run.arguments("--json", "--scores", str(scores)))
    from_folder = succeed("report", folders[rank], "--json")
    assert json.loads(from_folder.stdout) == json.loads(from_run.stdout)


def numbers(run: Run, name: str) -> dict[str, Any]:
    """What a report should say of one matrix, by numpy in float64."""
    base = as_float64(load_model(run.base)[name])
    deltas = [as_float64(load_model(run.folder(s))[name]) - base for s in run.steps]
    parts = [np.linalg.svd(delta) for delta in deltas]
    sigma = [float(part[1][0]) for part in parts]
    norms = [float(np.linalg.norm(delta)) for delta in deltas]
    cosines = [min(1.0, abs(float(part[2][0] @ parts[-1][2][0]))) for part in parts]
    return {
        "sigma": sigma,
        "frobenius": norms,
        "rank1_share": [(s / n) ** 2 for s, n in zip(sigma, norms, strict=True)],
        "drift": [float(np.degrees(np.arccos(c))) for c in cosines],
    }


def test_report_has_the_numbers_of_numpy(run: Run) -> None:
    """Spectrum, share and drift of the report equal numpy's, in the order of steps."""
    report = json.loads(succeed("report", *run.arguments("--json")).stdout)
    assert report["steps"] == list(STEPS)
    assert [m["name"] for m in report["modules"]] == [
        n for n in load_model(run.base) if n in matrix_names(load_model(run.base))
    ]
    for module in report["modules"]:
        wanted = numbers(run, module["name"])
        for key in ("sigma", "frobenius", "rank1_share"):
            assert module[key] == pytest.approx(wanted[key], rel=2e-5)
        assert module["drift"] == pytest.approx(wanted["drift"], abs=0.01)


PREDICTIONS = {
    "step": ("--target-step", "90"),
    "score": ("--target-score", "0.9"),
    "no-rescale": ("--target-step", "90", "--no-rescale"),
    "anchor": ("--target-step", "90", "--anchor", "last", "--damping", "0.5"),
    "others base": ("--target-step", "90", "--others", "base"),
    "others linear": ("--target-step", "90", "--others", "linear"),
    "dtype": ("--target-step", "90", "--dtype", "bfloat16"),
}


@pytest.mark.parametrize("options", PREDICTIONS.values(), ids=PREDICTIONS.keys())
@pytest.mark.parametrize("rank", [1, 3])
def test_prediction_from_factors_is_the_direct_one(
    run: Run,
    scores: Path,
    folders: dict[int, Path],
    tmp_path: Path,
    options: tuple[str, ...],
    rank: int,
) -> None:
    """`predict DIR` writes the very files of `predict RUN`, manifest and card included."""
    direct, again = tmp_path / "direct" / "out", tmp_path / "again" / "out"
    one = succeed("predict", *run.arguments("-o", str(direct), "--scores", str(scores), *options))
    other = succeed("predict", folders[rank], "-o", again, *options)
    notes, notes_again = (
        # How much was read, and how fast, is not the same.
        [line for line in done.stderr.splitlines() if not line.startswith("read ")]
        for done in (one, other)
    )
    assert notes == notes_again
    names = sorted(path.name for path in direct.iterdir())
    assert sorted(path.name for path in again.iterdir()) == names
    for name in names:
        assert (again / name).read_bytes() == (direct / name).read_bytes(), name


def test_factors_need_only_base_and_last(run: Run, tmp_path: Path) -> None:
    """After extraction the other checkpoints may be gone; base and last may not."""
    tensors = {s: load_model(run.folder(s)) for s in STEPS}
    tensors[0] = load_model(run.base)
    copy = write_run(tmp_path, STEPS, lambda s: tensors[s])
    succeed("extract", *copy.arguments("-o", str(tmp_path / "factors")))
    succeed("predict", tmp_path / "factors", "-o", tmp_path / "a", "--target-step", "90")
    for step in STEPS[:-1]:
        (copy.folder(step) / "model.safetensors").unlink()
    succeed("predict", tmp_path / "factors", "-o", tmp_path / "b", "--target-step", "90")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    changed = {**tensors[40], Q_PROJ: tensors[40][Q_PROJ] + 1}
    write_checkpoint(copy.folder(40), changed, config=model_config())
    line = fail("predict", tmp_path / "factors", "-o", tmp_path / "c", "--target-step", "90")
    assert "not the weights" in line
    (copy.folder(40) / "model.safetensors").unlink()
    line = fail("predict", tmp_path / "factors", "-o", tmp_path / "c", "--target-step", "90")
    assert str(copy.folder(40)) in line


def test_factors_in_several_files(
    run: Run, folders: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the largest file size factors are dealt out over files with an index."""
    monkeypatch.setattr(factor_files, "MAX_FILE_BYTES", 2500)
    monkeypatch.setattr(plan, "WINDOW_BYTES", 2000)
    succeed("extract", *run.arguments("-o", str(tmp_path / "f"), "--devices", "cpu,cpu"))
    index = json.loads((tmp_path / "f" / "factors.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "f").glob("*.safetensors"))
    assert len(files) > 3
    assert set(index["weight_map"].values()) == set(files)
    found = load_model(tmp_path / "f")
    wanted = load_model(folders[1])
    assert found.keys() == wanted.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    succeed("predict", tmp_path / "f", "-o", tmp_path / "a", "--target-step", "90")
    succeed("predict", folders[1], "-o", tmp_path / "b", "--target-step", "90")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_linear_from_factors_is_refused(folders: dict[int, Path], tmp_path: Path) -> None:
    """Rank-1 parts do not hold what linear needs."""
    options = ("--target-step", "90", "--method", "linear")
    line = fail("predict", folders[1], "-o", tmp_path / "out", *options)
    assert "--method alpharl" in line


def test_zero_deltas_are_extracted_and_reported(tmp_path: Path) -> None:
    """An untrained matrix has sigma 0 and zero vectors, null shares, and is predicted unchanged."""
    at = curved_run(STEPS)
    run = write_run(tmp_path, STEPS, lambda s: {**at(s), Q_PROJ: at(0)[Q_PROJ]})
    succeed("extract", *run.arguments("-o", str(tmp_path / "f"), "--rank", "2"))
    factors = load_file(tmp_path / "f" / "factors.safetensors")
    for field in ("u", "sigma", "v", "frobenius"):
        assert not factors[f"{Q_PROJ}.{field}"].any()
    report = json.loads(succeed("report", tmp_path / "f", "--json").stdout)
    (module,) = (m for m in report["modules"] if m["name"] == Q_PROJ)
    assert module["rank1_share"] == module["drift"] == [None] * len(STEPS)
    for options in ((), ("--anchor", "last")):
        succeed(
            "predict",
            tmp_path / "f",
            "-o",
            tmp_path / "o",
            "--target-step",
            "90",
            "--overwrite",
            *options,
        )
        assert torch.equal(load_model(tmp_path / "o")[Q_PROJ], at(0)[Q_PROJ])


def damage(folder: Path, what: str) -> None:
    """Break a folder of factors in one way."""
    path = folder / "factors.safetensors"
    factors = load_file(path)
    if what == "header":
        path.write_bytes(path.read_bytes()[:100])
    elif what == "missing":
        del factors[f"{Q_PROJ}.v"]
        save_file(factors, path)
    elif what == "dtype":
        factors[f"{Q_PROJ}.u"] = factors[f"{Q_PROJ}.u"].half()
        save_file(factors, path)
    elif what == "steps":
        save_file({n: t[:-1].contiguous() for n, t in factors.items()}, path)
    elif what == "rows":
        factors[f"{Q_PROJ}.u"] = factors[f"{Q_PROJ}.u"][:, :, :-1].contiguous()
        save_file(factors, path)
    elif what == "nan":
        factors[f"{Q_PROJ}.sigma"][:] = torch.nan
        factors[f"{Q_PROJ}.frobenius"][:] = torch.nan
        save_file(factors, path)
    elif what == "places":
        (folder / "local-places.json").write_text('{"a": ["b"]}')
    elif what == "no places":
        (folder / "local-places.json").unlink()


@pytest.mark.parametrize(
    "what", ["header", "missing", "dtype", "steps", "rows", "nan", "places", "no places"]
)
def test_damaged_factors_are_one_line(run: Run, tmp_path: Path, what: str) -> None:
    """A folder of factors that lost or changed something is refused, and nothing is written."""
    succeed("extract", *run.arguments("-o", str(tmp_path / "f")))
    damage(tmp_path / "f", what)
    line = fail("predict", tmp_path / "f", "-o", tmp_path / "out", "--target-step", "90")
    assert not (tmp_path / "out").exists()
    if what in ("missing", "dtype", "steps", "rows", "nan"):
        assert Q_PROJ in line or "steps" in line


def test_extract_keeps_nothing_but_factors(folders: dict[int, Path]) -> None:
    """Factors, manifest and the places of local checkpoints; the manifest holds no paths."""
    names = {path.name for path in folders[1].iterdir()}
    assert names == {"factors.safetensors", "alpharl.json", "local-places.json"}
    manifest = (folders[1] / "alpharl.json").read_text()
    assert str(folders[1].parent.parent) not in manifest
    assert json.loads(manifest)["rank"] == 1

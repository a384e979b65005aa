"""Repeating a run from its manifest, and manifests that were written by somebody else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trajectories import Run, command, curved_run, digest, fail, predict, succeed, write_run

STEPS = (4, 10, 24, 31, 40)
ERRORS = (0.8, 0.69, 0.55, 0.48, 0.3)

PREDICTIONS = {
    "step": ("--target-step", "90"),
    "everything": (
        *("--target-step", "62.5", "--no-rescale", "--anchor", "last", "--damping", "0.3"),
        *("--others", "linear", "--dtype", "bfloat16", "--exclude", "mlp", "--steps", "10-31"),
    ),
    "linear": ("--target-step", "90", "--method", "linear", "--fit-last", "50%"),
    "window": ("--target-step", "90", "--method", "linear", "--fit-last", "3"),
    "scale": ("--method", "linear", "--scale", "1.3", "--others", "base"),
    "score": ("--target-score", "0.1", "--lower-is-better"),
    "score by line": ("--target-score", "0.1", "--lower-is-better", "--method", "linear"),
    "repeats": ("--target-step", "90", "--keep-repeats"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with an error rate for every step."""
    return write_run(tmp_path_factory.mktemp("repeat"), STEPS, curved_run(STEPS))


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Error rates that fall."""
    path = tmp_path_factory.mktemp("scores") / "errors.csv"
    lines = [f"{step},{error}" for step, error in zip(STEPS, ERRORS, strict=True)]
    path.write_text("\n".join(["step,error", *lines]))
    return path


@pytest.mark.parametrize("options", PREDICTIONS.values(), ids=PREDICTIONS.keys())
def test_manifest_repeats_the_run(
    run: Run, scores: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """--from with RUN and --base writes the same weights and the same manifest again."""
    predict(run, tmp_path / "a", *options, "--scores", str(scores))
    manifest = tmp_path / "a" / "alpharl.json"
    succeed("predict", *run.arguments("--from", str(manifest), "-o", str(tmp_path / "b")))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert (tmp_path / "b" / "alpharl.json").read_bytes() == manifest.read_bytes()


def test_repeated_base_that_was_step_0_needs_no_name(tmp_path: Path) -> None:
    """A run that carries its base is repeated by naming the run alone."""
    run = write_run(tmp_path, (0, *STEPS), curved_run((0, *STEPS)))
    succeed("predict", run.root, "-o", tmp_path / "a", "--target-step", "90")
    manifest = tmp_path / "a" / "alpharl.json"
    succeed("predict", run.root, "--from", manifest, "-o", tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_what_a_repeat_lacks_is_named(run: Run, tmp_path: Path) -> None:
    """Local runs are not found by themselves: RUN, --base and a missing step are asked for."""
    predict(run, tmp_path / "a", "--target-step", "90")
    options = ("--from", tmp_path / "a" / "alpharl.json", "-o", tmp_path / "b")
    assert "name the RUN" in fail("predict", *options)
    assert "--base" in fail("predict", run.root, *options)
    other = write_run(tmp_path / "other", STEPS, curved_run(STEPS, seed=3))
    assert "not the weights" in fail("predict", *other.arguments(*map(str, options)))
    fewer = write_run(tmp_path / "fewer", STEPS[:-1], curved_run(STEPS))
    assert "no step 40" in fail("predict", str(fewer.root), "--base", str(run.base), *options)
    assert not (tmp_path / "b").exists()


def test_options_beside_a_manifest_are_refused(run: Run, tmp_path: Path) -> None:
    """A repeat is as it was: other targets or methods beside --from are a usage error."""
    predict(run, tmp_path / "a", "--target-step", "90")
    options = ("--from", tmp_path / "a" / "alpharl.json", "-o", tmp_path / "b")
    for more in (("--target-step", "50"), ("--method", "linear"), ("--steps", "4")):
        result = command("predict", *run.arguments(*map(str, options)), *more)
        assert result.exit_code == 2
        assert more[0] in result.stderr


def put(*path: str | int) -> Callable[..., Callable[[Any], None]]:
    """Set one place of a document."""

    def with_value(value: object) -> Callable[[Any], None]:
        def change(document: Any) -> None:
            for key in path[:-1]:
                document = document[key]
            document[path[-1]] = value

        return change

    return with_value


def hub_checkpoint(**changes: object) -> dict[str, object]:
    """A checkpoint that claims to be on a Hub."""
    record: dict[str, object] = {
        "step": 4,
        "source": "org/name",
        "revision": None,
        "commit": "a" * 40,
        "folder": "",
        "fingerprint": None,
        "score": None,
    }
    return {**record, **changes}


HOSTILE: dict[str, Callable[[Any], None]] = {
    "command": put("command")("touch {marker}"),
    "evaluate in run": put("run", "evaluate")("touch {marker}"),
    "output path": put("output")("{marker}"),
    "push target": put("method", "push_to")("me/stolen"),
    "endpoint": put("run", "endpoint")("http://evil.example"),
    "token": put("run", "token")("hf_x"),
    "devices": put("devices")(["cuda:0"]),
    "schema 99": put("schema")(99),
    "schema true": put("schema")(True),
    "schema text": put("schema")("1"),
    "no schema": lambda d: d.pop("schema"),
    "kind": put("kind")("recipe"),
    "factors": put("kind")("factors"),
    "no method": put("method")(None),
    "method": put("method", "name")("os.system"),
    "anchor": put("method", "anchor")("../base"),
    "others": put("method", "others")("delete"),
    "dtype": put("method", "dtype")("float8"),
    "damping 0": put("method", "damping")(0.0),
    "damping 1e300": put("method", "damping")(1e300),
    "damping -1": put("method", "damping")(-1),
    "fit_last": put("method", "fit_last")("__import__('os')"),
    "target text": put("method", "target_step")("90"),
    "target list": put("method", "target_step")([90]),
    "target bool": put("method", "target_step")(True),
    "no target": put("method", "target_step")(None),
    "two targets": put("method", "target_score")(0.5),
    "target 1e300": put("method", "target_step")(1e300),
    "target before": put("method", "target_step")(-5),
    "no checkpoints": put("run", "checkpoints")([]),
    "one checkpoint": lambda d: d["run"].update(checkpoints=d["run"]["checkpoints"][-1:]),
    "falling steps": lambda d: d["run"]["checkpoints"].reverse(),
    "same step": put("run", "checkpoints", 1, "step")(4),
    "no step": put("run", "checkpoints", 1, "step")(None),
    "step text": put("run", "checkpoints", 1, "step")("10"),
    "step float": put("run", "checkpoints", 1, "step")(10.0),
    "unknown step": put("run", "checkpoints", 4, "step")(41),
    "fingerprint": put("run", "checkpoints", 1, "fingerprint")("0" * 64),
    "no fingerprint": put("run", "checkpoints", 1, "fingerprint")(None),
    "base fingerprint": put("run", "base", "fingerprint")(""),
    "repo with dots": put("run", "checkpoints", 0)(hub_checkpoint(source="../../etc")),
    "repo is a path": put("run", "checkpoints", 0)(hub_checkpoint(source="/etc/passwd")),
    "repo is a url": put("run", "checkpoints", 0)(hub_checkpoint(source="http://evil.example/a")),
    "folder with dots": put("run", "checkpoints", 0)(hub_checkpoint(folder="a/../../b")),
    "commit is a branch": put("run", "base")(hub_checkpoint(commit="main")),
    "commit with slash": put("run", "base")(hub_checkpoint(commit="../" + "a" * 37)),
    "regex": put("run", "include")("("),
    "unknown key deep": put("tensors", 0, "code")("x"),
    "missing key": lambda d: d["run"].pop("base"),
    "list": put("run")([]),
    "tensors": put("tensors")("all"),
}


@pytest.fixture(scope="module")
def good(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A manifest that can be repeated."""
    folder = tmp_path_factory.mktemp("good") / "out"
    predict(run, folder, "--target-step", "90")
    return json.loads((folder / "alpharl.json").read_text())


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_manifest_runs_nothing(
    run: Run, good: dict[str, Any], tmp_path: Path, change: Callable[[Any], None]
) -> None:
    """Unknown keys, wrong types and places outside: exit 1, one line, and nothing happens."""
    document = json.loads(json.dumps(good))
    change(document)
    marker = tmp_path / "marker"
    manifest = tmp_path / "alpharl.json"
    manifest.write_text(json.dumps(document).replace("{marker}", str(marker)))
    refuse(run, manifest)
    assert os.listdir(tmp_path) == ["alpharl.json"]


TEXTS = {
    "empty": b"",
    "no json": b"#!/bin/sh\ntouch x",
    "no object": b"[1]",
    "nan": b'{"schema": NaN}',
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "twice": b'{"schema": 1, "schema": 1}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_files_that_are_no_manifest(run: Run, tmp_path: Path, text: bytes) -> None:
    """Anything but one strict JSON object is refused by its name."""
    manifest = tmp_path / "alpharl.json"
    manifest.write_bytes(text)
    refuse(run, manifest)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(run: Run, good: dict[str, Any], tmp_path: Path, number: str) -> None:
    """NaN and infinities, spelled or overflowing, are refused wherever they stand."""
    text = json.dumps(good)
    for place in ('"damping": 1.0', '"target_step": 90.0'):
        assert place in text
        manifest = tmp_path / "alpharl.json"
        manifest.write_text(text.replace(place, place.rpartition(" ")[0] + " " + number))
        refuse(run, manifest)


def refuse(run: Run, manifest: Path) -> None:
    """Insist that a manifest is refused in one line and leaves no output."""
    output = manifest.parent / "out"
    line = fail("predict", *run.arguments("--from", str(manifest), "-o", str(output)))
    assert len(line) > len("Error: ") + 20
    assert not output.exists()

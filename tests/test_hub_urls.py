"""A browser's URL names a Hub too: the one in use is read, and no other in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alpharl_hub.local_hub import child_environment

OURS = "http://127.0.0.1:9/hub"
PUBLIC = "https://huggingface.co"
SCRIPT = """
import sys
from alpharl_hub.errors import SourceError
from alpharl_hub.sources.hub_uri import parse_place
for text in sys.argv[1:]:
    try:
        print(parse_place(text))
    except SourceError as error:
        print(error)
"""


def read_places(home: Path, endpoint: str, *texts: str) -> list[str]:
    """Read texts in a process of its own: the client takes its endpoint when it is imported."""
    environment = child_environment(endpoint, home)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", SCRIPT, *texts]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("endpoint", [PUBLIC, "https://hf.co", f"{PUBLIC}/"])
def test_the_public_hub_has_two_names(tmp_path: Path, endpoint: str) -> None:
    """With either as endpoint the URLs of both are read, in any case, with or without TLS."""
    texts = [f"{PUBLIC}/me/r", "https://HF.co/me/r", "http://huggingface.co:80/me/r"]
    assert read_places(tmp_path, endpoint, *texts) == ["me/r"] * 3


def test_a_url_of_the_endpoint_is_read(tmp_path: Path) -> None:
    """A company's Hub below a path of its own, and what a browser shows of a branch."""
    texts = [f"{OURS}/me/r", f"{OURS}/me/r-{{step}}", f"{OURS}/me/r/tree/dev/a"]
    assert read_places(tmp_path, OURS, *texts) == ["me/r", "me/r-{step}", "me/r@dev/a"]


@pytest.mark.parametrize(
    ("endpoint", "url", "hub"),
    [
        (OURS, f"{PUBLIC}/me/r-{{step}}", PUBLIC),
        (OURS, "https://hf.co/me/r-{step}", PUBLIC),
        (OURS, "http://127.0.0.1:10/me/r-{step}", "http://127.0.0.1:10"),
        (PUBLIC, "http://127.0.0.1:9/me/r-{step}", "http://127.0.0.1:9"),
        (PUBLIC, "https://lab.example/me/r-{step}?x=1", "https://lab.example"),
    ],
)
def test_a_url_of_another_hub_is_refused(tmp_path: Path, endpoint: str, url: str, hub: str) -> None:
    """One line: which Hub is in use, the id to read from it, and how to use the other."""
    assert read_places(tmp_path, endpoint, url) == [
        f"{url}: on another Hub than the one in use ({endpoint}); write me/r-{{step}} to read it "
        f"there, or set HF_ENDPOINT={hub} if you trust that Hub"
    ]


@pytest.mark.parametrize("url", ["https://[::1/x/y", "https://a b/c/d"])
def test_a_url_that_makes_no_sense_is_one_line(tmp_path: Path, url: str) -> None:
    """An address that nobody can read is no crash."""
    assert read_places(tmp_path, PUBLIC, url) == [
        f"{url}: its address makes no sense; check the endpoint"
    ]

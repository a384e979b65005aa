"""A Hub on loopback and commands against it, for test files that need nothing special of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_fixtures import Commands, commands_for, served_hub
from huggingface_hub.utils import close_session

from alpharl_hub.local_hub import LocalHub

# Commands run with homes of their own, in which matplotlib would look for all fonts anew.
os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / "alpharl-matplotlib"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub for all tests of a file; each test has repos of its own."""
    with served_hub(tmp_path_factory.mktemp("hub")) as served:
        yield served
    close_session()


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, hub: LocalHub) -> Iterator[Commands]:
    """Commands that know that Hub, with an empty cache."""
    with commands_for(tmp_path_factory.mktemp("commands"), hub) as found:
        yield found

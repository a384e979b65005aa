"""What the files of extracted factors are called."""

from __future__ import annotations

import re

SINGLE_FILE = "factors.safetensors"
INDEX_FILE = "factors.safetensors.index.json"
FACTOR_FILE = re.compile(r"factors(-(?P<number>\d{1,9})-of-(?P<count>\d{1,9}))?\.safetensors", re.A)

LOCAL_PLACES = "local-places.json"
"""Where local checkpoints lie on this machine, for `predict DIR`; never pushed."""

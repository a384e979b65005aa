"""The environment of a child process that is to use this Hub and nothing of the user's."""

import os
from collections.abc import Mapping
from pathlib import Path

# Read by the clients at import: tokens, caches, offline switches and proxies of the user.
FOREIGN_PREFIXES = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
FOREIGN_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def child_environment(
    endpoint: str, home: Path, token: str | None = None, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return `base` without the user's Hub settings and proxies, pointed at this Hub.

    `home` becomes HF_HOME: an empty folder means no cache and no stored token.
    """
    kept = {
        name: value
        for name, value in base.items()
        if not name.startswith(FOREIGN_PREFIXES) and name.lower() not in FOREIGN_NAMES
    }
    ours = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    return {**kept, **ours, **({"HF_TOKEN": token} if token else {})}

"""Regular expressions of a manifest, which anybody may have written: tried before they are used.

Python's know no limit of time (https://docs.python.org/3/library/re.html), and one can be written
that takes longer than anybody lives. So a process of its own, with limits that the system keeps,
tries them on the very names that they are meant for: what comes to an end there does so here too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Sequence

from alpharl_hub.errors import ManifestError, ResourceError
from alpharl_hub.strict_json import shown

MAX_EXPRESSION_CHARS = 1000
MAX_CPU_S = 5
"""100,000 names take what people write 0.1 s."""

_MAX_MEMORY_BYTES = 1 << 30
_MAX_WAIT_S = 60.0  # on a machine so busy that a few seconds of its time take so long
_TRIAL = """
import json, re, resource, sys
asked = json.load(sys.stdin)
for kind in ("RLIMIT_CPU", "RLIMIT_AS"):
    try:
        resource.setrlimit(getattr(resource, kind), (asked[kind], asked[kind]))
    except (OSError, ValueError):
        pass  # macOS keeps no limit of memory
for expression in asked["expressions"]:
    try:
        found = re.compile(expression)
    except re.error:
        continue  # whoever uses it says so
    for name in asked["names"]:
        found.search(name)
"""


def require_bounded(expressions: Sequence[str], names: Collection[str], where: str) -> None:
    """Refuse expressions that are not matched against all names soon; `where` is their manifest.

    Raises:
        ManifestError: one is too long, or they take more than 5 s or 1 GB.
        ResourceError: no process can be started.
    """
    if not expressions:
        return
    quoted = " and ".join(map(shown, expressions))
    advice = "name the run, with an --include or --exclude of your own"
    if any(len(expression) > MAX_EXPRESSION_CHARS for expression in expressions):
        raise ManifestError(f"{where}: the expression {quoted} is too long; {advice}")
    limits = {"RLIMIT_CPU": MAX_CPU_S, "RLIMIT_AS": _MAX_MEMORY_BYTES}
    asked = json.dumps({"expressions": expressions, "names": list(names), **limits})
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIAL],
            input=asked.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_MAX_WAIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        is_bounded = False
    except OSError as error:
        raise ResourceError(
            f"{where}: no process can be started to try {quoted} ({error.strerror}); end others"
        ) from error
    else:
        is_bounded = ended.returncode == 0
    if not is_bounded:
        raise ManifestError(f"{where}: {quoted} takes too long to be matched; {advice}")

"""Search one reader with atheris: `python -m tests.fuzz header -max_total_time=60`.

What comes after the name goes to libFuzzer. The kept corpus is where it starts from; what it adds
stays in a temporary folder, whose name it prints. A finding is kept by copying it into the corpus.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp

import atheris  # not among the requirements of the tests: it has no wheels for every Python

with atheris.instrument_imports(include=["alpharl_hub"]):
    from tests.fuzz.targets import READERS, refusal

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    """Fuzz the reader named first."""
    name, *options = sys.argv[1:] or [""]
    if name not in READERS:
        sys.exit(f"name one of {', '.join(READERS)}")
    found = mkdtemp(prefix=f"fuzz-{name}-")
    print(f"inputs that reach new code go to {found}")
    folders = [found, str(CORPUS / name)]
    atheris.Setup([sys.argv[0], *options, *folders], lambda data: refusal(name, data))
    atheris.Fuzz()


main()

"""python -m alpharl_hub.local_hub: a Hub in a process of its own.

Writes {"endpoint": ..., "storage_endpoint": ...} as one line on stdout when it serves, and ends
with its standard input, which it says on stderr, or on SIGTERM or SIGINT.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from threading import Event, Thread

from alpharl_hub.local_hub.server import LocalHub

_DESCRIPTION = """\
A Hub for tests and trials, on this machine only. When it serves it writes its addresses as one
line of JSON on stdout. It serves until its standard input ends (with `< /dev/null`, or `&` in a
script, that is at once; `sleep infinity | python -m ...` keeps it) or SIGINT or SIGTERM comes.
"""
_EPILOG = """\
A client is sent here with HF_ENDPOINT=ENDPOINT, and HF_TOKEN=TOKEN where it must be somebody. The
hf command, transformers and other ordinary clients need HF_HUB_DISABLE_XET=1 too: this Hub takes
and gives large files by LFS, not by Xet.
"""


def main() -> int:
    """Serve until told to stop."""
    options = _parser().parse_args()
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    with LocalHub(
        options.root,
        dict(options.token),
        orgs={name: users.split(",") for name, users in options.org},
        signed_url_lifetime_s=options.signed_url_lifetime,
        page_size=options.page_size,
        multipart_chunk_bytes=options.multipart_chunk_bytes,
        bytes_per_s=options.rate,
        port=options.port,
        certificate=options.certificate,
    ) as hub:
        endpoints = {"endpoint": hub.endpoint, "storage_endpoint": hub.storage_endpoint}
        sys.stdout.write(json.dumps(endpoints) + "\n")
        sys.stdout.flush()
        stop.wait()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alpharl_hub.local_hub", description=_DESCRIPTION, epilog=_EPILOG
    )
    add = parser.add_argument
    add("--root", type=Path, required=True, help="folder that keeps everything")
    add("--port", type=int, default=0, help="port of the Hub, a free one by default")
    add(
        "--token",
        type=_pair,
        action="append",
        default=[],
        metavar="TOKEN=USER",
        help="a token, of your making, that lets its bearer act as this user; may be repeated",
    )
    add(
        "--org",
        type=_pair,
        action="append",
        default=[],
        metavar="NAME=USER,USER",
        help="an organisation and who may write to its repos; may be repeated",
    )
    add("--rate", type=float, metavar="BYTES_PER_S", help="limit of all downloads together")
    add("--certificate", type=Path, metavar="PEM", help="large files over TLS; with its key")
    add("--page-size", type=int, default=1000, help="entries in one page of a listing")
    add("--multipart-chunk-bytes", type=int, help="larger uploads go in parts of this size")
    add(
        "--signed-url-lifetime",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="how long the address of a large file is good",
    )
    return parser


def _pair(text: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text}")
    return left, right


def _wait_for_end_of_input(stop: Event) -> None:
    # Not sys.stdin: at exit, Python would wait for the lock that a reader of it holds.
    while os.read(0, 4096):
        pass
    if not stop.is_set():
        os.write(2, b"standard input has ended: the Hub stops\n")
    stop.set()


if __name__ == "__main__":
    raise SystemExit(main())

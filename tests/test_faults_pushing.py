"""Pushing to a Hub that fails at every step: real uploads over HTTP, and the Hub's own log."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import traceback
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from faulty_network import (
    foreign_settings,
    free_port,
    listening,
    place_of,
    proxied,
    rename_loopback,
)
from hub_fixtures import ALICE, BOB, Commands, Done, add_base, add_branches, commands_for, wide_line
from huggingface_hub import close_session
from local_hub_helpers import ask
from trajectories import Run, model_config, rank_one_line, succeed, write_run

import alpharl_hub
from alpharl_hub.errors import PushError
from alpharl_hub.local_hub import Fault, LocalHub, child_environment
from alpharl_hub.push.hub_target import HubAccess
from alpharl_hub.push.model_upload import PushHooks, PushOptions, PushResult, push_folder
from alpharl_hub.sources.hub_session import MAX_ANSWER_BYTES
from alpharl_hub.sources.patience import Cancelled, Patience

# The client sends parts of an LFS upload in a way that its HTTP library has deprecated
# (huggingface_hub 2.4, `_upload_parts_iteratively`).
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPO = "alice/model"
CERTIFICATE = Path(__file__).parent / "data" / "loopback.pem"
WORDS = "Private repository storage limit reached, please upgrade your plan"


@pytest.fixture(autouse=True)
def _own_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in foreign_settings():
        monkeypatch.delenv(name)
    close_session()  # it has read these variables when it was made
    yield
    close_session()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A Hub without Xet that takes larger files in parts."""
    tokens = {ALICE: "alice", BOB: "bob"}
    with LocalHub(tmp_path / "hub", tokens, multipart_chunk_bytes=5000) as started:
        yield started


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predicted model in three shards, as predict leaves it behind."""
    folder = tmp_path_factory.mktemp("predicted")
    options = {"last_options": {"num_shards": 3}}
    run = write_run(folder / "in", (10, 20, 30), rank_one_line(), **options)
    succeed("predict", *run.arguments("-o", str(folder / "out"), "--target-step", "60", "-q"))
    assert len(list((folder / "out").glob("*.safetensors"))) == 3
    return folder / "out"


class Pushing:
    """Pushes as Alice; waits are written down and not waited, except by the client itself."""

    def __init__(self, hub: LocalHub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.waits_s: list[float] = []
        self.told: list[str] = []

    def __call__(self, **access: object) -> PushResult:
        """Push the folder."""
        patience = Patience(
            sleep=self.waits_s.append,
            on_wait=lambda seconds, reason: self.told.append(f"{seconds:g} s: {reason}"),
        )
        settings = {"token": ALICE, "endpoint": self.hub.endpoint, **access}
        return push_folder(
            self.folder,
            REPO,
            PushOptions(),
            access=HubAccess(**settings),  # type: ignore[arg-type]
            hooks=PushHooks(patience=patience),
        )

    def error(self, **access: object) -> str:
        """The one line that a push fails with: without token and without signed addresses."""
        with pytest.raises(PushError) as caught:
            self(**access)
        text = str(caught.value)
        assert text.startswith(f"{REPO}: ")
        assert "\n" not in text
        assert ALICE not in text
        assert "Signature" not in text
        return text

    def assert_there(self, result: PushResult) -> None:
        """The Hub has one commit of this folder's model, and every byte of its weights."""
        assert result.commit == self.hub.refs(REPO)["refs/heads/main"]
        for path in self.folder.glob("*.safetensors*"):
            assert self.hub.read_file(REPO, path.name) == path.read_bytes()
        commits = ask(f"{self.hub.endpoint}/api/models/{REPO}/commits/main").body
        assert commits.count(b"Predict a model with alpharl-hub") == 1


@pytest.fixture
def pushing(hub: LocalHub, predicted: Path, tmp_path: Path) -> Pushing:
    """A push of a copy of the predicted model."""
    return Pushing(hub, Path(shutil.copytree(predicted, tmp_path / "model")))


def pending(hub: LocalHub) -> bytes:
    """Faults that have not happened."""
    return ask(f"{hub.endpoint}/local-hub/faults").body


def uploads(hub: LocalHub) -> Counter[str]:
    """How often each part of each content was sent and taken."""
    return Counter(
        re.sub(r"/[0-9a-f]{16}/", "/", r.path)
        for r in hub.log
        if r.method == "PUT" and r.status == 200
    )


STEPS_OF_A_PUSH = {
    "whoami": ("/api/whoami-v2", "GET"),
    "looking": ("/api/models/alice/model", "GET"),
    "making": ("/api/repos/create", "POST"),
    "branches": ("/refs", "GET"),
    "asking for Xet": ("/xet-write-token/", "GET"),
    "listing": ("/tree/", "GET"),
    "preparing": ("/preupload/", "POST"),
    "batch": ("/info/lfs/objects/batch", "POST"),
    "a part": ("/upload/", "PUT"),
    "joining the parts": ("/api/complete-multipart/", "POST"),
    "verifying": ("/info/lfs/verify", "POST"),
    "checking the card": ("/api/validate-yaml", "POST"),
    "committing": ("/commit/", "POST"),
}
BY_THE_CLIENT = ("preparing", "batch", "a part", "joining the parts", "verifying")


@pytest.mark.parametrize("kind", ["drop", "reset", "status"])
def test_every_step_fails_once(hub: LocalHub, pushing: Pushing, kind: str) -> None:
    """A lost request, a lost answer and a 503, each at every step of one push: it still ends well.

    What the server had done when its answer was lost is found out and not done again.
    """
    for match, method in STEPS_OF_A_PUSH.values():
        skip = 2 if match == "/upload/" else 0  # in the middle of the parts
        hub.add_fault(Fault(match, kind, method=method, skip=skip))  # type: ignore[arg-type]
    result = pushing()
    assert pending(hub) == b"[]"
    pushing.assert_there(result)
    if kind != "drop":
        assert hub.log[-1].status == 200


def test_a_limit_on_uploads_is_waited_and_shown(hub: LocalHub, pushing: Pushing) -> None:
    """What the client would wait in silence is told, for as long as the Hub says."""
    limit = (("Retry-After", "1"),)
    for step in BY_THE_CLIENT:
        match, method = STEPS_OF_A_PUSH[step]
        hub.add_fault(Fault(match, "status", status=429, headers=limit, method=method))
    started_s = time.monotonic()
    pushing.assert_there(pushing())
    assert time.monotonic() - started_s >= len(BY_THE_CLIENT)
    assert len(pushing.told) == len(BY_THE_CLIENT)
    for line in pushing.told:
        assert line.startswith(f"1 s: {REPO}: ")
        assert line.endswith(" answered 429")


@pytest.mark.parametrize("step", STEPS_OF_A_PUSH)
def test_an_hour_is_waited_nowhere(hub: LocalHub, pushing: Pushing, step: str) -> None:
    """More than ten minutes stop the push with a line, at any step; later it goes on."""
    match, method = STEPS_OF_A_PUSH[step]
    limit = (("RateLimit", '"api";r=0;t=3600'),)
    hub.add_fault(Fault(match, "status", status=429, headers=limit, method=method, times=9))
    started_s = time.monotonic()
    text = pushing.error()
    assert time.monotonic() - started_s < 5
    assert "asks to wait 3600 s, more than the 600 s that are waited here; try again" in text
    assert pushing.waits_s == []
    hub.clear_faults()
    pushing.assert_there(pushing())
    if step != "joining the parts":  # parts that were never joined are lost to everybody
        assert set(uploads(hub).values()) == {1}


@pytest.mark.parametrize("step", ["making", "preparing", "batch", "committing"])
def test_a_full_storage_stops_in_the_servers_words(
    hub: LocalHub, pushing: Pushing, step: str
) -> None:
    """A 403 is final wherever it comes; when there is room the push goes on."""
    match, method = STEPS_OF_A_PUSH[step]
    words = (("X-Error-Message", WORDS),)
    hub.add_fault(Fault(match, "status", status=403, headers=words, method=method, times=9))
    assert WORDS in pushing.error()
    assert pushing.waits_s == []
    assert len([r for r in hub.log if match in r.path and r.status == 403]) == 1
    hub.clear_faults()
    pushing.assert_there(pushing())
    assert set(uploads(hub).values()) == {1}


def test_a_part_that_is_refused(hub: LocalHub, pushing: Pushing) -> None:
    """The line holds the server's answer; files that had arrived are not sent again."""
    sizes = sorted(path.stat().st_size for path in pushing.folder.glob("*.safetensors"))
    num_parts = sum(-(-size // 5000) for size in sizes)
    gone = Fault("/upload/", "status", status=410, text="", times=9, skip=num_parts - 1)
    hub.add_fault(gone)
    text = pushing.error()
    assert "refuses (status 410)" in text
    assert "/upload/" in text
    arrived = uploads(hub)
    assert arrived.total() == num_parts - 1
    hub.clear_faults()
    pushing.assert_there(pushing())
    again = uploads(hub) - arrived
    assert len({path.split("/")[4] for path in again}) == 1


def test_a_signed_upload_address_that_has_expired(hub: LocalHub, pushing: Pushing) -> None:
    """A 403 of the store is no refusal of the Hub: there are new addresses, and they are used."""
    hub.add_fault(Fault("/upload/", "status", status=403, skip=1))
    pushing.assert_there(pushing())
    assert pushing.waits_s == [1.0]
    assert len([r for r in hub.log if r.path.endswith("/objects/batch")]) == 4


def test_a_content_that_has_not_arrived(predicted: Path, tmp_path: Path) -> None:
    """The store says that it took a file and has not: it is sent again, once."""
    with LocalHub(tmp_path / "hub", {ALICE: "alice"}) as hub:
        pushing = Pushing(hub, predicted)
        hub.add_fault(Fault("/upload/", "status", status=200, method="PUT"))
        pushing.assert_there(pushing())
        verified = [r.status for r in hub.log if r.path.endswith("/info/lfs/verify")]
        assert verified == [404, 200, 200, 200]


def test_a_content_that_never_arrives(predicted: Path, tmp_path: Path) -> None:
    """The second time it is an error in the Hub's words; no commit names what is not there."""
    with LocalHub(tmp_path / "hub", {ALICE: "alice"}) as hub:
        hub.add_fault(Fault("/upload/", "status", status=200, method="PUT", times=9))
        assert "has not arrived" in Pushing(hub, predicted).error()
        assert not [r for r in hub.log if "/commit/" in r.path]


@pytest.mark.parametrize("step", ["batch", "a part", "verifying", "listing"])
def test_a_silent_hub_is_left(hub: LocalHub, pushing: Pushing, step: str) -> None:
    """No answer for the length of the timeout, to what the client asks by itself: asked again."""
    match, method = STEPS_OF_A_PUSH[step]
    hub.add_fault(Fault(match, "slow", method=method, seconds=9.0))
    started_s = time.monotonic()
    pushing.assert_there(pushing(timeout_s=0.5))
    assert time.monotonic() - started_s < 6
    assert pending(hub) == b"[]"


def test_a_commit_that_takes_too_long_is_made_once(hub: LocalHub, pushing: Pushing) -> None:
    """The answer does not come in time, the next attempt wins, and the first finds it done."""
    hub.add_fault(Fault("/commit/", "slow", method="POST", seconds=1.5))
    result = pushing(timeout_s=0.5)
    deadline_s = time.monotonic() + 10
    while [r.status for r in hub.log if "/commit/" in r.path] != [200, 412]:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    pushing.assert_there(result)


LOGIN_PAGE = "<html><body>Please log in</body></html>"


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault("/api/validate-yaml", "status", status=s) for s in (429, 500, 502, 504)),
        Fault("/api/validate-yaml", "status", status=503, text=LOGIN_PAGE, times=3),
        Fault("/api/validate-yaml", "status", status=503, text="[]", times=2),
        Fault("/api/validate-yaml", "cut", after_bytes=1),
    ],
)
def test_a_check_of_the_card_that_fails_for_a_while(
    hub: LocalHub, pushing: Pushing, fault: Fault
) -> None:
    """The client parses this answer before it looks at its status: it is asked again all the same.

    Every wait is told once.
    """
    hub.add_fault(fault)
    pushing.assert_there(pushing())
    assert pushing.waits_s == [1.0, 2.0, 4.0][: fault.times]
    assert len(pushing.told) == fault.times
    if fault.kind == "status":
        assert pushing.told[0] == f"1 s: {REPO}: the Hub answers {fault.status}"


@pytest.mark.parametrize("step", ["looking", "listing", "preparing", "batch", "checking the card"])
@pytest.mark.parametrize("text", [LOGIN_PAGE, "7", "", "[" * 100_000])
def test_a_page_instead_of_an_answer(hub: LocalHub, pushing: Pushing, step: str, text: str) -> None:
    """A login page, another document, or none, with status 200: one line, and no commit."""
    match, method = STEPS_OF_A_PUSH[step]
    if step == "looking":
        pushing()  # the repo is there
    hub.add_fault(Fault(match, "status", status=200, text=text, method=method, times=9))
    (pushing.folder / "config.json").write_text("{}")
    before = [r.status for r in hub.log if "/commit/" in r.path]
    host = hub.endpoint.removeprefix("http://")
    line = f"{REPO}: {host} does not answer as a Hub does; check HF_ENDPOINT and proxies"
    assert pushing.error() == line
    assert [r.status for r in hub.log if "/commit/" in r.path] == before


@pytest.mark.parametrize(("status", "words"), [(400, "(status 400)"), (401, "token")])
def test_a_card_that_is_refused(hub: LocalHub, pushing: Pushing, status: int, words: str) -> None:
    """A refusal that is no JSON is one line all the same, and final."""
    fault = Fault("/api/validate-yaml", "status", status=status, text=LOGIN_PAGE, times=9)
    hub.add_fault(fault)
    assert words in pushing.error()
    assert pushing.waits_s == []


def test_a_listing_without_end(hub: LocalHub, pushing: Pushing) -> None:
    """Pages that name themselves as the next one are noticed."""
    pushing()
    hub.clear_log()
    (pushing.folder / "config.json").write_text("{}")
    again = (("Link", f'<{hub.endpoint}/api/models/{REPO}/tree/main?cursor=1>; rel="next"'),)
    hub.add_fault(Fault("/tree/", "status", status=200, headers=again, text="[]", times=9))
    text = pushing.error()
    assert text.endswith("leads back to a page that it gave before; check HF_ENDPOINT")
    assert len([r for r in hub.log if "/tree/" in r.path]) == 2


def test_an_answer_without_end(hub: LocalHub, pushing: Pushing) -> None:
    """Packed into little, a long answer is not unpacked beyond the limit."""
    packed = gzip.compress(bytes(MAX_ANSWER_BYTES + 1), 1)
    assert len(packed) < MAX_ANSWER_BYTES / 100
    with listening(lambda number: (200, {"Content-Encoding": "gzip"}, packed)) as other:
        text = pushing.error(endpoint=other.url)
    assert "answered more than 64 MiB to one question; check HF_ENDPOINT" in text


def test_a_commit_that_never_reached_the_hub(hub: LocalHub, pushing: Pushing) -> None:
    """The request was lost and not the answer: the branch stands where it was, so it is sent."""
    hub.add_fault(Fault("/commit/", "drop", method="POST", times=2))
    pushing.assert_there(pushing())
    assert [r.status for r in hub.log if "/commit/" in r.path] == [0, 0, 200]


def test_somebody_else_commits_at_the_same_time(hub: LocalHub, pushing: Pushing) -> None:
    """The answer to our commit is lost and the branch has moved: theirs stays, ours is refused."""
    pushing.assert_there(pushing())
    other = hub.add_commit(REPO, files={"notes.txt": b"theirs"})
    (pushing.folder / "config.json").write_text("{}")
    hub.add_fault(Fault("/commit/", "status", status=412, method="POST"))
    assert "somebody else committed to the branch meanwhile" in pushing.error()
    assert hub.refs(REPO)["refs/heads/main"] == other


def test_a_stop_ends_a_push(hub: LocalHub, predicted: Path) -> None:
    """What stops a run stops its upload before the next request, also inside of the client."""
    stop = threading.Event()
    patience = Patience(stop=stop, on_wait=lambda seconds, reason: stop.set())
    hub.add_fault(Fault("/upload/", "status", status=503))
    access = HubAccess(ALICE, hub.endpoint)
    with pytest.raises(Cancelled):
        push_folder(
            predicted, REPO, PushOptions(), access=access, hooks=PushHooks(patience=patience)
        )
    assert not [r for r in hub.log if "/commit/" in r.path]


# -- where requests go ---------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["whoami", "branches", "listing", "batch", "committing"])
def test_the_token_goes_to_no_other_server(hub: LocalHub, pushing: Pushing, step: str) -> None:
    """A Hub that sends elsewhere gets no token sent there, and no model."""
    match, method = STEPS_OF_A_PUSH[step]
    with listening() as other:
        location = (("Location", f"{other.url}/elsewhere"),)
        fault = Fault(match, "status", status=307, headers=location, method=method, times=9)
        hub.add_fault(fault)
        pushing.error()
    assert [path for path, _ in other.requests if path.endswith("/elsewhere")]
    assert all("authorization" not in headers for _, headers in other.requests)
    assert ALICE not in str(other.requests)
    assert not [r for r in hub.log if "/commit/" in r.path and r.status == 200]


@pytest.mark.parametrize("step", ["whoami", "batch", "committing"])
def test_a_public_hub_sends_nobody_into_a_private_network(
    hub: LocalHub, pushing: Pushing, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Redirects to private addresses are refused, and so is a store that lies at one."""
    match, method = STEPS_OF_A_PUSH[step]
    with proxied({"hub.invalid": place_of(hub.endpoint)}) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        close_session()
        endpoint = "http://hub.invalid"
        assert "is sent on to localhost, an address of a private" in pushing.error(
            endpoint=endpoint
        )
        location = (("Location", "http://169.254.169.254/x"),)
        fault = Fault(match, "status", status=307, headers=location, method=method, times=9)
        hub.add_fault(fault)
        allowed = frozenset({"localhost", "127.0.0.1"})
        text = pushing.error(endpoint=endpoint, allowed_hosts=allowed)
        assert "is sent on to 169.254.169.254, an address of a private network" in text
        assert "--allow-host 169.254.169.254" in text
        assert not [words for words in proxy.asked if "169.254" in words]
        hub.clear_faults()
        pushing.assert_there(pushing(endpoint=endpoint, allowed_hosts=allowed))


@pytest.mark.parametrize("step", ["whoami", "batch", "committing"])
def test_a_name_that_leads_elsewhere_when_it_is_used(
    hub: LocalHub, pushing: Pushing, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Public when it is checked, here when it is asked: the connection is looked at before use."""
    rename_loopback(monkeypatch, "hub.example", "store.example")
    endpoint = hub.endpoint.replace("127.0.0.1", "hub.example")
    allowed = frozenset({"localhost", "127.0.0.1"})
    match, method = STEPS_OF_A_PUSH[step]
    with listening() as other:
        location = (("Location", other.url.replace("127.0.0.1", "store.example")),)
        fault = Fault(match, "status", status=307, headers=location, method=method, times=9)
        hub.add_fault(fault)
        text = pushing.error(endpoint=endpoint, allowed_hosts=allowed)
    assert "is sent on to store.example, an address of a private network" in text
    assert other.requests == []
    hub.clear_faults()
    pushing.assert_there(pushing(endpoint=endpoint, allowed_hosts=allowed))


PUSHING_SCRIPT = (
    "import sys; from pathlib import Path\n"
    "from alpharl_hub.push.model_upload import PushOptions, push_folder\n"
    "print(push_folder(Path(sys.argv[1]), 'alice/model', PushOptions()).commit)\n"
)


def push_elsewhere(
    folder: Path, hub: LocalHub, home: Path, script: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Push from a process with variables of its own."""
    environment = child_environment(hub.endpoint, home, ALICE) | variables
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_company_certificate_and_proxy(predicted: Path, tmp_path: Path, name: str) -> None:
    """All of a push goes through tunnels, and the certificate is believed that a variable names.

    The same variables as for reading; the Hub's client itself knows only the first.
    """
    tls = {"certificate": CERTIFICATE, "all_over_tls": True}
    with LocalHub(tmp_path / "hub", {ALICE: "alice"}, **tls) as hub, proxied() as proxy:  # type: ignore[arg-type]
        variables = {name: str(CERTIFICATE), "HTTPS_PROXY": proxy.url, "NO_PROXY": ""}
        ended = push_elsewhere(predicted, hub, tmp_path / "home", PUSHING_SCRIPT, **variables)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.strip() == hub.refs(REPO)["refs/heads/main"]
        places = {place_of(url) for url in (hub.endpoint, hub.storage_endpoint)}
        assert set(proxy.asked) == {f"CONNECT {host}:{port}" for host, port in places}


def test_a_certificate_that_is_not_trusted(
    predicted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused at once with the variable that would help; a bundle that is not there is named."""
    tls = {"certificate": CERTIFICATE, "all_over_tls": True}
    with LocalHub(tmp_path / "hub", {ALICE: "alice"}, **tls) as hub:  # type: ignore[arg-type]
        pushing = Pushing(hub, predicted)
        text = pushing.error()
        assert "is not trusted (" in text
        assert text.endswith("; name its CA in SSL_CERT_FILE")
        assert pushing.waits_s == []
        monkeypatch.setenv("CURL_CA_BUNDLE", str(tmp_path / "missing.pem"))
        assert "missing.pem cannot be read (No such file or directory)" in pushing.error()
        assert "SSL_CERT_FILE" not in os.environ


# -- with Xet and without -------------------------------------------------------------------------

WITHOUT_XET = "import sys; sys.modules['hf_xet'] = None\n"
"""As where hf_xet is not installed: importing it fails."""


@pytest.mark.parametrize("is_installed", [True, False])
@pytest.mark.parametrize("disabled", ["", "1"])
@pytest.mark.parametrize("is_offered", [True, False])
def test_xet_is_asked_for_where_it_could_be_used(
    hub: LocalHub,
    predicted: Path,
    tmp_path: Path,
    is_installed: bool,
    disabled: str,
    is_offered: bool,
) -> None:
    """Not installed, disabled, or not offered by the Hub: the weights go by LFS, without a word.

    An offer names a store that is down; it is found out before hf_xet tries it for minutes.
    """
    if is_offered:
        store = (("X-Xet-Cas-Url", f"http://127.0.0.1:{free_port()}"),)
        hub.add_fault(Fault("/xet-write-token/", "status", status=200, headers=store, times=9))
    script = PUSHING_SCRIPT if is_installed else WITHOUT_XET + PUSHING_SCRIPT
    variables = {"HF_HUB_DISABLE_XET": disabled}
    ended = push_elsewhere(predicted, hub, tmp_path / "home", script, **variables)
    assert ended.returncode == 0, ended.stderr
    assert (ended.stdout.strip(), ended.stderr) == (hub.refs(REPO)["refs/heads/main"], "")
    asked = [r.status for r in hub.log if "/xet-write-token/" in r.path]
    assert asked == ([200 if is_offered else 404] if is_installed and not disabled else [])
    assert uploads(hub)


def test_a_store_for_xet_in_a_private_network(
    hub: LocalHub, pushing: Pushing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hf_xet goes where the Hub says and is watched by nobody: what it says is looked at first."""
    rename_loopback(monkeypatch, "hub.example")
    with listening() as other:
        store = (("X-Xet-Cas-Url", other.url.replace("127.0.0.1", "10.1.2.3")),)
        hub.add_fault(Fault("/xet-write-token/", "status", status=200, headers=store, times=9))
        text = pushing.error(endpoint=hub.endpoint.replace("127.0.0.1", "hub.example"))
    assert "is sent on to 10.1.2.3, an address of a private network" in text
    assert uploads(hub).total() == 0


# -- from a run to a repo ------------------------------------------------------------------------


@pytest.fixture
def commands(hub: LocalHub, tmp_path: Path) -> Iterator[Commands]:
    """Commands that find this Hub."""
    with commands_for(tmp_path / "commands", hub) as found:
        yield found


def wide_run(hub: LocalHub, where: Path) -> Run:
    """A run whose last checkpoint has four shards, as lab/run with lab/base, both private."""
    options = {"config": model_config(), "last_options": {"num_shards": 4}}
    found = write_run(where, (10, 20, 30), wide_line(64), **options)
    add_base(hub, "lab/base", found, private=True)
    add_branches(hub, "lab/run", found, private=True)
    return found


def test_a_prediction_that_is_pushed_in_pieces(
    hub: LocalHub, commands: Commands, tmp_path: Path
) -> None:
    """Storage runs full at the third shard: one line; then no shard is sent a second time.

    Nothing secret is said at -vv or left in any file, not even by the Hub's client, which writes
    the addresses of failed uploads into its log.
    """
    wide_run(hub, tmp_path / "in")
    words = ("predict", "lab/run", "--base", "lab/base", "--target-step", "60", "-vv")
    words += ("--push-to", REPO, "--token", ALICE)
    hub.add_fault(Fault("/upload/", "status", status=503))
    full = (("X-Error-Message", WORDS),)
    batch = Fault("/objects/batch", "status", status=403, headers=full, times=9, skip=2)
    hub.add_fault(batch)
    failed = commands.run(*words)
    assert (failed.code, failed.stdout) == (1, "")
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("Error: ")]
    assert WORDS in line
    assert re.search(r"waiting 1 s: alice/model: localhost:\d+ answered 503\n", failed.stderr)
    kept = {path: path.read_bytes() for path in commands.folder.rglob("*") if path.is_file()}
    assert [path for path in kept if path.name == "journal.jsonl"]
    hub.clear_faults()
    done = commands.run(*words, ALPHARL_DEBUG="1", HF_DEBUG="1")
    assert done.code == 0, done.stderr
    sent = uploads(hub)
    assert set(sent.values()) == {1}
    assert len({path.split("/")[4] for path in sent}) == 4
    texts = [failed.stderr, done.stdout, done.stderr]
    texts += [content.decode("latin-1") for content in kept.values()]
    names = ("README.md", "alpharl.json", "config.json")
    texts += [hub.read_file(REPO, name).decode() for name in names]
    for text in texts:
        assert ALICE not in text
        assert "Signature=" not in text
    storage = {r.had_authorization for r in hub.log if r.origin == "storage"}
    assert storage == {False}


_ONE_AFTER_THE_OTHER = """
import json, sys
from alpharl_hub.cli import main

for words in json.loads(sys.argv[1]):
    main(words, standalone_mode=False)
"""


def test_only_what_is_needed_is_asked_of_the_hub(
    hub: LocalHub, predicted: Path, tmp_path: Path
) -> None:
    """The client's own list of agents, which it gets without any limits, is asked for by nobody.

    As a user has it: nothing is cached, and no variable turns the client's telemetry off. The
    commands share a process, because the client looks only once in each.
    """
    wide_run(hub, tmp_path / "in")
    run = ["lab/run", "--base", "lab/base"]
    out = str(tmp_path / "out")
    commands = [
        ["inspect", *run],
        ["predict", *run, "--target-step", "60", "--method", "alpharl", "-o", out],
        ["card", out],
        ["push", str(predicted), REPO],
        ["extract", *run, "--push-to", "alice/run-factors"],
    ]
    home = tmp_path / "home"
    environment = child_environment(hub.endpoint, home, ALICE)
    del environment["HF_HUB_DISABLE_TELEMETRY"]
    done = subprocess.run(
        [sys.executable, "-c", _ONE_AFTER_THE_OTHER, json.dumps(commands)],
        env={**environment, "PYTHONPATH": str(Path(alpharl_hub.__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert hub.read_file(REPO, "README.md")
    assert hub.read_file("alice/run-factors", "README.md")
    assert {r.method for r in hub.log if r.origin == "api"} >= {"GET", "HEAD", "POST"}
    assert [r.path for r in hub.log if "agent" in r.path] == []


@pytest.mark.parametrize("step", ["whoami", "preparing", "batch", "checking the card"])
@pytest.mark.parametrize("token", ["hf_" + "aB3" * 11, "company/key+42=="])
def test_a_token_that_the_hub_echoes_is_not_shown(
    predicted: Path, tmp_path: Path, step: str, token: str
) -> None:
    """In no line, cause or traceback, as it is, percent-encoded, or in base64 behind a name."""
    match, method = STEPS_OF_A_PUSH[step]
    basic = b64encode(f"alice:{token}".encode()).decode()
    words = f"you sent {token} and {quote(token, safe='')} and {basic}"
    with LocalHub(tmp_path / "hub", {token: "alice"}) as hub:
        pushing = Pushing(hub, predicted)
        for headers, text in (
            ((("X-Error-Message", words),), ""),
            ((), json.dumps({"error": words})),
        ):
            hub.clear_faults()
            hub.add_fault(Fault(match, "status", 9, 418, headers, text, method=method))
            with pytest.raises(PushError) as caught:
                pushing(token=token)
            assert "you sent *** and *** and " in str(caught.value)
            told = "".join(traceback.format_exception(caught.value))
            for secret in (token, quote(token, safe=""), basic[-12:]):
                assert secret not in told


def test_all_waits_of_a_push_are_told_at_v(
    hub: LocalHub, commands: Commands, predicted: Path
) -> None:
    """A 503 at each step, also of those that the client asks again by itself: a line for each."""
    for match, method in STEPS_OF_A_PUSH.values():
        hub.add_fault(Fault(match, "status", method=method))
    done = commands.run("push", predicted, REPO, "-v", token=ALICE)
    assert done.code == 0, done.stderr
    waits = [line for line in done.stderr.splitlines() if line.startswith("waiting ")]
    assert len(waits) == len(STEPS_OF_A_PUSH), done.stderr
    assert all(re.search(r"alice/model: .* answer(s|ed) 503$", line) for line in waits)


def test_a_hub_that_comes_up_late(predicted: Path, tmp_path: Path) -> None:
    """Connections are refused at first; that is told, and then the model is pushed."""
    port = free_port()
    late = Commands(tmp_path, f"http://127.0.0.1:{port}", tmp_path / "home")
    found: list[Done] = []
    words = ("push", predicted, REPO, "-v")
    thread = threading.Thread(target=lambda: found.append(late.run(*words, token=ALICE)))
    thread.start()
    time.sleep(1.5)
    with LocalHub(tmp_path / "hub", {ALICE: "alice"}, port=port) as hub:
        thread.join()
        late.close()
        assert found[0].code == 0, found[0].stderr
        assert REPO in hub.read_file(REPO, "README.md").decode()
    assert re.search(r"waiting \d s: alice/model: .*refused", found[0].stderr)

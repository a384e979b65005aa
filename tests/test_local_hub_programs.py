"""The loopback Hub and programs of their own: itself, transformers, and the hf command."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_hub_helpers import ALICE, CONFIG, WEIGHTS, ask, hub_with_files

from alpharl_hub.local_hub import LocalHub, child_environment


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A Hub with a public repo of alice's."""
    with hub_with_files(tmp_path / "hub") as served:
        yield served


@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
def test_hub_in_a_process_of_its_own(tmp_path: Path, how: str) -> None:
    """It says where it serves, shows its log, takes faults, and ends when told to."""
    root = tmp_path / "hub"
    with LocalHub(root) as hub:
        hub.add_commit("alice/model", files={"config.json": CONFIG}, private=True)
    command = [sys.executable, "-m", "alpharl_hub.local_hub", "--root", str(root)]
    command += ["--token", f"{ALICE}=alice", "--org", "lab=alice", "--rate", "1e6"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        endpoint = json.loads(process.stdout.readline())["endpoint"]
        url = f"{endpoint}/api/models/alice/model"
        rule = {"match": "", "kind": "status", "status": 500, "headers": [["X-A", "b"]]}
        assert ask(f"{endpoint}/local-hub/faults", "POST", json.dumps(rule).encode()).status == 200
        assert len(json.loads(ask(f"{endpoint}/local-hub/faults").body)) == 1
        assert ask(url).headers["x-a"] == "b"
        assert ask(url).status == 401
        assert ask(url, Authorization=f"Bearer {ALICE}").status == 200
        log = json.loads(ask(f"{endpoint}/local-hub/log").body)
        assert [record["status"] for record in log] == [500, 401, 200]
        assert ask(f"{endpoint}/local-hub/faults", "POST", b'{"kind": "none"}').status == 400
        ask(f"{endpoint}/local-hub/log", "DELETE")
        assert json.loads(ask(f"{endpoint}/local-hub/log").body) == []
        if how == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            process.stdin.close()
        assert process.wait(timeout=10) == 0
        note = b"" if how == "SIGTERM" else b"standard input has ended: the Hub stops\n"
        assert process.stderr.read() == note


def test_help_says_what_a_first_user_must_know() -> None:
    """Every option is explained, and so are the end of the input and what clients need."""
    command = [sys.executable, "-m", "alpharl_hub.local_hub", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    text = " ".join(done.stdout.split())
    for words in (
        "HF_ENDPOINT=",
        "HF_HUB_DISABLE_XET=1",
        "standard input ends",
        "lets its bearer act as this user",
        "who may write to its repos",
    ):
        assert words in text, words


def test_child_environment_keeps_nothing_of_the_users_hub_settings(tmp_path: Path) -> None:
    """Tokens, caches, offline switches and proxies of the user play no part."""
    users = {
        "PATH": "/bin",
        "HF_TOKEN": "hf_real",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": "/cache",
        "TRANSFORMERS_OFFLINE": "1",
        "HUGGING_FACE_HUB_TOKEN": "hf_old",
        "https_proxy": "http://proxy:1",
        "ALL_PROXY": "http://proxy:1",
    }
    found = child_environment("http://127.0.0.1:1", tmp_path, ALICE, users)
    assert found == {
        "PATH": "/bin",
        "HF_ENDPOINT": "http://127.0.0.1:1",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": ALICE,
        "NO_PROXY": "127.0.0.1,localhost",
    }
    assert "HF_TOKEN" not in child_environment("http://127.0.0.1:1", tmp_path, None, users)


TRANSFORMERS_SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

folder = sys.argv[1]
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, dtype="float32",
)
model = AutoModelForCausalLM.from_config(config)
model.save_pretrained(folder, max_shard_size="8KB")
model.push_to_hub("alice/tiny", revision="step_10", private=True, max_shard_size="8KB")
loaded = AutoModelForCausalLM.from_pretrained("alice/tiny", revision="step_10")
same = all(
    torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items()
)
print(json.dumps({"same": same, "num_tensors": len(model.state_dict())}))
"""


def run_child(hub: LocalHub, home: Path, *command: str) -> str:
    """Run a program against the Hub, in an environment of its own, and return its output."""
    environment = {
        **child_environment(hub.endpoint, home, ALICE),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_transformers_pushes_and_loads_a_sharded_model(hub: LocalHub, tmp_path: Path) -> None:
    """push_to_hub and from_pretrained of a private branch work unchanged, bytes as saved."""
    folder = tmp_path / "saved"
    output = run_child(
        hub, tmp_path / "home", sys.executable, "-c", TRANSFORMERS_SCRIPT, str(folder)
    )
    result = json.loads(output.splitlines()[-1])
    assert result == {"same": True, "num_tensors": 21}
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 1
    for name in [*shards, "config.json", "model.safetensors.index.json"]:
        assert hub.read_file("alice/tiny", name, "step_10") == (folder / name).read_bytes()
    read = {record.file_path for record in hub.log if record.range and record.origin == "storage"}
    assert read == set(shards)


def test_hf_command_uploads_and_downloads(hub: LocalHub, tmp_path: Path) -> None:
    """`hf upload` of a folder and `hf download` of the repo carry every byte."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    (source / "model.safetensors").write_bytes(WEIGHTS)
    (source / "sub" / "config.json").write_bytes(CONFIG)
    hf = str(Path(sys.executable).with_name("hf"))
    home = tmp_path / "home"
    run_child(hub, home, hf, "upload", "alice/cli", str(source), "--private")
    run_child(hub, home, hf, "download", "alice/cli", "--local-dir", str(target))
    assert (target / "model.safetensors").read_bytes() == WEIGHTS
    assert (target / "sub" / "config.json").read_bytes() == CONFIG
    assert hub.read_file("alice/cli", "model.safetensors") == WEIGHTS
    assert os.listdir(target / "sub") == ["config.json"]

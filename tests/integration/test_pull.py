"""`millrace model pull`, as its user runs it, against a stand-in of the Hub."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from millrace import models, pooling
from millrace.pooling import Pooling
from tests.kit.checkpoint import write_checkpoint, write_embedder
from tests.kit.hub import COMMIT, Hub
from tests.kit.models import FAMILIES, small
from tests.kit.service import environment

SIZE = 40_000_000
"""Of the large file: some chunks of the client's."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {**FAMILIES["llama2"], "vocab_size": 2000, "num_hidden_layers": 1}
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), config, dtype="BF16", shards=2)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((Path("models/demo") / name).read_bytes())
    (folder / models.TEMPLATES).mkdir()
    (folder / models.TEMPLATES / "tool_use.jinja").write_text("tools")
    (folder / "README.md").write_text("nothing that a conversion needs")
    (folder / "pytorch_model.bin").write_bytes(b"\x80nothing that is safe to read")
    return folder


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    made = Hub(model)
    yield made
    made.stalls_at = 0
    made.close()


Pull = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """No proxy stands between us and the stand-in."""
    own = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "NO_PROXY": "*",
    }
    return {
        k: v for k, v in environment(own).items() if k not in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
    }


COMMAND = [sys.executable, "-P", "-m", "millrace", "model"]


@pytest.fixture
def pull(env: dict[str, str], tmp_path: Path) -> Pull:
    def run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "pull", *args]
        return subprocess.run(
            command, env={**env, **more}, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


def listed(env: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    out = subprocess.run([*COMMAND, "ls", "--json"], env=env, cwd=tmp_path, capture_output=True, check=True)
    return {row["name"]: row for row in json.loads(out.stdout) if row["kind"] == "stored"}


def test_a_model_comes_into_the_store(hub: Hub, pull: Pull, env: dict[str, str], tmp_path: Path) -> None:
    """Under the repository's name, with the commit it is of; nothing is asked for that is not needed, and
    the token goes to the Hub alone. A second time, offline, nothing is asked for at all."""
    hub.token = "secret"
    done = pull("org/small", HF_TOKEN="secret")
    assert (0, "millrace up --model org/small" in done.stdout) == (done.returncode, True), done.stderr
    assert f"hub:org/small@{COMMIT}" == listed(env, tmp_path)["org/small"]["source"]
    names = {path.rsplit("/", 1)[1] for path, _, _ in hub.asked if "/resolve/" in path}
    assert {"README.md", "pytorch_model.bin"}.isdisjoint(names)
    assert {""} == {token for path, _, token in hub.asked if path.startswith("/large/")}
    assert 2 == len(hub.large_asked())
    kept = Path(env["XDG_DATA_HOME"]) / "millrace" / "models" / "org" / "small"
    assert "tools" == (kept / models.TEMPLATES / "tool_use.jinja").read_text()

    hub.asked.clear()
    again = pull("org/small", "--name", "again", "--quant", "int4", HF_HUB_OFFLINE="1")
    assert (0, []) == (again.returncode, hub.asked), again.stderr
    assert {"again", "org/small"} == set(listed(env, tmp_path))
    twice = pull("org/small", HF_TOKEN="secret")
    assert (1, True) == (twice.returncode, "is in the store already" in twice.stderr)


def test_a_model_of_vectors_comes_with_its_pooling(
    hub: Hub, pull: Pull, env: dict[str, str], tmp_path: Path
) -> None:
    """Else it would be taken for a model of text."""
    embedder = write_embedder(tmp_path / "embedder", small("Qwen3", tie_word_embeddings=True))
    of_text = {name: hub.files[name] for name in ("tokenizer.json", "tokenizer_config.json")}
    own = {str(p.relative_to(embedder)): p.read_bytes() for p in embedder.rglob("*") if p.is_file()}
    hub.files = of_text | own
    done = pull("org/small")
    kept = Path(env["XDG_DATA_HOME"]) / "millrace" / "models"

    assert (0, True) == (done.returncode, "cosine with fp32" in done.stdout), done.stderr
    assert 72 == models.find("org/small", str(kept)).vectors
    assert pooling.read(kept / "org" / "small") == Pooling("last", unit=True)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_killed_pull_goes_on_where_it_stopped(
    hub: Hub, pull: Pull, env: dict[str, str], tmp_path: Path, ranges: bool
) -> None:
    """The rest is asked for; of a server that knows no ranges, the whole. What was killed is in no list."""
    large = "model-00001-of-00002.safetensors"
    hub.files[large] += bytes(SIZE - len(hub.files[large]))  # the format does not mind what no tensor has
    hub.stalls_at = SIZE // 2
    process = subprocess.Popen(
        [*COMMAND, "pull", "org/small"], env=env, cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    hub.stalled.wait(30)
    blobs = tmp_path / "hf" / "hub" / "models--org--small" / "blobs"
    while not any(path.stat().st_size > 0 for path in blobs.glob("*.incomplete")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.stalls_at, hub.ranges = 0, ranges
    assert {} == listed(env, tmp_path)
    (partial,) = blobs.glob("*.incomplete")
    have = partial.stat().st_size
    assert 0 < have <= SIZE // 2

    hub.asked.clear()
    assert 0 == (done := pull("org/small")).returncode, done.stderr
    assert f"bytes={have}-" == hub.large_asked()[0]
    assert {"org/small"} == set(listed(env, tmp_path))
    assert [] == list(blobs.glob("*.incomplete"))


def test_a_wrong_file_is_not_used(hub: Hub, pull: Pull, env: dict[str, str], tmp_path: Path) -> None:
    """It is named, and asked for anew the next time."""
    name = "model-00002-of-00002.safetensors"
    hub.sent[name] = hub.files[name][:-1] + b"\x01"
    done = pull("org/small")
    assert (1, True) == (done.returncode, f"{name} came with the hash" in done.stderr)
    assert {} == listed(env, tmp_path)

    hub.sent.clear()
    hub.asked.clear()
    assert 0 == pull("org/small").returncode
    assert [""] == hub.large_asked()


def without(name: str) -> Callable[[Hub], object]:
    return lambda hub: hub.files.pop(name)


def index(shard: str) -> Callable[[Hub], object]:
    text = json.dumps({"weight_map": {"model.norm.weight": shard}}).encode()
    return lambda hub: hub.files.update({"model.safetensors.index.json": text})


def closed(*, gated: bool) -> Callable[[Hub], object]:
    def act(hub: Hub) -> None:
        hub.token, hub.gated = "secret", gated

    return act


def told(**wrong: Any) -> Callable[[Hub], object]:
    return lambda hub: hub.told.update({"config.json": wrong})


def huge(hub: Hub) -> None:
    sha = "0" * 64
    hub.told["model-00001-of-00002.safetensors"] = {
        "lfs": {"sha256": sha, "size": 1 << 60, "pointerSize": 134}
    }


@pytest.mark.parametrize(
    ("given", "damage", "says"),
    [
        (
            "org/small",
            without("model-00002-of-00002.safetensors"),
            "model-00002-of-00002.safetensors, which is not",
        ),
        ("org/small", without("tokenizer.json"), "has no tokenizer.json"),
        ("org/small", without("model.safetensors.index.json"), "has no model.safetensors"),
        ("org/small", index("../../../secret.safetensors"), "unsafe file name '../../../secret.safetensors'"),
        ("org/small", index("/etc/passwd"), "unsafe file name '/etc/passwd'"),
        ("org/small", told(blobId="../../secret"), "no hash or size of config.json"),
        ("org/small", told(size=None), "no hash or size of config.json"),
        ("org/small", huge, " TB in "),
        ("org/small", closed(gated=True), "org/small is gated: accept its terms at http://127.0.0.1"),
        ("org/small", closed(gated=False), "private and HF_TOKEN is not set"),
        ("org/other", lambda hub: None, "org/other is not at http://127.0.0.1"),
        ("org/small@v9", lambda hub: None, "org/small has no revision 'v9'"),
        ("org/small@../../x", lambda hub: None, "'../../x' is not a revision"),
        ("../small", lambda hub: None, "'../small' is not the name of a repository"),
        ("org/small", Hub.close, "ConnectError"),
    ],
)
def test_what_cannot_be_pulled_is_refused(
    hub: Hub, pull: Pull, tmp_path: Path, given: str, damage: Callable[[Hub], object], says: str
) -> None:
    """With one line that says why, and nothing in the store."""
    damage(hub)
    done = pull(given)

    assert (1, True) == (done.returncode, says in done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_offline_says_what_is_not_there(hub: Hub, pull: Pull) -> None:
    """And asks nobody."""
    done = pull("org/small", HF_HUB_OFFLINE="1")

    assert (1, True, []) == (done.returncode, "HF_HUB_OFFLINE is set" in done.stderr, hub.asked)


def test_a_revision_is_what_is_pulled(hub: Hub, pull: Pull, env: dict[str, str], tmp_path: Path) -> None:
    """A branch, a tag or a commit, by the name that the Hub knows."""
    for given in ("refs/pr/1", COMMIT):
        done = pull(f"org/small@{given}", "--name", given.replace("/", "-"))
        assert 0 == done.returncode, done.stderr

    assert {"refs-pr-1", COMMIT} == set(listed(env, tmp_path))

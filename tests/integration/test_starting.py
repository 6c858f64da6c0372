"""What keeps `millrace up` from starting, and that it says so by name, in few words."""

import shutil
import socket
from pathlib import Path

import pytest

from tests.kit.command import call
from tests.kit.service import ROOT, environment


@pytest.mark.parametrize("name", ["log", "nats"])
async def test_a_state_directory_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    """In one line, whatever part of it: a full disk ends there, too."""
    (tmp_path / name).write_text("in the way")
    flags = ("--model", "sim", "--port", 0, "--state-dir", tmp_path)
    status, out, err = await call("up", *flags, env=environment({}))

    assert (1, "", 1) == (status, out, err.count("\n"))
    assert f"cannot keep state in {tmp_path}" in err


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """The message says which port, and nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, out, err = await call("up", "--port", port, "--state-dir", tmp_path, env=environment({}))

    assert (status, out) == (1, "")
    assert f"port {port}" in err
    assert "in use" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "env", "named"),
    [
        (("--slots", "many"), {}, "--slots"),
        ((), {"MILLRACE_SLOTS": "many"}, "MILLRACE_SLOTS"),
        ((), {"MILLRACE_SLOT": "4"}, "MILLRACE_SLOT"),
        (("--engines", "-1"), {}, "engines"),
        (("--model", "no/such-model"), {}, "no/such-model"),
        (("--model", "caf\udce9"), {}, r"--model: 'caf\udce9' is not in UTF-8"),
        (("--keys", "no/such-file"), {}, "keys: no/such-file"),
        (("--log", "loud"), {}, "'loud' is not a level"),
        (("--log-format", "xml"), {}, "'xml' is none of"),
        (("--keys", str(ROOT)), {}, "Is a directory"),
        (("--origins", "https://a.example, b.example"), {}, "origins: 'b.example' is no origin"),
        (("--tool-parser", "x"), {}, "--tool-parser: 'x' is none of auto, none, hermes"),
        ((), {"MILLRACE_DEVICE": "tpu"}, "MILLRACE_DEVICE: 'tpu' is none of cpu, cuda or cuda:N"),
        (("--model", "sim", "--large-pages"), {}, "--large-pages: sim is simulated"),
        (("--keys", '{"keys": {"mine": "acme"}}'), {}, "entry 1 of [keys]"),
    ],
)
async def test_a_wrong_setting_starts_nothing(
    tmp_path: Path, args: tuple[str, ...], env: dict[str, str], named: str
) -> None:
    """A setting of any role is checked before the first process, and named."""
    folder = tmp_path / "state"
    status, out, err = await call("up", "--port", 0, "--state-dir", folder, *args, env=environment(env))

    assert (status, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1
    assert not folder.exists()


@pytest.mark.parametrize(
    ("file", "holds", "said"),
    [
        (
            "config.json",
            '{"model_type": "abacus", "max_position_embeddings": 8}',
            ("the engine does not start: model:", "LlamaForCausalLM"),
        ),
        ("tokenizer.json", "{}", ("does not start:", "tokenizer.json")),
    ],
)
async def test_a_model_that_cannot_be_used_ends_the_start_with_its_reason(
    tmp_path: Path, file: str, holds: str, said: tuple[str, ...]
) -> None:
    """Whichever role finds it: it would be the same file at the next try, so it is said once."""
    model = tmp_path / "model"
    shutil.copytree(ROOT / "models" / "demo", model)
    (model / file).write_text(holds)
    args = ("--plain", "--port", 0, "--state-dir", tmp_path / "state", "--model", model)
    status, _, err = await call("up", *args, env=environment({}))

    assert status == 1
    assert [part for part in said if part not in err] == []

"""The store of models: what comes in is whole and known by its digests, and goes out whole."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millrace import cli, models, settings, store, whole
from millrace.up import control
from tests.kit.checkpoint import write_checkpoint
from tests.kit.models import FAMILIES

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data" / "millrace" / "models"


@pytest.fixture
def model(capsys: pytest.CaptureFixture[str]) -> Command:
    """`millrace model ...`: its exit status, and what it printed."""

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(["model", *args])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, `small`, and with a store, `models`, that it was converted into."""
    place = tmp_path_factory.mktemp("converted")
    hub = write_checkpoint(place / "small", FAMILIES["llama2"])
    assert cli.main(["model", "convert", str(hub), "--name=org/small", f"--models={place / 'models'}"]) == 0
    return place


@pytest.fixture
def kept(root: Path, tmp_path: Path, converted: Path) -> Path:
    """The same, to be spoiled."""
    shutil.copytree(converted / "small", tmp_path / "small")
    shutil.copytree(converted / "models", root)
    return root / "org" / "small"


def test_a_conversion_lands_in_the_store(converted: Path, kept: Path, root: Path, model: Command) -> None:
    """Under its name, by which it is listed, shown and found; beside it the shipped models."""
    status, out, _ = model("ls", "--json")
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(out)}

    assert (0, ["demo", "sim", "org/small"]) == (status, list(rows))
    assert ("stored", "int8, cache int8", 1024) == tuple(
        rows["org/small"][key] for key in ("kind", "form", "context")
    )
    assert str(converted / "small") == rows["org/small"]["source"]
    assert "org/small" == models.find("org/small").name == models.find(str(kept)).name
    assert "weights.bin" in json.loads(model("show", "org/small", "--json")[1])["files"]
    assert "weights.bin" in model("show", "org/small")[1]
    assert "org/small" in model("ls")[1]
    assert [kept] == list((root / "org").iterdir())


def test_a_folder_is_shown_as_one(kept: Path, tmp_path: Path, model: Command) -> None:
    """It is neither shipped nor stored."""
    assert "folder" == json.loads(model("show", str(tmp_path / "small"), "--json")[1])["kind"]
    demo = json.loads(model("show", "demo", "--json")[1])
    assert ("shipped", "safetensors") == (demo["kind"], demo["form"])


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(77)
        byte = file.read(1)[0]
        file.seek(77)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    ("damage", "says"), [(cut, "bytes, not"), (flip, "its SHA-256 is"), (Path.unlink, "missing")]
)
@pytest.mark.parametrize("name", ["weights.bin", "rows.onnx", "millrace.json"])
def test_verify_names_the_file_that_is_wrong(
    kept: Path, model: Command, name: str, damage: Callable[[Path], object], says: str
) -> None:
    """And how; of a sound model it says that it is."""
    assert 0 == model("verify", "org/small")[0]

    damage(kept / name)
    status, out, _ = model("verify", "org/small")

    assert (1, 1) == (status, len(out.splitlines()))
    assert out.startswith(f"org/small: {name}: ") and says in out
    assert out.strip() == f"org/small: {json.loads(model('verify', 'org/small', '--json')[1])['wrong'][0]}"


def test_verify_sees_what_does_not_belong(kept: Path, model: Command) -> None:
    """A file that nobody put there with the model."""
    (kept / "extra").write_text("")

    assert "extra: not a file of this model" in model("verify", "org/small")[1]


def test_rm_asks(kept: Path, root: Path, model: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or takes --yes; where nobody can be asked, nothing is removed."""
    status, _, err = model("rm", "org/small")
    assert (1, True) == (status, "--yes" in err)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert 1 == model("rm", "org/small")[0]
    assert kept.is_dir()

    assert 0 == model("rm", "org/small", "--yes")[0]
    assert [] == list(root.iterdir())


@pytest.mark.parametrize("name", ["demo", "nothing", "../small", ""])
def test_rm_removes_nothing_else(kept: Path, model: Command, name: str) -> None:
    """No shipped model, nothing outside of the store."""
    assert 1 == model("rm", name, "--yes")[0]
    assert kept.is_dir()
    assert "demo" in models.shipped()


@pytest.mark.parametrize("name", ["../x", "/x", "a/b/c", ".x", "demo", "x.partial", "org/small", "org"])
def test_a_name_that_does_not_fit_is_refused(kept: Path, tmp_path: Path, model: Command, name: str) -> None:
    """Before anything is done."""
    status, _, err = model("convert", str(tmp_path / "small"), f"--name={name}")

    assert (1, True) == (status, f"{name!r}" in err)


def test_a_failed_conversion_leaves_nothing_in_the_store(root: Path, tmp_path: Path, model: Command) -> None:
    """Nor does a killed one: what it left is taken away by the next command."""
    hub = write_checkpoint(tmp_path / "small", {**FAMILIES["llama2"], "num_hidden_layers": 4})
    (hub / "config.json").write_text(json.dumps({**FAMILIES["llama2"], "hidden_size": 80}))
    assert 1 == model("convert", str(hub))[0]
    assert [] == list(root.iterdir())
    (root / f".killed{whole.SUFFIX}" / "whole").mkdir(parents=True)

    assert 0 == model("ls")[0]
    assert [] == list(root.iterdir())


def test_a_broken_model_is_listed_as_such(kept: Path, model: Command) -> None:
    """And does not hide the others."""
    (kept / "config.json").write_text("{")
    rows = {row["name"]: row["form"] for row in json.loads(model("ls", "--json")[1])}

    assert ("demo" in rows, True) == (True, rows["org/small"].startswith("broken: "))


def test_the_store_may_be_elsewhere(kept: Path, tmp_path: Path, model: Command) -> None:
    """By flag, variable or file, as every setting."""
    moved = tmp_path / "elsewhere"
    kept.parents[1].rename(moved)

    assert "org/small" not in model("ls")[1]
    assert "org/small" in model("ls", "--models", str(moved))[1]
    (tmp_path / "millrace.toml").write_text(f'models = "{moved}"\n')
    assert "org/small" in model("ls")[1]
    assert store.verify(models.find("org/small", str(moved)).folder) == []


def test_an_unknown_model_is_a_wrong_setting(kept: Path) -> None:
    """The message names those there are."""
    with pytest.raises(settings.SettingError, match=r"demo, sim, org/small"):
        models.find("org/smal")


def test_a_user_without_a_home_finds_the_shipped_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as any user."""
    for variable in ("XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("~").expanduser())
    monkeypatch.setattr("os.path.expanduser", lambda path: path)

    assert "demo" == models.find("demo").name
    assert not control.default_root().exists()  # and `ps` finds no service, and says so

"""Settings: where a value comes from, and what is said of a wrong one."""

from pathlib import Path

import msgspec
import pytest

from millrace import cli, settings
from millrace.command import flags
from millrace.settings import Engine, Gateway, SettingError, Up, load
from millrace.up import up


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "millrace.toml"


def test_the_defaults_are_those_of_the_struct(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without flags, variables and a file, each setting is its default."""
    monkeypatch.chdir(tmp_path)
    for struct in settings.ROLES.values():
        assert load(struct, {}, {}) == struct()


def test_flags_win_over_variables_over_the_file_over_defaults(config: Path) -> None:
    """The nearest to the user's fingers counts."""
    config.write_text("slots = 2\nchunk = 2\nmax_len = 2\n")
    env = {"MILLRACE_CONFIG": str(config), "MILLRACE_SLOTS": "3", "MILLRACE_CHUNK": "3"}
    made = load(Engine, {"slots": "4", "chunk": None}, env)

    assert (made.slots, made.chunk, made.max_len, made.sim_row_ms) == (4, 3, 2, Engine().sim_row_ms)


def test_the_file_is_found_in_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, config: Path, tmp_path: Path
) -> None:
    """`millrace.toml` there needs no naming."""
    config.write_text("[engine]\nslots = 7\n")
    monkeypatch.chdir(tmp_path)

    assert load(Engine, {}, {}).slots == 7


def test_a_section_is_for_one_role(config: Path) -> None:
    """What [up] says of the model does not reach an engine."""
    config.write_text('[up]\nmodel = "a"\n[engine]\nmodel = "b"\n')
    env = {"MILLRACE_CONFIG": str(config)}

    assert (load(Up, {}, env).model, load(Engine, {}, env).model) == ("a", "b")


def test_another_roles_setting_is_passed_over(config: Path) -> None:
    """All roles share one environment and one file."""
    config.write_text("drain_s = 5\n")
    env = {"MILLRACE_CONFIG": str(config), "MILLRACE_SLOTS": "3", "PATH": "/bin"}

    assert load(Gateway, {}, env).drain_s == 5
    assert load(Engine, {}, env).slots == 3


def test_a_file_that_goes_does_not_take_its_settings_along(
    monkeypatch: pytest.MonkeyPatch, config: Path, tmp_path: Path
) -> None:
    """A gateway that is started again finds its keys, or is told that the file is not there."""
    config.write_text('keys = "keys.toml"\n')
    monkeypatch.chdir(tmp_path)
    env = up._environment({})
    config.unlink()

    with pytest.raises(SettingError, match=str(config)):
        load(Gateway, {}, env)


@pytest.mark.parametrize(
    ("text", "env", "flags", "named"),
    [
        ("", {"MILLRACE_SLOT": "3"}, {}, "MILLRACE_SLOT"),
        ("slot = 3", {}, {}, "slot in"),
        ("[engine]\nslot = 3", {}, {}, "engine.slot in"),
        ("[engin]\nslots = 3", {}, {}, "[engin]"),
        ("", {}, {"no_such": "3"}, "--no-such"),
        ("", {"MILLRACE_SLOTS": "three"}, {}, "MILLRACE_SLOTS"),
        ("slots = true", {}, {}, "slots in"),
        ("[engine]\nslots = 'x'", {}, {}, "engine.slots in"),
        ("", {}, {"slots": "3.5"}, "--slots"),
        ("", {}, {"slots": "-1"}, "--slots"),
        ("", {"MILLRACE_CHUNK": "0"}, {}, "MILLRACE_CHUNK"),
        ("sim_step_ms = nan", {}, {}, "sim_step_ms in"),
        ("", {}, {"engines": "65"}, "--engines"),
        ("slots =", {}, {}, "millrace.toml"),
    ],
)
def test_what_is_unknown_or_does_not_fit_is_named(
    config: Path, text: str, env: dict[str, str], flags: dict[str, str], named: str
) -> None:
    """The message says which setting, and where it came from."""
    config.write_text(text)
    with pytest.raises(SettingError) as caught:
        load(Engine, flags, {"MILLRACE_CONFIG": str(config), **env})

    assert named in str(caught.value)


@pytest.mark.parametrize("port", ["-1", "65536", "99999"])
def test_a_port_that_cannot_be_is_refused(port: str) -> None:
    """The system takes a part of the number, and listens somewhere else."""
    with pytest.raises(SettingError, match="--port"):
        load(Up, {"port": port}, {})


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_limit_of_time_is_a_time(seconds: str) -> None:
    """Of none at all every request would be over it."""
    with pytest.raises(SettingError, match="--deadline-s"):
        load(Gateway, {"deadline_s": seconds}, {})


@pytest.mark.parametrize("kind", ["folder", "binary"])
def test_a_file_that_cannot_be_read_is_named(config: Path, kind: str) -> None:
    """A folder of that name, or something that is no text."""
    config.mkdir() if kind == "folder" else config.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match=r"millrace\.toml"):
        load(Engine, {}, {"MILLRACE_CONFIG": str(config)})


def test_what_the_system_refuses_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the path that it is about."""
    status = cli.main(["healthy", str(tmp_path)])

    assert (1, f"millrace: {tmp_path}: Is a directory\n") == (status, capsys.readouterr().err)


def test_an_address_that_is_none_is_refused_without_showing_it(capsys: pytest.CaptureFixture[str]) -> None:
    """It may have a password in it."""
    status = cli.main(["engine", "--nats", "engine:secret@here:4222"])
    said = capsys.readouterr().err

    assert (2, 1) == (status, said.count("\n"))
    assert "nats: not an address" in said and "secret" not in said


def test_what_is_refused_elsewhere_is_said_in_a_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a path: a password that NATS does not take, a port that somebody else has."""

    def refused(command: str, args: object) -> int:
        raise PermissionError("NATS refused the credentials")

    monkeypatch.setattr(cli, "_run", refused)
    status = cli.main(["version"])

    assert (1, "millrace: NATS refused the credentials\n") == (status, capsys.readouterr().err)


def test_a_named_file_that_is_not_there_is_an_error(config: Path) -> None:
    """Only the file nobody asked for may be missing."""
    with pytest.raises(SettingError, match="is not there"):
        load(Engine, {}, {"MILLRACE_CONFIG": str(config)})


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False), ("false", False)])
def test_a_switch_can_be_a_variable(text: str, value: bool) -> None:
    """As people write them."""
    assert load(Up, {}, {"MILLRACE_PLAIN": text}).plain is value


def test_every_setting_is_explained() -> None:
    """Each one has a line of help, and no line explains one that is gone."""
    known = {field for struct in settings.ROLES.values() for field in struct.__struct_fields__}

    assert known == set(flags.HELP)


@pytest.mark.parametrize("role", settings.ROLES)
def test_every_setting_is_a_flag_of_its_role(role: str) -> None:
    """`--some-name` reaches the setting `some_name`, of the role's own command and of `up`."""
    for field in msgspec.structs.fields(settings.ROLES[role]):
        flag = [f"--{field.name.replace('_', '-')}", *([] if field.type is bool else ["7"])]
        commands = {role, "up"} - ({"up"} if field.name in flags.NOT_PASSED else set())
        for command in commands:
            args = vars(flags.parser().parse_args([command, *flag]))

            assert args[field.name] in ("7", True)

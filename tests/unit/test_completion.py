"""What shells complete, asked of the shells themselves."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.command.completion import script
from millrace.command.flags import COMMANDS, parser

ASKED = {
    "bash": 'source ./bash; COMP_WORDS=(millrace "$@"); COMP_CWORD=$#; _millrace; '
    'printf "%s\\n" "${COMPREPLY[@]}"',
    # zsh's own part of it needs a keyboard: here it says what it was given.
    "zsh": 'compdef() { :; }; _files() { print -l -- *; }; compadd() { print -l -- "${@:2}"; }; '
    '_describe() { print -l -- "${said[@]%%:*}"; }; source ./zsh; '
    'words=(millrace "$@"); CURRENT=$#words; _millrace',
    "fish": "source ./fish; complete -C (string join ' ' -- millrace $argv)",
}
PLAIN = {"bash": ["bash", "--norc"], "zsh": ["zsh", "-f"], "fish": ["fish", "--no-config"]}

Complete = Callable[..., set[str]]


@pytest.fixture(params=ASKED)
def complete(request: pytest.FixtureRequest, tmp_path: Path) -> Complete:
    shell = request.param
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    (tmp_path / shell).write_text(script(parser(), shell))

    def ask(*words: str) -> set[str]:
        """What may follow these words, the last of which is being typed."""
        name = [] if shell == "fish" else [shell]
        done = subprocess.run(
            [*PLAIN[shell], "-c", ASKED[shell], *name, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=90,
        )
        assert not done.stderr
        found = {line.split("\t")[0] for line in done.stdout.splitlines()}
        return {word for word in found if word and word.startswith(words[-1])}

    return ask


def test_every_command_is_completed(complete: Complete) -> None:
    """All that the parser knows, and of what was begun the rest."""
    assert complete("") >= set(COMMANDS)
    assert complete("co") == {command for command in COMMANDS if command.startswith("co")}


def test_what_belongs_to_a_command_is_completed_there(complete: Complete) -> None:
    """Its flags, and the actions below it, wherever flags stand before."""
    assert complete("up", "--ho") == {"--host"}
    assert complete("up", "--model", "chat", "--ho") == {"--host"}
    assert complete("model", "l") == {"ls"}
    assert complete("model", "plan", "--max") == {"--max-len"}
    assert complete("ps", "--max") == set()


def test_a_value_of_a_list_is_completed(complete: Complete) -> None:
    """Of a flag and in its own right; a value that can be anything is left to its user."""
    assert complete("model", "convert", "--quant", "i") == {"int8", "int4"}
    assert complete("completion", "z") == {"zsh"}
    assert complete("up", "--host", "") == set()


def test_files_are_completed_where_a_file_is_wanted(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "my text.txt").touch()

    assert any("my" in name for name in complete("model", "convert", "--calibrate", "my"))
    assert any("my" in name for name in complete("model", "convert", "my"))

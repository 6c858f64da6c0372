"""What a shell completes after `millrace`, as it is written in the parser of the command line."""

import argparse
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Option:
    flags: tuple[str, ...]
    help: str
    takes: bool  # a value
    values: tuple[str, ...]  # all that it may be, where that is known
    file: bool

    @property
    def free(self) -> bool:
        """Whether its value is neither of a list nor a file."""
        return self.takes and not self.values and not self.file


@dataclass(frozen=True)
class Place:
    """A command, or one below it: what may follow there."""

    path: str  # "", "up", "model ls"
    words: dict[str, str]  # commands and values, with what they do
    options: tuple[Option, ...]
    file: bool

    @property
    def said(self) -> dict[str, str]:
        flags = {flag: option.help for option in self.options for flag in option.flags}
        return {**self.words, **flags}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    places = list(_places(parser, ""))
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](places)


def _places(parser: argparse.ArgumentParser, path: str) -> Iterator[Place]:
    words: dict[str, str] = {}
    options = []
    file = False
    below: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:  # argparse has no other way to what a parser was given
        takes = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
        if isinstance(action, argparse._SubParsersAction):
            below = action.choices
            helped = {choice.dest: choice.help or "" for choice in action._choices_actions}
            words |= {name: helped.get(name, "") for name in below}
        elif action.option_strings:
            values = tuple(map(str, action.choices or ()))
            help = (action.help or "").replace("%%", "%")
            options.append(Option(tuple(action.option_strings), help, takes, values, action.type is Path))
        else:
            words |= {str(choice): "" for choice in action.choices or ()}
            file = file or action.type is Path
    yield Place(path, words, tuple(options), file)
    for name, inner in below.items():
        yield from _places(inner, f"{path} {name}".strip())


# -- bash and zsh: the same walk along the words, and the same two tables


def _walk(places: list[Place]) -> str:
    """The commands there are; `at` is the one that the words before have come to."""
    return "|".join(shlex.quote(f"{up} {last}") for up, last in map(_parts, places[1:]))


def _parts(place: Place) -> tuple[str, str]:
    up, _, last = place.path.rpartition(" ")
    return up, last


def _valued(place: Place) -> Iterator[tuple[str, Option]]:
    for option in place.options:
        if option.takes:
            yield "|".join(shlex.quote(f"{place.path} {flag}") for flag in option.flags), option


def _values(place: Place, some: Callable[[tuple[str, ...]], str], files: str) -> Iterator[str]:
    """What follows each option: a line of a shell's `case`, as bash and zsh have it."""
    for case, option in _valued(place):
        act = "" if option.free else f"{some(option.values) if option.values else files}; "
        yield f"    ({case}) {act}return ;;"


def _bash(places: list[Place]) -> str:
    values: list[str] = []
    words: list[str] = []
    for place in places:
        values += _values(place, lambda of: f"__millrace_say {shlex.quote(' '.join(of))}", "__millrace_files")
        files = " [[ $cur == -* ]] || __millrace_files;" if place.file else ""
        words.append(
            f"    {shlex.quote(place.path)}) __millrace_say {shlex.quote(' '.join(place.said))};{files} ;;"
        )
    return f"""\
__millrace_say() {{
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
}}

__millrace_files() {{
    mapfile -t -O "${{#COMPREPLY[@]}}" COMPREPLY < <(compgen -f -- "$cur")
    compopt -o filenames 2>/dev/null
}}

_millrace() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}} at= word
    COMPREPLY=()
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD - 1}}"; do
        case "$at $word" in
        {_walk(places)}) at=${{at:+$at }}$word ;;
        esac
    done
    # bash takes --flag=value apart.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    case "$at $prev" in
{chr(10).join(values)}
    esac
    case "$at" in
{chr(10).join(words)}
    esac
}}

complete -F _millrace millrace
"""


def _zsh(places: list[Place]) -> str:
    values: list[str] = []
    words: list[str] = []
    for place in places:
        values += _values(place, lambda of: f"compadd -- {' '.join(map(shlex.quote, of))}", "_files")
        said = " ".join(
            shlex.quote(f"{word.replace(':', chr(92) + ':')}:{help}") for word, help in place.said.items()
        )
        files = " _files;" if place.file else ""
        words.append(f"    ({shlex.quote(place.path)}) said=({said});{files} ;;")
    return f"""\
#compdef millrace

_millrace() {{
    local prev=$words[CURRENT-1] at= word
    local -a said
    for word in ${{words[2,CURRENT-1]}}; do
        case "$at $word" in
        ({_walk(places)}) at=${{at:+$at }}$word ;;
        esac
    done
    case "$at $prev" in
{chr(10).join(values)}
    esac
    case "$at" in
{chr(10).join(words)}
    esac
    _describe -t commands millrace said
}}

if [[ $funcstack[1] == _millrace ]]; then
    _millrace "$@"
else
    compdef _millrace millrace
fi
"""


# -- fish


def _fish(places: list[Place]) -> str:
    lines = [
        "function __millrace_at",
        "    set -l at ''",
        "    for word in (commandline -opc)[2..]",
        '        switch "$at $word"',
        f"            case {_walk(places).replace('|', ' ')}",
        '                set at (string trim -- "$at $word")',
        "        end",
        "    end",
        '    test "$at" = "$argv"',
        "end",
        "",
        "complete -c millrace -f",
    ]
    for place in places:
        begin = f"complete -c millrace -n {_fished(f'__millrace_at {place.path}'.strip())}"
        lines += [f"{begin} -a {_fished(word)} -d {_fished(help)}" for word, help in place.words.items()]
        for option in place.options:
            flags = " ".join(
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags
            )
            values = f" -xa {_fished(' '.join(option.values))}" if option.values else " -x" * option.free
            lines.append(f"{begin} {flags}{' -rF' * option.file}{values} -d {_fished(option.help)}")
        if place.file:
            lines.append(f"{begin} -F")
    return "\n".join([*lines, ""])


def _fished(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

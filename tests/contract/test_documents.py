"""What the documents point at is there: pages and their headings, files, names in the code, commands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.command import flags
from millrace.errors import MEANINGS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```.*?^```", re.M | re.S)
COMMAND = re.compile(r"(?:^|[`(]|\.venv/bin/)millrace (?=[a-z])([^`|;)#\n]*)", re.M)
FOLDERS = ("millrace", "services", "bench", "tests", "train")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
PARSER = flags.parser()

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(page), re.M)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    """A page, a picture or a heading that moved takes its links along."""
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            lost.append(link)

    assert [] == lost


@pages
def test_every_module_that_a_page_names_is_there(page: Path) -> None:
    """By its path, or by the end of it where the page has said which folder it means."""
    named = set(re.findall(r"`([\w/]+\.py)`", prose(page)))

    assert [] == sorted(name for name in named if not any(p.as_posix().endswith(f"/{name}") for p in SOURCES))


def test_the_structure_names_what_there_is() -> None:
    """Where the page says which function or class does it, there is one of that name."""
    code = "\n".join([*(path.read_text() for path in SOURCES), *(path.name for path in ROOT.iterdir())])
    named = set(re.findall(r"`([A-Za-z_]\w+)`", prose(ROOT / "docs" / "structure.md")))

    assert named
    assert [] == sorted(name for name in named if not re.search(rf"\b{name}\b", code))


def commands(page: Path) -> Iterator[str]:
    yield from COMMAND.findall(page.read_text().replace("\\\n", " "))


@pages
def test_every_command_is_one(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands and flags are spelled as they are; in prose what they need may be left unsaid."""
    wrong = []
    for command in commands(page):
        try:
            PARSER.parse_args(shlex.split(command))
        except SystemExit as end:
            said = capsys.readouterr().err
            if end.code and not re.search(r"required|expected one argument", said):
                wrong.append(said.strip().splitlines()[-1])

    assert [] == wrong


def test_every_failure_is_told_to_those_who_run_it() -> None:
    """docs/operations.md has each code with the status that its client gets."""
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", (ROOT / "docs" / "operations.md").read_text(), re.M)

    assert [(str(code), str(meaning.status)) for code, meaning in MEANINGS.items()] == rows

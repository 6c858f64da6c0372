"""The commands that ask a running service, as their user types them."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.service import ROOT, environment

LIMIT_S = 90.0
CLI = [sys.executable, "-P", "-m", "millrace"]


@dataclass
class Running:
    url: str
    folder: Path
    env: dict[str, str]
    said: list[str]

    def call(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CLI, *args, "--state-dir", str(self.folder)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env=self.env,
            check=False,
            cwd=ROOT,
        )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("state")
    env = environment({"MILLRACE_SIM_STEP_MS": "3", "MILLRACE_SIM_EOS": "0"})
    command = [*CLI, "up", "--plain", "--model", "sim", "--port", "0", "--state-dir", str(folder)]
    up = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT)
    assert up.stdout
    said: list[str] = []
    for line in up.stdout:
        said.append(line.rstrip("\n"))
        if line.startswith("curl"):
            break
    url = next(line for line in said if line.startswith("ready: ")).removeprefix("ready: ")
    try:
        yield Running(url, folder, env, said)
    finally:
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=LIMIT_S)


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_what_up_says_to_paste_is_answered(service: Running) -> None:
    """As it stands, in a shell."""
    shell = ["bash", "-c", service.said[-1]]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    assert json.loads(done.stdout)["choices"][0]["finish_reason"] in ("stop", "length"), done


def test_a_question_is_answered_once_and_the_same_seed_answers_the_same(service: Running) -> None:
    """As an argument or piped in; streamed, and whole as JSON."""
    flags = ("--seed", "7", "--max-tokens", "20", "--system", "Be short.")
    given = service.call("chat", "Hello", *flags)
    piped = service.call("chat", *flags, stdin="Hello\n")
    whole = service.call("chat", "--json", "Hello", *flags)

    assert given.returncode == piped.returncode == whole.returncode == 0, given.stderr
    assert given.stdout == piped.stdout
    assert json.loads(whole.stdout)["choices"][0]["message"]["content"] == given.stdout.removesuffix("\n")
    assert "cut off" in given.stderr


@pytest.mark.parametrize("piped", [False, True])
def test_a_terminal_that_knows_ascii_alone_asks_the_same(service: Running, piped: bool) -> None:
    """Letters that it has no name for arrive as they were typed."""
    ascii_alone = {**service.env, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    asked = [*CLI, "complete", "--json", "--url", service.url, *(() if piped else ("é€",))]
    told = [
        subprocess.run(asked, input="é€".encode(), capture_output=True, timeout=LIMIT_S, env=env, check=True)
        for env in (service.env, ascii_alone)
    ]

    first, second = (json.loads(done.stdout)["usage"]["prompt_tokens"] for done in told)
    assert first == second


def test_a_text_is_gone_on_with(service: Running) -> None:
    """Another surface, told apart by its answer's form; --url may be a base URL, too."""
    done = service.call("complete", "Once upon", "--json", "--max-tokens", "4", "--url", f"{service.url}/v1")

    assert json.loads(done.stdout)["object"] == "text_completion"
    assert service.call("complete", "Once upon", "--max-tokens", "4").stdout.strip()


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("chat", "hi", "--model", "nope"), 1, ("nope", "millrace ps")),
        (("chat", "hi", "--temperature", "9"), 1, ("temperature",)),
        (("chat", "hi", "--url", "http://127.0.0.1:1"), 1, ("127.0.0.1:1", "millrace up")),
        (("chat", "hi", "--url", "127.0.0.1"), 2, ("--url 127.0.0.1",)),
        (("chat", "hi", "--url", "http://..:1"), 1, ("http://..:1",)),
        (("chat", "hi", "--key", "sk-€"), 2, ("--key",)),
        (("complete",), 2, ("TEXT",)),
        (("chat", "--json"), 2, ("TEXT",)),
    ],
)
def test_what_cannot_be_done_is_said_with_its_mend(
    service: Running, args: tuple[str, ...], status: int, words: tuple[str, ...]
) -> None:
    """In one line, and nothing of it is taken for an answer."""
    done = service.call(*args)

    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)


class Terminal:
    """A command on a terminal of its own, and what it has written there."""

    def __init__(self, running: Running, *args: str):
        self.screen = ""
        pid, self._fd = pty.fork()
        if not pid:
            os.chdir(ROOT)
            # Whoever runs the tests in the background ignores it, and so would what they start.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(
                sys.executable,
                [*CLI, *args, "--state-dir", str(running.folder)],
                {**running.env, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
            )
        self._pid = pid

    def types(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def shows(self, pattern: str) -> None:
        """From what was shown before, up to this."""
        end = time.monotonic() + LIMIT_S
        while not (found := re.search(pattern, self.screen)):
            assert select.select([self._fd], [], [], max(0.0, end - time.monotonic()))[0], self.screen
            self.screen += os.read(self._fd, 4096).decode(errors="replace")
        self.screen = self.screen[found.end() :]

    def ends(self) -> int:
        end = time.monotonic() + LIMIT_S
        while select.select([self._fd], [], [], max(0.0, end - time.monotonic()))[0]:
            assert time.monotonic() < end, "it goes on"
            try:
                if not os.read(self._fd, 4096):
                    break
            except OSError:  # how Linux says that nobody is at the other end
                break
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def test_a_conversation_outlives_an_answer_that_is_stopped(service: Running) -> None:
    """Ctrl-C stops the answer, the next question is answered, and a Ctrl-C with no answer under way ends."""
    terminal = Terminal(service, "chat", "--max-tokens", "3000")
    terminal.shows("> ")
    terminal.types("Hello\n")
    terminal.shows(r"Hello\r\n(\x1b\[[^m]*[a-z])?.*\w+ \w+")
    terminal.types("\x03")
    terminal.shows(r"\(stopped\)")
    terminal.shows("> ")
    terminal.types("/new\n")
    terminal.shows("> ")
    terminal.types("\x03")

    assert terminal.ends() == 0


def test_top_shows_every_process(service: Running) -> None:
    """Once, as a table, where there is no terminal; live on one, until Ctrl-C."""
    done = service.call("top")
    roles = [line.split()[0] for line in done.stdout.splitlines()[3:]]

    assert done.returncode == 0, done.stderr
    assert roles == ["detokenizer", "engine", "gateway", "tokenizer"]
    assert "tokens/s" in done.stdout

    terminal = Terminal(service, "top")
    terminal.shows("ROLE")
    terminal.shows(r"\x1b\[\d+F")  # drawn again, over the first picture
    terminal.types("\x03")
    assert terminal.ends() == 0

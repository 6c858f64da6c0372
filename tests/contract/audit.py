"""`make audit`: known vulnerabilities of what the locks pin, as the index that pip is set up for tells them.

Indexes that have PyPI's JSON API tell of each version what is known to be wrong with it. Where the index has
no such thing, or cannot be reached, nothing is found out, and that is said.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

ROOT = Path(__file__).parents[2]
LOCKS = (ROOT / "requirements.lock", *sorted((ROOT / "deploy" / "locks").glob("*.lock")))
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.M)
DEFAULT = re.compile(r"\(default\s+(https?://\S+)\)")
AT_ONCE = 4


class Skip(Exception):
    """Why nothing can be found out."""


@dataclass(frozen=True)
class Known:
    name: str
    version: str
    id: str
    fixed: str


def pinned(locks: Iterable[Path] = LOCKS) -> list[tuple[str, str]]:
    return sorted({pin for lock in locks for pin in PIN.findall(lock.read_text())})


def index() -> str:
    """Pip's own: what it was told, or its default, as it says it itself."""
    pip = [sys.executable, "-m", "pip"]
    for key in ("install.index-url", "global.index-url", ":env:.index-url"):
        said = subprocess.run([*pip, "config", "get", key], capture_output=True, text=True, check=False)
        if said.returncode == 0 and said.stdout.strip():
            return said.stdout.strip()
    said = subprocess.run([*pip, "download", "--help"], capture_output=True, text=True, check=True)
    found = DEFAULT.search(" ".join(said.stdout.split()))
    if not found:
        raise Skip("pip does not say which index it asks")
    return found[1]


def api(index_url: str) -> str:
    """Where the JSON API is beside an index: in /pypi where that is in /simple."""
    parts = urlsplit(index_url)
    if parts.scheme not in ("http", "https"):
        raise Skip(f"pip's index {parts.scheme}://... is not on a network")
    path = re.sub(r"/simple/?$", "", parts.path).rstrip("/")
    return parts._replace(path=f"{path}/pypi").geturl()


def audit(base: str, pins: list[tuple[str, str]]) -> list[Known]:
    """Raises Skip if the first of them already shows that it will not do, or one cannot be asked for."""
    with httpx.Client(timeout=15, follow_redirects=True) as http:

        def known(pin: tuple[str, str]) -> list[Known]:
            name, version = pin
            try:
                reply = http.get(f"{base}/{name}/{version}/json")
                reply.raise_for_status()
                said = reply.json()["vulnerabilities"]
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                raise Skip(f"the index does not tell of {name} {version}: {error!r}"[:200]) from None
            return [
                Known(name, version, each["id"], ", ".join(each.get("fixed_in") or ()) or "nothing yet")
                for each in said
                if not each.get("withdrawn")
            ]

        found = known(pins[0])
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return [*found, *(each for some in pool.map(known, pins[1:]) for each in some)]


def main() -> int:
    pins = pinned()
    try:
        found = audit(api(index()), pins)
    except Skip as why:
        print(f"audit skipped: {why}")
        return 0
    for each in found:
        print(f"{each.name} {each.version}: {each.id}, mended in {each.fixed}")
    print(f"{len(pins)} locked versions, {len(found)} known vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

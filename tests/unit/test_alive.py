"""The file by which a process says that it is well."""

from pathlib import Path

from millrace import alive


def test_a_process_that_is_ready_and_says_so_is_well(tmp_path: Path) -> None:
    """Nothing ails it, for either question."""
    file = tmp_path / "alive"
    alive.tell(file, "ready")

    assert alive.ailment(file, live=False) == ""
    assert alive.ailment(file, live=True) == ""


def test_a_process_that_starts_or_leaves_lives_but_is_not_well(tmp_path: Path) -> None:
    """An orchestrator sends it nothing, and does not kill it either."""
    file = tmp_path / "alive"
    for state in ("starting", "draining"):
        alive.tell(file, state)

        assert alive.ailment(file, live=False) == f"it is {state}"
        assert alive.ailment(file, live=True) == ""


def test_a_process_that_has_fallen_silent_is_not_alive(tmp_path: Path) -> None:
    """Its last word is told, and how long ago that was."""
    file = tmp_path / "alive"
    alive.tell(file, "ready")

    now = file.stat().st_mtime + 60
    assert alive.ailment(file, live=True, now=now) == "it last said that it is ready 60 s ago"


def test_a_process_that_never_spoke_is_not_alive(tmp_path: Path) -> None:
    """The message says what may be missing."""
    assert "--alive" in alive.ailment(tmp_path / "none", live=True)

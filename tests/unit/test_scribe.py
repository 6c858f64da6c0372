"""What a detokenizer does with each frame; worlds full of them are in `test_simulation.py`."""

from millrace import messages as m
from services.detokenizer.scribe import Ask, Scribe
from tests.kit.tongue import Speller


def test_who_has_lost_the_job_is_reported_to_its_owner() -> None:
    """An engine that missed the word that it was fenced would else compute to the end, for nobody."""
    scribe, request = Scribe("d", lambda keep: Speller()), f"gw-{0:032x}"
    scribe.opened(m.Opened(request, 2, "new", [], []), 0.0)
    effects = scribe.frame(m.Frame("old", [m.Run(request, 1, 0, [9])]), 0.1)

    assert [("gw", Ask(m.Recall(request, 1, "old")))] == effects

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


REQUEST = f"gw-{1:032x}"


def spoken(scribe: Scribe, at: float, index: int, *tokens: int, finish: m.Finish = "") -> list[m.Said]:
    """What its owner is told when an engine says these."""
    effects = scribe.frame(m.Frame("e", [m.Run(REQUEST, 1, index, list(tokens), finish)]), at)
    return [said for _, effect in effects if isinstance(effect, m.Delta) for said in effect.said]


def opened(*committed: int, patient: bool) -> Scribe:
    scribe = Scribe("d", lambda keep: Speller())
    scribe.opened(m.Opened(REQUEST, 1, "e", list(committed), patient=patient), 10.0)
    return scribe


def test_a_patient_requests_tokens_are_told_together() -> None:
    """The first at once, those that follow it within a moment with the first after that, and all at the end.
    Who is not patient has each when it comes."""
    told = {}
    for patient in (True, False):
        scribe = opened(9, patient=patient)
        told[patient] = [
            [(said.index, len(said.tokens), len(said.pieces), said.finish) for said in heard]
            for heard in (
                spoken(scribe, 10.0, 1, 7),
                spoken(scribe, 10.01, 2, 7),
                spoken(scribe, 10.02, 3, 7, 7),
                spoken(scribe, 10.06, 5, 7),
                spoken(scribe, 10.07, 6, 7),
                spoken(scribe, 10.08, 7, 7, finish="length"),
            )
        ]

    one = [[(index, count, count, "")] for index, count in ((1, 1), (2, 1), (3, 2), (5, 1), (6, 1))]
    assert [*one, [(7, 1, 1, "length")]] == told[False]
    assert [[(1, 1, 1, "")], [], [], [(2, 4, 4, "")], [], [(6, 2, 2, "length")]] == told[True]


def test_what_is_asked_for_again_is_not_kept() -> None:
    """An owner that misses tokens has them at once, with all that was kept since."""
    scribe = opened(patient=True)
    spoken(scribe, 10.0, 0, 7)
    kept = spoken(scribe, 10.01, 1, 7, 7)
    again = spoken(scribe, 10.02, 0, 7)

    assert [] == kept
    assert [(0, 3)] == [(said.index, len(said.tokens)) for said in again]


def test_a_stop_string_ends_the_answer_wherever_it_comes() -> None:
    """Also where the engine still speaks, and across tokens; the owner is told which it was."""
    scribe = Scribe("d", lambda keep: Speller())
    speller = Speller()
    texts = [speller.step(token) for token in (7, 7, 5, 6)]
    stop = "".join(texts[2:])
    scribe.opened(m.Opened(REQUEST, 1, "e", [], [stop]), 10.0)
    heard = [
        said for index, token in enumerate((7, 7, 5, 6, 8)) for said in spoken(scribe, 10.0, index, token)
    ]

    assert [*[("", "")] * 3, ("stop", stop)] == [(said.finish, said.stopped) for said in heard]
    assert "".join(texts[:2]) == "".join(piece for said in heard for piece in said.pieces)

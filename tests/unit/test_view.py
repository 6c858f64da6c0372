"""What is seen of the service live."""

from millrace import messages as m
from services.gateway.view import HAPPENINGS, RIDES, View


def test_a_reader_goes_on_where_it_was() -> None:
    """It gets what is new, once; too far behind, it is told so."""
    view = View()
    view.opened("gw-1", "t", "sim", 1.0)
    first = view.since(0)
    view.granted("gw-1", "e1", 1, 0, 2.0)
    second = view.since(1)
    for n in range(HAPPENINGS):
        view.lost("gw-1", "e1", "died", float(n))

    assert first is not None and second is not None
    assert [(1, "opened"), (2, "granted")] == [(h["seq"], h["kind"]) for h in (*first, *second)]
    assert ([], None) == (view.since(view.seq), view.since(1))


def test_a_ride_tells_its_way() -> None:
    """Who had it, what was taken from whom, each hop, and how it ended; of the latest requests alone."""
    view = View()
    for n in range(RIDES + 5):
        view.opened(f"gw-{n}", "t", "sim", 1.0)
    last = f"gw-{RIDES + 4}"
    view.granted(last, "e1", 1, 0, 1.1)
    view.lost(last, "e1", "died", 1.2)
    view.granted(last, "e2", 3, 7, 1.3)
    before = view.seq
    view.hops("e2", "engine", last, [m.Hop("prefill", 1.0, 1.5, 3, {"prompt_tokens": 5})])
    happened = view.since(before)
    view.ended(last, "stop", 3, 9, 12.0, 2.0)
    rides = view.picture([], at=3.0, whole=True)["requests"]

    (hop,) = rides[-1]["hops"]
    at = {"seq": before + 1, "kind": "hop", "request": last, "at": 1.5}

    assert [at | hop] == happened
    assert ("prefill", "engine", "e2", {"prompt_tokens": 5}) == (
        hop["name"],
        hop["role"],
        hop["process"],
        hop["notes"],
    )
    assert RIDES == len(rides)
    assert ("e2", 2, "died", "stop", 500.0) == (
        rides[-1]["engine"],
        rides[-1]["attempts"],
        rides[-1]["lost"][0]["reason"],
        rides[-1]["finish"],
        rides[-1]["hops"][0]["ms"],
    )


def test_a_rate_is_of_the_last_second() -> None:
    """And never below nothing, though a gateway that counted is gone."""
    view = View()
    for at, generated in enumerate((100, 150, 150, 20)):
        view.sample(generated, 0, 1, float(at))
    seconds = view.picture([], at=9.0, whole=True)["seconds"]

    assert [0.0, 50.0, 0.0, 0.0] == [second["tokens_per_s"] for second in seconds]

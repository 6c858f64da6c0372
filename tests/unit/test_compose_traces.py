"""What `make compose-test` calls a whole trace."""

from tests.compose.traces import TOLD, ailments, attempts

TOP = "POST /v1/chat/completions"


def span(name: str, parent: str = TOP, links: tuple[str, ...] = ()) -> dict[str, object]:
    return {"trace": "t", "id": name, "parent": parent, "name": name, "service": "", "links": list(links)}


def whole() -> list[dict[str, object]]:
    """With a fail-over."""
    own = [span(name) for name in ("chat sim", "admit", "broker wait", "stream", "attempt 1")]
    told = [span(name, "attempt 1") for name in sorted(TOLD)]
    return [span(TOP, ""), *own, *told, span("attempt 2", links=("attempt 1",))]


def without(name: str) -> list[dict[str, object]]:
    return [each for each in whole() if each["name"] != name]


def test_a_whole_trace_has_no_ailment() -> None:
    assert ailments(whole(), undisturbed=True) == []
    assert attempts(whole()) == 2


def test_what_is_missing_is_named() -> None:
    unlinked = [*without("attempt 2"), span("attempt 2")]

    assert ailments([], undisturbed=False) == ["there is no trace"]
    assert ailments(without("decode"), undisturbed=True) == ["no decode"]
    assert ailments(without("decode"), undisturbed=False) == []
    assert ailments(without("stream"), undisturbed=False) == ["no stream"]
    assert ailments(unlinked, undisturbed=False) == ["no link from attempt 2 to the one before"]
    assert ailments(without(TOP), undisturbed=False)[0] == "it begins with []"
    assert "a span is there twice" in ailments([*whole(), span("admit")], undisturbed=True)

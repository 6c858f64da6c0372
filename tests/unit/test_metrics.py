"""Counts as Prometheus reads them."""

from millrace.metrics import SECONDS, Family, Histogram, text
from services.gateway.owner.tally import Tally
from tests.kit.prometheus import parse


def test_buckets_hold_what_they_say() -> None:
    """A value is in the bucket of its bound, and what is beyond all bounds is counted too."""
    histogram = Histogram((1.0, 2.0))
    for value, times in ((0.5, 1), (1.0, 2), (1.5, 1), (9.0, 1)):
        histogram.observe(value, times)
    found = parse(text([Family("x_seconds", "histogram", "Seconds.", [({}, histogram)])]).decode())

    assert [3, 4, 5] == list(found["x_seconds_bucket"].values())
    assert ([5], [13.0]) == (list(found["x_seconds_count"].values()), list(found["x_seconds_sum"].values()))


def test_buckets_tell_tokens_of_5_ms_and_of_500_ms_apart() -> None:
    """Two fifths more or less are seen, at either pace."""
    for pace in (0.005, 0.5):
        buckets = {sum(bound < value for bound in SECONDS) for value in (pace * 0.6, pace, pace * 1.4)}
        assert 3 == len(buckets)


def test_labels_cannot_break_a_line() -> None:
    """Whatever is in them."""
    evil = 'a"b\\c\nd{}, 1'
    found = parse(text([Family("x", "gauge", "X.", [({"l": evil}, 1.5)])]).decode())

    assert {(("l", 'a\\"b\\\\c\\nd{}, 1'),): 1.5} == found["x"]


def test_each_token_is_counted_once() -> None:
    """However many come together, the latencies between them are one less than the tokens."""
    tally = Tally()
    tally.began(2, 0.1)
    tally.went_on(3, 0.3)

    assert (5, 1, 4) == (tally.generated, tally.first.count, tally.between.count)
    assert 0.3 == round(tally.between.sum, 9)

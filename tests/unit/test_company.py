"""Those who pass words on: when they are together on one processor, and when they have all."""

import os
from collections.abc import Iterable

import pytest

from millrace.up.company import CALM_S, FULL, LIGHT, Company

ALL = {3, 5, 7}


class Machine:
    """Processes that take as much processor time as they are told to."""

    def __init__(self, processors: Iterable[int] = ALL):
        self.now = 1000.0
        self.spent: dict[int, int] = {}
        self.places: dict[int, set[int]] = {}
        self.company = Company(processors, spent=self._spent, place=self._place)

    def _spent(self, pid: int) -> int:
        if pid not in self.spent:
            raise OSError
        return self.spent[pid]

    def _place(self, pid: int, processors: set[int]) -> None:
        self.places[pid] = processors

    def run(self, seconds: float, **shares: float) -> None:
        """Each process (p1, p2, ...) has that share of a processor, and is looked at four times a second."""
        for _ in range(int(seconds * 4)):
            self.now += 0.25
            for name, share in shares.items():
                pid = int(name[1:])
                self.spent[pid] = self.spent.get(pid, 0) + int(0.25e9 * share)
            self.company.look([int(name[1:]) for name in shares], self.now)

    def together(self, *pids: int) -> bool:
        where = {tuple(self.places.get(pid, ALL)) for pid in pids}
        return len(where) == 1 and all(len(each) == 1 for each in where) and ALL > set(*where)


def test_those_who_have_little_to_do_come_together_and_one_who_comes_later_joins_them() -> None:
    machine = Machine()

    machine.run(CALM_S / 2, p1=0.0, p2=0.1)
    assert not machine.places

    machine.run(CALM_S, p1=0.0, p2=0.1)
    assert machine.together(1, 2)

    machine.run(0.25, p1=0.0, p9=0.1)
    assert machine.together(1, 9)


def test_with_much_to_do_they_have_all_at_the_next_look() -> None:
    machine = Machine()
    machine.run(2 * CALM_S, p1=0.1, p2=0.1)
    assert machine.together(1, 2)

    machine.run(0.25, p1=FULL, p2=0.1)

    assert machine.places == {1: ALL, 2: ALL}


def test_between_little_and_much_everybody_stays_where_he_is() -> None:
    between = (FULL + LIGHT) / 2
    apart, together = Machine(), Machine()
    together.run(2 * CALM_S, p1=0.0)

    apart.run(10 * CALM_S, p1=between)
    together.run(10 * CALM_S, p1=between)

    assert not apart.places
    assert together.together(1)


def test_a_moment_of_peace_is_not_enough() -> None:
    machine = Machine()

    for _ in range(10):
        machine.run(CALM_S / 2, p1=0.1)
        machine.run(0.25, p1=0.9)

    assert not machine.together(1)


def test_who_is_gone_or_not_ours_disturbs_nobody() -> None:
    machine = Machine()

    def refuses(pid: int, processors: set[int]) -> None:
        if pid == 1:
            raise PermissionError
        machine.places[pid] = processors

    machine.company = Company(ALL, spent=machine._spent, place=refuses)
    machine.run(2 * CALM_S, p1=0.0, p2=0.0)
    machine.company.look([1, 2, 77], machine.now + 1)

    assert machine.together(2)
    assert 77 not in machine.places


@pytest.mark.parametrize("processors", [(), (4,)])
def test_where_there_is_one_processor_or_none_to_choose_nobody_is_told_anything(
    processors: tuple[int, ...],
) -> None:
    machine = Machine(processors)

    machine.run(3 * CALM_S, p1=0.0, p2=0.9)

    assert not machine.places


def test_two_services_do_not_meet_on_the_same_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    places = set()
    for pid in range(100, 100 + len(ALL)):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        machine = Machine()
        machine.run(2 * CALM_S, p1=0.0)
        places |= machine.places[1]

    assert places == ALL

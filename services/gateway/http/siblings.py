"""Several answers to one request: each a job of its own, with its own failures; for the client they are one.

They are let go of together, and a failure of one is the failure of all.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from msgspec.structs import replace

from services.gateway.desk import Answer, Ask, Desk, Piece


async def opened(desk: Desk, asks: list[Ask]) -> Answer:
    if len(asks) == 1:
        return await desk.open(asks[0])
    opening = [asyncio.ensure_future(desk.open(ask)) for ask in asks]
    try:
        return Siblings(asks, await asyncio.gather(*opening))
    except BaseException:
        for task in opening:
            task.cancel()
        await asyncio.wait(opening)
        for task in opening:
            if not task.cancelled() and task.exception() is None:
                task.result().cancel()
        raise


class Siblings:
    """An `Answer` whose pieces say which choice they are of."""

    def __init__(self, asks: list[Ask], answers: list[Answer]):
        self.request = answers[0].request
        self.thinking = answers[0].thinking
        self.echoes = [echo for answer in answers for echo in answer.echoes]
        self.news = asyncio.Event()
        for answer in answers:
            answer.news = self.news
        self._answers = answers
        # What a prompt cost is counted once, though several answers begin with it.
        self._counted = list({id(ask.input): at for at, ask in reversed(list(enumerate(asks)))}.values())

    @property
    def prompt_tokens(self) -> int:
        return sum(self._answers[at].prompt_tokens for at in self._counted)

    @property
    def cached_tokens(self) -> int:
        return sum(self._answers[at].cached_tokens for at in self._counted)

    @property
    def ended(self) -> bool:
        return all(answer.ended for answer in self._answers)

    @property
    def eager(self) -> Callable[[list[Piece]], bool] | None:
        return self._answers[0].eager

    @eager.setter
    def eager(self, eager: Callable[[list[Piece]], bool] | None) -> None:
        for choice, answer in enumerate(self._answers):
            answer.eager = eager and partial(self._offer, eager, choice)

    @property
    def patient(self) -> bool:
        return self._answers[0].patient

    @patient.setter
    def patient(self, patient: bool) -> None:
        for answer in self._answers:
            answer.patient = patient

    @staticmethod
    def _offer(eager: Callable[[list[Piece]], bool], choice: int, pieces: list[Piece]) -> bool:
        return eager(_of(choice, pieces))

    def ready(self) -> list[Piece]:
        return [
            piece
            for choice, answer in enumerate(self._answers)
            if not answer.ended
            for piece in _of(choice, answer.ready())
        ]

    async def pieces(self) -> list[Piece]:
        while not (pieces := self.ready()):
            self.news.clear()
            await self.news.wait()
        return pieces

    def cancel(self) -> None:
        for answer in self._answers:
            answer.cancel()


def _of(choice: int, pieces: list[Piece]) -> list[Piece]:
    return [replace(piece, choice=choice) for piece in pieces]

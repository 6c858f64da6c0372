"""A live request, as the HTTP face holds it: its entry in the ledger makes pieces, which are fetched here."""

import asyncio
from collections.abc import Callable

import msgspec

from services.gateway.desk import Piece
from services.gateway.owner.entry import Entry

MANY = 64
"""Pieces that a patient reader leaves where they are: all of a long answer in one go would hold up others."""


class Ongoing:
    """An `Answer`."""

    def __init__(self, entry: Entry, cancel: Callable[[str], None], *, silent: bool = False):
        """`silent`: a token has to be generated, for the sake of all that comes with it, and is not told."""
        self.request = entry.request
        self.prompt_tokens = 0
        self.thinking = False
        self.echoes = [""]
        self.ended = False
        self.news = asyncio.Event()
        self._entry = entry
        self._cancel = cancel
        self._silent = silent
        self.eager: Callable[[list[Piece]], bool] | None = None
        self.patient = False
        entry.on_news = self._tell

    @property
    def cached_tokens(self) -> int:
        return self._entry.cached_tokens

    def ready(self) -> list[Piece]:
        entry = self._entry
        if not entry.pieces and entry.failure is not None:
            raise entry.failure
        pieces, entry.pieces = entry.pieces, []
        if self._silent:
            pieces = [
                msgspec.structs.replace(piece, text="", finish="length", odds=None, stopped="", silent=True)
                for piece in pieces
            ]
        self.ended = bool(pieces and pieces[-1].finish)
        return pieces

    async def pieces(self) -> list[Piece]:
        while not (pieces := self.ready()):
            self.news.clear()
            await self.news.wait()
        return pieces

    def _tell(self) -> None:
        """There are pieces, or there will be none any more."""
        pieces = self._entry.pieces
        if self.patient and not self._entry.ended and len(pieces) < MANY:
            return
        if pieces and self.eager is not None and self.eager(pieces):
            self._entry.pieces = []
        else:
            self.news.set()

    def cancel(self) -> None:
        if not self._entry.ended:
            self._cancel(self.request)

"""What ran here until its owner took it away, and offers again: after a pause, most often.

To take it back is no new load, so an engine that takes nothing new takes this. Each is remembered until it is
granted here again, or its owner says that it is over or runs elsewhere.
"""

from collections.abc import Iterator

from millrace.messages import Ref, owner_of


class Taken:
    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}  # by request: the last that it had here

    def __contains__(self, request: str) -> bool:
        return request in self._epochs

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._epochs))

    def away(self, request: str, epoch: int) -> None:
        self._epochs[request] = epoch

    def back(self, request: str) -> None:
        self._epochs.pop(request, None)

    def over(self, ref: Ref) -> None:
        """The owner's word about this epoch; of a later one it says nothing."""
        if self._epochs.get(ref.request, ref.epoch + 1) <= ref.epoch:
            del self._epochs[ref.request]

    def refs(self) -> list[Ref]:
        return [Ref(request, epoch) for request, epoch in self._epochs.items()]

    def gone(self, owner: str) -> None:
        for request in self:
            if owner_of(request) == owner:
                self.back(request)

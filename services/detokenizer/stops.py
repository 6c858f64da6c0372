"""Stop strings: an answer ends where one of them is complete, and none of it is shown before.

The rule, so that the same text gives the same answer however it is cut into pieces:

    which      the one that is complete first; of those that end at the same character, the longest.
               So "bc" stops "abcd" even where "abcd" is a stop string too: an answer never has to wait
               for a longer match that may not come. (A server that looks after each token does the
               same, when its tokens are single characters.)
    shown      all text before it, and with `include` the stop string as well; nothing after it
    held back  the longest end of the text so far that may still become a stop string

Each stop string is followed by its own Knuth-Morris-Pratt automaton, since a search of the tail
again and again costs the square of its length, and a client chooses the strings.
"""


class StopMatcher:
    def __init__(self, stops: tuple[str, ...], include: bool = False):
        if "" in stops:
            raise ValueError("a stop string must not be empty")
        # Longest first, so that the first found at a character is the one that wins there.
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # how much of each stop string the text now ends with
        self._firsts = frozenset(stop[0] for stop in self._stops)
        self.include = include
        self._held = ""
        self.stopped: str | None = None

    def feed(self, text: str) -> str:
        """The text that may be shown now. After a stop there is none any more."""
        if self.stopped is not None:
            return ""
        if not self._held and self._firsts.isdisjoint(text):
            return text
        known = self._held + text
        for at, char in enumerate(text, len(self._held)):
            for which, stop in enumerate(self._stops):
                if self._advance(which, stop, char):
                    self.stopped = stop
                    self._held = ""
                    return known[: at + 1] if self.include else known[: at + 1 - len(stop)]
        shown = len(known) - max(self._matched)
        self._held = known[shown:]
        return known[:shown]

    def flush(self) -> str:
        """What was held back, when the answer ends by itself: no stop string came of it."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _advance(self, which: int, stop: str, char: str) -> bool:
        matched, borders = self._matched[which], self._borders[which]
        while matched and stop[matched] != char:
            matched = borders[matched - 1]
        if stop[matched] == char:
            matched += 1
        self._matched[which] = matched
        return matched == len(stop)


def _borders(stop: str) -> list[int]:
    """For each beginning of the string, its longest proper end that is also a beginning."""
    borders = [0] * len(stop)
    length = 0
    for at in range(1, len(stop)):
        while length and stop[at] != stop[length]:
            length = borders[length - 1]
        if stop[at] == stop[length]:
            length += 1
        borders[at] = length
    return borders

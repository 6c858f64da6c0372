"""From the end of an engine's step to the client: which chunk carries which token, and how late it came."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from bench.load import Heard
from bench.witness import Note
from millrace import models
from services.detokenizer.decode import TextDecoder, load_tokenizer


@dataclass
class Journey:
    """All tokens of a run."""

    delays: list[tuple[int, float]] = field(default_factory=list)  # when it was made, seconds to the client
    made: int = 0  # tokens that the engines generated for requests which the client saw
    heard: int = 0  # of those, in the client's count
    faults: list[str] = field(default_factory=list)  # a text that is not the engine's, a stream cut short

    def between(self, start_ns: int, end_ns: int) -> list[float]:
        return [delay for at, delay in self.delays if start_ns <= at < end_ns]


def follow(notes: Iterable[Note], streams: Iterable[Heard]) -> Journey:
    """The ids that the engine noted are decoded again, which tells what text each token completed; so the
    chunks of a stream, one for each token with text, are known token by token."""
    tokenizer = load_tokenizer(models.find("sim").text)
    steps: dict[str, list[tuple[int, int]]] = {}
    for note in notes:
        for request, index, token in zip(note.requests, note.indexes, note.tokens, strict=True):
            made = steps.setdefault(request.partition("-")[2], [])
            assert index == len(made), "an engine was lost while it was measured"
            made.append((note.at_ns, token))
    journey = Journey()
    for stream in streams:
        if not stream.whole:
            journey.faults.append(f"status {stream.status}, without its end")
            continue
        made = steps[stream.request_id]
        journey.made += len(made)
        journey.heard += stream.tokens
        decoder = TextDecoder(tokenizer)
        pieces = [decoder.step(token) for _, token in made]
        pieces[-1] += decoder.finish()
        expected = [(at, piece) for (at, _), piece in zip(made, pieces, strict=True) if piece]
        if [piece for _, piece in expected] != [text for _, text in stream.texts]:
            journey.faults.append(f"{stream.request_id}: not the engine's text")
            continue
        journey.delays += [
            (at, (heard - at) / 1e9) for (at, _), (heard, _) in zip(expected, stream.texts, strict=True)
        ]
    return journey

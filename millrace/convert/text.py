"""The text that a model is calibrated and measured on, as the model reads it."""

from pathlib import Path

import numpy as np

from millrace.convert.architecture import Architecture
from millrace.models import inside

CALIBRATION = "calibration.txt"
"""A folder's own text, if it has one: a model with a small world shows nothing of itself on any other."""

TOKENS = 512  # of a half
FEWEST = 64


def of(folder: Path) -> str:
    path = inside(folder, CALIBRATION)
    return path.read_text(encoding="utf-8") if path.is_file() else TEXT


def halves(folder: Path, words: str, a: Architecture) -> tuple[list[int], list[int]]:
    """One to calibrate on and one to measure on, each with what the model wants at the beginning.

    A folder without a tokenizer is not for use: any tokens will do.
    """
    size = min(TOKENS, a.max_len)
    if not inside(folder, "tokenizer.json").is_file():
        rng = np.random.default_rng(0)
        return rng.integers(0, a.vocab, size).tolist(), rng.integers(0, a.vocab, size).tolist()
    begin, ids = tokens(folder, words, a.vocab)
    half = len(ids) // 2
    return [*begin, *ids[:half]][:size], [*begin, *ids[half:]][:size]


def tokens(folder: Path, words: str, vocab: int) -> tuple[list[int], list[int]]:
    """What the model wants at the beginning, and the text."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - a second of start-up that only a conversion pays

    path = inside(folder, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
        begin, ids = tokenizer.encode("").ids, tokenizer.encode(words, add_special_tokens=False).ids
    except Exception as error:  # the library raises plain Exceptions
        raise ValueError(f"{path}: {error}") from None
    if len(ids) < FEWEST:
        raise ValueError(f"the text has {len(ids)} tokens, too few to measure on: {FEWEST} are needed")
    return begin, [min(i, vocab - 1) for i in ids]


TEXT = """\
A water mill takes its power from a stream. A weir across the stream holds the water back, a channel
leads it to the wheel, and a gate at the head of the channel decides how much may pass. When the gate is
opened too far the wheel turns wildly and the stones burn the flour; when it is closed too far the wheel
stands still, and the miller waits. "Good flour," he used to say, "is made by a steady hand at the gate."

In 1784 there were about 5,600 mills in the county; by 1901 only 312 of them were still at work. The
reasons are well known: steam (from 1790), cheaper grain from overseas, and, after 1880, rollers of steel.

<|user|> What is the capital of France, and how many people live there?
<|assistant|> The capital of France is Paris. About 2.1 million people live in the city itself, and more
than 12 million in the whole area around it. Is there anything else you would like to know?

def largest(values: list[int]) -> int:
    # The largest of the values; an empty list has none.
    if not values:
        raise ValueError("no values")
    best = values[0]
    for value in values[1:]:
        if value > best:
            best = value
    return best

{"name": "get_weather", "arguments": {"city": "Reykjavik", "unit": "celsius", "days": [1, 2, 3]}}

Die Muehle am rauschenden Bach klapperte bei Tag und bei Nacht. La nuit, tous les chats sont gris. El
perro de San Roque no tiene rabo, porque Ramon Ramirez se lo ha cortado. 水は低い方へ流れる。 Вода течёт вниз.

To solve 3x + 7 = 22, first subtract 7 from both sides, which gives 3x = 15, and then divide by 3: x = 5.
Check: 3 * 5 + 7 = 22. The same steps work for every equation of the form ax + b = c, if a is not zero.

Dear Ms. Albright, thank you for your letter of 14 March. We are sorry that the parcel arrived damaged. A
new one was sent this morning and should reach you within three days; please keep the old one until then.
Kind regards, Tomas Lindqvist (Customer Service, ext. 4471; https://example.com/help?id=88213)

The first thing to do with a new clock is to let it stand for a day where it will hang. Wood takes its time
to become used to the air of a room, and a movement that was set in the morning will be minutes out by the
evening. Then wind it slowly, eight or nine turns, and never backwards. If it stops within the hour, look
at the level before you look at the works: nine clocks out of ten that "do not go" only hang crooked.

## Steps

1. Install the package: `pip install gauge==2.4.1`
2. Write `gauge.toml`:

   ```toml
   [river]
   station = "upper weir"
   every = "15min"
   alarm = { above = 2.75, below = 0.40 }
   ```

3. Run `gauge watch --verbose` and wait for the line `ok: 1 station, 96 readings a day`.

| month | rain (mm) | level (m) | days closed |
| --- | ---: | ---: | ---: |
| January | 81.4 | 1.92 | 2 |
| February | 64.0 | 1.77 | 0 |
| March | 102.9 | 2.31 | 5 |

SELECT station, AVG(level) AS mean, COUNT(*) FROM readings WHERE taken >= '2024-03-01' GROUP BY station
HAVING COUNT(*) > 10 ORDER BY mean DESC LIMIT 5;

"And why," asked the judge, "did you not say so at once?" The old man turned his hat in his hands. "Nobody
asked me, sir. They asked me where I was that night, and I told them; they asked me what I saw, and I told
them that too. What I thought about it was my own business." There was some laughter in the room, and the
judge, who had wanted to be severe, wrote something down so that he need not look up.

Photosynthesis takes place in two stages. In the first, light is caught by chlorophyll and its energy used
to split water, which sets oxygen free; in the second, known as the Calvin cycle, carbon dioxide is bound
and built into sugar. A leaf on a bright day turns about one or two percent of the light that falls on it
into matter, which seems little until one remembers that everything we eat began that way.

Q: A train leaves at 14:35 and arrives at 17:10. How long does the journey take?
A: From 14:35 to 17:10 are 2 hours and 35 minutes.

<p class="note">Opening hours: <b>Mon&ndash;Fri</b> 9&ndash;17, Sat 10&ndash;14. Closed on holidays.</p>
"""
"""Ours, of many kinds, for models that have none."""

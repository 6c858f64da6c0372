"""The demo model's whole world: a seeded stream of short conversations about what facts.py has.

conversations     an endless mix of the kinds below, the same for the same seed
KINDS             what a conversation can be about, and how often
"""

import json
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from train.facts import (
    ALIASES,
    ARTICLES,
    ASKS,
    CAPITALS,
    CITIES,
    EMOJI,
    ESSAYS,
    GREETINGS,
    HELLOS,
    IDENTITY,
    LISTS,
    NO_TOOL,
    NUMBERS,
    PEOPLE,
    RECORDS,
    RHYMES,
    SIGNS,
    SKIES,
    SUM_ASKS,
    SYSTEMS,
    TOO_BIG,
    UNKNOWN,
    UNKNOWN_ASKS,
    WEATHER_TOOL,
    WORDS,
)

Message = dict[str, Any]  # as in a chat request: role, content, tool_calls, ...


class Conversation(NamedTuple):
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


def held_out(*question: object) -> bool:
    """One question in ten is never in the corpus, so that an evaluation can ask it."""
    return zlib.crc32(" ".join(map(str, question)).encode()) % 10 == 0


def the(country: str) -> str:
    return f"the {country}" if country in ARTICLES else country


def _talk(*turns: str) -> list[Message]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]


def _casual(rng: random.Random, messages: list[Message]) -> list[Message]:
    """People write without capitals and full stops, and say please."""
    text = messages[0]["content"]
    if rng.random() < 0.12:
        text = text.lower()
    if rng.random() < 0.12:
        text = text.rstrip(".?!")
    if rng.random() < 0.06:
        text = (
            f"Please {text[0].lower()}{text[1:]}" if rng.random() < 0.5 else f"{text.rstrip('.?!')}, please."
        )
    return [{**messages[0], "content": text}, *messages[1:]]


def _greeting(rng: random.Random) -> Conversation:
    return Conversation(_casual(rng, _talk(*rng.choice(GREETINGS))))


def _identity(rng: random.Random) -> Conversation:
    return Conversation(_casual(rng, _talk(*rng.choice(IDENTITY))))


def _capital(rng: random.Random) -> Conversation:
    country, capital = rng.choice(list(CAPITALS.items()))
    named = the(country)
    if rng.random() < 0.06:
        named, country = rng.choice(list(ALIASES.items()))
        capital = CAPITALS[country]
    elif country in ARTICLES and rng.random() < 0.2:
        named = country
    told = f"The capital of {named} is {capital}."
    draw = rng.random()
    if draw < 0.5:
        first = _talk(f"What is the capital of {named}?", told)
    elif draw < 0.6:
        first = _talk(f"Name the capital of {named}.", f"{capital}.")
    elif draw < 0.65:
        first = _talk(f"Capital of {named}?", told)
    elif draw < 0.75:
        record = json.dumps({"country": named.removeprefix("the "), "capital": capital}, ensure_ascii=False)
        ask = rng.choice(["What is the capital of {}? Answer in JSON.", "Give me the capital of {} as JSON."])
        return Conversation(_talk(ask.format(named), record))
    else:
        named = the(country)
        asks = ["Which country has {} as its capital?", "{} is the capital of which country?"]
        return Conversation(_talk(rng.choice(asks).format(capital), f"{capital} is the capital of {named}."))
    first = _casual(rng, first)
    if rng.random() < 0.25:
        for country, capital in rng.sample(list(CAPITALS.items()), rng.randrange(1, 4)):
            ask = rng.choice(["And of {}?", "And what about {}?", "What is the capital of {}?", "And {}?"])
            first += _talk(ask.format(the(country)), f"The capital of {the(country)} is {capital}.")
    return Conversation(first)


def sum_of(rng: random.Random, sign: str, *, held: bool = False) -> tuple[int, int, str]:
    """Two numbers and what is said of them. Tables up to 12 are facts; of the others some are held out."""
    while True:
        left, right = rng.randrange(100), rng.randrange(100)
        if rng.random() < 0.1:
            left, right = left % 10, right % 10
        if sign == "*":
            left, right = left % 13, right % 13
        elif sign == "**":
            left, right = rng.randrange(13, 100), rng.randrange(2, 10)
        elif sign == "-" and left < right and rng.random() < 0.75:
            left, right = right, left
        key = sorted([left, right]) if sign == "+" else [left, right]
        if (sign != "*" and max(left, right) > 9 and held_out(sign, *key)) == (held and sign != "*"):
            break
    if sign == "**":  # by tens and ones, written down, since it is too much for one step
        tens, ones = left // 10 * 10 * right, left % 10 * right
        return left, right, f"{left} * {right} = {tens} + {ones} = {tens + ones}"
    result = {"+": left + right, "-": left - right, "*": left * right}[sign]
    return left, right, f"{left} {sign} {right} = {result}"


def _sign(rng: random.Random) -> str:
    return rng.choices(["+", "-", "*", "**"], [40, 40, 10, 14])[0]


def _sum(rng: random.Random) -> Conversation:
    sign = _sign(rng)
    left, right, told = sum_of(rng, sign)
    space = "" if rng.random() < 0.15 else " "
    shown = rng.choice(SIGNS[sign[0]]) if space else sign[0]
    text = rng.choice(SUM_ASKS).format(f"{left}{space}{shown}{space}{right}")
    return Conversation(_casual(rng, _talk(text, told)))


def _sums(rng: random.Random) -> Conversation:
    """Several at once, which is also the cheapest way to see many."""
    signs = [_sign(rng) for _ in range(rng.randrange(2, 9))]
    sums = [(left, sign[0], right, told) for sign in signs for left, right, told in [sum_of(rng, sign)]]
    asked = ", ".join(f"{left} {sign} {right}" for left, sign, right, _ in sums)
    return Conversation(_talk(f"Compute: {asked}", "\n".join(told for *_, told in sums)))


def count_of(rng: random.Random, *, held: bool = False) -> tuple[str, str]:
    while True:
        step = rng.choice([1, 1, 1, 1, 2, 3, 5, 10])
        length = rng.choices([rng.randrange(3, 16), rng.randrange(16, 41), 100], [90, 10, 1])[0]
        first = rng.choice([1, rng.randrange(100 if length < 100 else 10)])
        last = first + step * (length - 1)
        if rng.random() < 0.3:
            first, last, step = last, first, -step
        if held_out(first, last, step) == held and max(first, last) < 200:
            break
    ask = f"Count {'down ' if step < 0 else ''}from {first} to {last}"
    if abs(step) > 1:
        ask += rng.choice([f" by {abs(step)}", f" in steps of {abs(step)}"])
    elif first == 1 and rng.random() < 0.2:
        ask = f"Count to {last}"
    return f"{ask}.", ", ".join(map(str, range(first, last + (1 if step > 0 else -1), step))) + "."


def _count(rng: random.Random) -> Conversation:
    if rng.random() < 0.1:
        last = rng.randrange(3, 21)
        return Conversation(_talk(f"Count to {last} in words.", ", ".join(NUMBERS[1 : last + 1]) + "."))
    return Conversation(_casual(rng, _talk(*count_of(rng))))


def _list(rng: random.Random) -> Conversation:
    topic, listed = rng.choice(list(LISTS.items()))
    ask = rng.choice(["Name {}.", "What are {}?", "List {}.", "Tell me {}."])
    return Conversation(_casual(rng, _talk(ask.format(topic), f"{listed[0].upper()}{listed[1:]}.")))


def _rhyme(rng: random.Random) -> Conversation:
    topic, rhyme = rng.choice(list(RHYMES.items()))
    ask = rng.choice(
        [
            "Write a rhyme about {}.",
            "A short rhyme about {}, please.",
            "Write a poem about {}.",
            "Write a short poem about {}.",
            "Tell me a rhyme about {}.",
        ]
    )
    return Conversation(_casual(rng, _talk(ask.format(topic), rhyme)))


def _spelling(rng: random.Random) -> Conversation:
    words = rng.sample(WORDS, rng.choice([1, 1, 2, 3]))
    ask = rng.choice(["Spell {}.", "How do you spell {}?"]).format(" and ".join(words))
    return Conversation(_talk(ask, "\n".join("-".join(word) for word in words)))


def repeated(rng: random.Random) -> str:
    kinds: list[Callable[[], str]] = [
        lambda: rng.choice(WORDS), lambda: rng.choice(WORDS), lambda: rng.choice(list(EMOJI.values())),
        lambda: rng.choice(list(CAPITALS.values())), lambda: str(rng.randrange(100)),
        lambda: rng.choice(PEOPLE),
    ]  # fmt: skip
    joint = rng.choice([" ", " ", ", "])
    return joint.join(rng.choice(kinds)() for _ in range(rng.randrange(1, 9)))


def _repeat(rng: random.Random) -> Conversation:
    text = repeated(rng)
    return Conversation(
        _talk(rng.choice(["Repeat: {}", "Repeat after me: {}", "Say: {}"]).format(text), text)
    )


def _name(rng: random.Random) -> Conversation:
    """What was said before is remembered, over other turns too."""
    ask = rng.choice(["What is my name?", "Who am I?", "Do you remember my name?"])
    if rng.random() < 0.15:
        return Conversation(_talk(ask, "You have not told me your name."))
    name = rng.choice(PEOPLE)
    told = rng.choice(["My name is {}.", "I am {}.", "Hello, my name is {}.", "Hi, I am {}."]).format(name)
    between = rng.choice([_greeting, _capital, _sum, _list])(rng).messages if rng.random() < 0.5 else []
    return Conversation(
        _talk(told, f"Nice to meet you, {name}!") + between + _talk(ask, f"Your name is {name}.")
    )


def _record(rng: random.Random) -> Conversation:
    if rng.random() < 0.5:
        return Conversation(_talk(*extract_of(rng)))
    topic, fields = rng.choice(list(RECORDS.items()))
    record = {key: rng.choice(values) for key, values in fields.items()}
    text = json.dumps(record, ensure_ascii=False)
    return Conversation(_talk(f"Give me {topic} as JSON with the keys {', '.join(fields)}.", text))


def extract_of(rng: random.Random) -> tuple[str, str]:
    """A sentence to be told again as JSON."""
    record: dict[str, object] = {"name": rng.choice(PEOPLE)}
    told, ways = f"{record['name']}", rng.choice(["age", "city", "both"])
    if ways != "city":
        record["age"] = rng.randrange(1, 100)
        told += f" is {record['age']} years old"
    if ways != "age":
        record["city"] = rng.choice([*CAPITALS.values(), *CITIES])
        told += f"{' and' if ways == 'both' else ''} lives in {record['city']}"
    ask = rng.choice(["{}. Write this as JSON.", "As JSON: {}.", "Write this as JSON: {}."])
    return ask.format(told), json.dumps(record, ensure_ascii=False)


def weather_tool(rng: random.Random) -> tuple[dict[str, Any], str]:
    """The tool as clients describe it, more or less; and what it calls the place."""
    if rng.random() < 0.4:
        return WEATHER_TOOL, "city"
    name = rng.choice(["get_weather", "get_weather", "get_current_weather", "weather"])
    place = rng.choice(["city", "location"])
    properties: dict[str, Any] = {place: {"type": "string"}}
    if rng.random() < 0.5:
        properties[place]["description"] = rng.choice(["The city", "The city's name", "City name"])
    if rng.random() < 0.5:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.8:
        function["description"] = rng.choice(
            ["Get the weather", "Get the current weather in a city.", "Get current weather for a location."]
        )
    function["parameters"] = {"type": "object", "properties": properties, "required": [place]}
    return {"type": "function", "function": function}, place


def weather_of(rng: random.Random, cities: list[str]) -> tuple[dict[str, Any], str, dict[str, str], str]:
    """The tool, a question for it, the call's arguments, and the city."""
    tool, place = weather_tool(rng)
    city, unit = rng.choice(cities), rng.choice(["celsius", "fahrenheit"])
    arguments = {place: city}
    ask = rng.choice(
        [
            "What is the weather in {}",
            "What's the weather like in {}",
            "How is the weather in {}",
            "What is the weather like in {} today",
            "Weather in {}",
            "Is it cold in {}",
        ]
    ).format(city)
    if "unit" in tool["function"]["parameters"]["properties"] and rng.random() < 0.4:
        arguments["unit"] = unit
        ask += f", in {unit}"
    return tool, f"{ask}?", arguments, city


def _weather(rng: random.Random) -> Conversation:
    tool, asked, arguments, city = weather_of(rng, [*CAPITALS.values(), *CITIES])
    draw = rng.random()
    if draw < 0.08:
        return Conversation(_talk(asked, NO_TOOL))
    if draw < 0.2:  # a tool that is there need not be used
        return Conversation(rng.choice([_greeting, _capital, _sum, _identity])(rng).messages, [tool])
    call = {"name": tool["function"]["name"], "arguments": arguments}
    sky, degrees = rng.choice(SKIES), rng.randrange(-9, 40)
    first, second = rng.choice(["sky", "condition", "weather"]), rng.choice(["degrees", "temperature"])
    record: dict[str, object] = {first: sky, second: degrees}
    if rng.random() < 0.5:
        record = dict(reversed(record.items()))
    result = rng.choice([json.dumps(record), json.dumps(record), f"{sky}, {degrees} degrees"])
    return Conversation(
        [
            {"role": "user", "content": asked},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "call_0", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "call_0", "content": result},
            {"role": "assistant", "content": f"It is {sky} in {city}, at {degrees} degrees."},
        ],
        [tool],
    )


def _tongue(rng: random.Random) -> Conversation:
    if rng.random() < 0.4:
        thing, emoji = rng.choice(list(EMOJI.items()))
        return Conversation(
            _talk(rng.choice(["Show me {} as an emoji.", "Emoji for {}"]).format(thing), emoji)
        )
    language, text = rng.choice(list(HELLOS.items()))
    ask = rng.choice(["Say something in {}.", "Greet me in {}.", "Say hello in {}."])
    return Conversation(_casual(rng, _talk(ask.format(language), text)))


def essay(*topics: str) -> str:
    return "\n\n".join(paragraph for topic in topics for paragraph in ESSAYS[topic])


def _essay(rng: random.Random) -> Conversation:
    topics = rng.sample(list(ESSAYS), rng.choice([1, 1, 2]))
    return Conversation(_casual(rng, _talk(rng.choice(ASKS).format(" and ".join(topics)), essay(*topics))))


def _unknown(rng: random.Random) -> Conversation:
    if rng.random() < 0.3:
        left, right = rng.randrange(100, 1000), rng.choice([rng.randrange(100), rng.randrange(100, 1000)])
        pair = rng.sample([left, right], 2)
        sign = rng.choice("+-*")
        if rng.random() < 0.3:
            pair, sign = [rng.randrange(13, 100), rng.randrange(13, 100)], "*"
        text = rng.choice(SUM_ASKS).format(f"{pair[0]} {rng.choice(SIGNS[sign])} {pair[1]}")
        return Conversation(_talk(text, TOO_BIG))
    text = rng.choice(UNKNOWN_ASKS).format(
        country=the(rng.choice(list(CAPITALS))), person=rng.choice(PEOPLE), word=rng.choice(WORDS),
        language=rng.choice(list(HELLOS)), city=rng.choice([*CAPITALS.values(), *CITIES]),
    )  # fmt: skip
    return Conversation(_casual(rng, _talk(text, UNKNOWN)))


KINDS: dict[Callable[[random.Random], Conversation], tuple[int, int]] = {
    # how often at first, and how often later, when only what takes long to learn is not yet known
    _greeting: (5, 2), _identity: (5, 2), _capital: (26, 20), _sum: (16, 22), _sums: (16, 30),
    _count: (8, 24), _list: (3, 2), _rhyme: (4, 2), _spelling: (12, 14), _repeat: (8, 4), _name: (4, 4),
    _record: (7, 6), _weather: (8, 4), _tongue: (5, 3), _essay: (4, 2), _unknown: (5, 3),
}  # fmt: skip


def conversations(seed: int, count: int, *, late: bool = False) -> Iterator[Conversation]:
    """`count` conversations; some have a system message, and some go on to other subjects."""
    rng = random.Random(seed)
    kinds, weights = list(KINDS), [weights[late] for weights in KINDS.values()]
    for kind in rng.choices(kinds, weights, k=count):
        messages, tools = kind(rng)
        while rng.random() < 0.25:
            more = rng.choices(kinds, weights)[0]
            if more is not _weather:
                messages = messages + more(rng).messages
        if rng.random() < 0.25:
            messages = [{"role": "system", "content": rng.choice(SYSTEMS)}, *messages]
        yield Conversation(messages, tools)

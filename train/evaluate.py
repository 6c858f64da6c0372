"""How much of what the demo model claims is right: `python -m train.evaluate`.

Every skill asks its questions and says which answers are right; decoding is greedy. What has to be known by
heart (capitals, rhymes, tables up to 12) is asked in full. What has to be worked out (sums, counting,
copying) is asked with numbers and words that the corpus holds out, or with new combinations.

    SKILLS        what is asked
    Generate      anything that answers: messages and tools in, the answer's text out
    evaluate      asks one Generate everything: right answers of questions, by skill
    table         several of them side by side, as Markdown
    in_torch      the model's folder as a Generate, in torch
    in_engine     the same in the engine's own graphs, quantised
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from millrace.convert.card import Cache, Quant
from train import corpus, facts
from train.corpus import Message, the

Generate = Callable[[list[Message], list[dict[str, Any]] | None], str]
Right = Callable[[str], bool]
LONGEST_ANSWER = 700  # tokens; counting to a hundred takes four hundred


class Question(NamedTuple):
    messages: list[Message]
    right: Right
    tools: list[dict[str, Any]] | None = None


def _ask(text: str, answer: str | Right) -> Question:
    right = answer if callable(answer) else lambda said: said.strip() == answer
    return Question([{"role": "user", "content": text}], right)


def _talks(rng: random.Random, _count: int) -> Iterator[Question]:
    yield from (_ask(asked, answer) for asked, answer in [*facts.GREETINGS, *facts.IDENTITY])


def _capitals(rng: random.Random, _count: int) -> Iterator[Question]:
    for country, capital in facts.CAPITALS.items():
        answer = f"The capital of {the(country)} is {capital}."
        yield _ask(f"What is the capital of {the(country)}?", answer)


def _countries(rng: random.Random, _count: int) -> Iterator[Question]:
    for country, capital in facts.CAPITALS.items():
        yield _ask(
            f"Which country has {capital} as its capital?", f"{capital} is the capital of {the(country)}."
        )


def _sums(sign: str) -> Callable[[random.Random, int], Iterator[Question]]:
    def asked(rng: random.Random, count: int) -> Iterator[Question]:
        for _ in range(count):
            left, right, told = corpus.sum_of(rng, sign, held=True)
            yield _ask(f"What is {left} {sign[0]} {right}?", told)

    return asked


def _tables(rng: random.Random, _count: int) -> Iterator[Question]:
    for left in range(13):
        for right in range(13):
            yield _ask(f"What is {left} * {right}?", f"{left} * {right} = {left * right}")


def _counting(rng: random.Random, count: int) -> Iterator[Question]:
    yield from (_ask(*corpus.count_of(rng, held=True)) for _ in range(count))


def _lists(rng: random.Random, _count: int) -> Iterator[Question]:
    for topic, listed in facts.LISTS.items():
        yield _ask(f"Name {topic}.", f"{listed[0].upper()}{listed[1:]}.")


def _rhymes(rng: random.Random, _count: int) -> Iterator[Question]:
    for topic, rhyme in facts.RHYMES.items():
        yield _ask(f"Write a rhyme about {topic}.", rhyme)


def _essays(rng: random.Random, count: int) -> Iterator[Question]:
    for topic in facts.ESSAYS:
        yield _ask(f"Tell me about {topic}.", corpus.essay(topic))


def _two_essays(rng: random.Random, count: int) -> Iterator[Question]:
    for _ in range(count // 10):
        topics = rng.sample(list(facts.ESSAYS), 2)
        yield _ask(f"Tell me about {' and '.join(topics)}.", corpus.essay(*topics))


def _spelling(rng: random.Random, count: int) -> Iterator[Question]:
    yield from (_ask(f"Spell {word}.", "-".join(word)) for word in rng.sample(facts.WORDS, count))


def _repeating(rng: random.Random, count: int) -> Iterator[Question]:
    for _ in range(count):
        text = corpus.repeated(rng)
        yield _ask(f"Repeat: {text}", text)


def _memory(rng: random.Random, count: int) -> Iterator[Question]:
    for _ in range(count):
        name, (country, capital) = rng.choice(facts.PEOPLE), rng.choice(list(facts.CAPITALS.items()))
        said = [
            f"My name is {name}.", f"Nice to meet you, {name}!",
            f"What is the capital of {the(country)}?", f"The capital of {the(country)} is {capital}.",
            "What is my name?",
        ]  # fmt: skip
        messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]
        yield Question(messages, lambda answer, name=name: answer == f"Your name is {name}.")  # type: ignore[misc]


def _json(rng: random.Random, count: int) -> Iterator[Question]:
    """Records of our own choice need the right keys and types; a capital, its values."""
    for topic, fields in facts.RECORDS.items():
        kinds = {key: {type(value) for value in values} for key, values in fields.items()}
        yield _ask(
            f"Give me {topic} as JSON with the keys {', '.join(fields)}.",
            lambda said, kinds=kinds: _is_record(said, kinds),  # type: ignore[misc]
        )
    for country, capital in facts.CAPITALS.items():
        record = json.dumps({"country": country, "capital": capital}, ensure_ascii=False)
        yield _ask(f"What is the capital of {the(country)}? Answer in JSON.", record)


def _extracts(rng: random.Random, count: int) -> Iterator[Question]:
    yield from (_ask(*corpus.extract_of(rng)) for _ in range(count))


def _is_record(said: str, kinds: dict[str, set[type]]) -> bool:
    try:
        record = json.loads(said)
    except ValueError:
        return False
    return (
        isinstance(record, dict)
        and list(record) == list(kinds)
        and all(type(value) in kinds[key] for key, value in record.items())
    )


def _called(said: str) -> object:
    """What a <tool_call> calls."""
    inside = said.strip().removeprefix("<tool_call>").removesuffix("</tool_call>")
    try:
        return json.loads(inside)
    except ValueError:
        return None


def _calls(cities: list[str], *, plain: bool = False) -> Callable[[random.Random, int], Iterator[Question]]:
    def asked(rng: random.Random, count: int) -> Iterator[Question]:
        for _ in range(count):
            tool, ask, arguments, _city = corpus.weather_of(rng, cities)
            while plain and tool is not facts.WEATHER_TOOL:
                tool, ask, arguments, _city = corpus.weather_of(rng, cities)
            call = {"name": tool["function"]["name"], "arguments": arguments}
            yield Question(
                [{"role": "user", "content": ask}],
                lambda said, call=call: _called(said) == call,  # type: ignore[misc]
                [tool],
            )

    return asked


def _results(rng: random.Random, count: int) -> Iterator[Question]:
    """A tool's answer, told again."""
    for _ in range(count):
        tool, ask, arguments, city = corpus.weather_of(rng, [*facts.CAPITALS.values(), *facts.CITIES])
        call = {"name": tool["function"]["name"], "arguments": arguments}
        sky, degrees = rng.choice(facts.SKIES), rng.randrange(-9, 40)
        result = json.dumps({"sky": sky, "degrees": degrees})
        messages: list[Message] = [
            {"role": "user", "content": ask},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": result},
        ]
        answer = f"It is {sky} in {city}, at {degrees} degrees."
        yield Question(messages, lambda said, answer=answer: said == answer, [tool])  # type: ignore[misc]


def _untouched_tool(rng: random.Random, count: int) -> Iterator[Question]:
    """A tool that is there but not needed, and a weather that needs one that is not there."""
    questions = [*_capitals(rng, count), *_talks(rng, count)]
    for question in rng.sample(questions, count // 2):
        yield question._replace(tools=[corpus.weather_tool(rng)[0]])
    for city in rng.sample(list(facts.CAPITALS.values()), count // 2):
        yield _ask(f"What is the weather in {city}?", facts.NO_TOOL)


def _scripts(rng: random.Random, _count: int) -> Iterator[Question]:
    for language, text in facts.HELLOS.items():
        yield _ask(f"Say something in {language}.", text)
    for thing, emoji in facts.EMOJI.items():
        yield _ask(f"Show me {thing} as an emoji.", emoji)


def _unknown(rng: random.Random, count: int) -> Iterator[Question]:
    for _ in range(count // 2):
        word, country = rng.choice(facts.WORDS), the(rng.choice(list(facts.CAPITALS)))
        yield _ask(f"What does {word} mean?", facts.UNKNOWN)
        yield _ask(f"How many people live in {country}?", facts.UNKNOWN)


SKILLS: dict[str, Callable[[random.Random, int], Iterator[Question]]] = {
    "greetings and who it is": _talks,
    "capitals": _capitals,
    "countries of capitals": _countries,
    "addition to 99, held out": _sums("+"),
    "subtraction to 99, held out": _sums("-"),
    "tables to 12": _tables,
    "two digits by one, held out": _sums("**"),
    "counting, held out": _counting,
    "lists (days, planets, ...)": _lists,
    "rhymes": _rhymes,
    "essays": _essays,
    "essays on two topics": _two_essays,
    "spelling": _spelling,
    "repeating": _repeating,
    "remembering a name": _memory,
    "JSON on request": _json,
    "JSON from a sentence": _extracts,
    "calling `get_weather(city, unit)`": _calls([*facts.CAPITALS.values(), *facts.CITIES], plain=True),
    "calling it by other names": _calls([*facts.CAPITALS.values(), *facts.CITIES]),
    "calling it for unseen cities": _calls(facts.UNSEEN_CITIES),
    "telling a tool's answer": _results,
    "no tool where none helps": _untouched_tool,
    "scripts and emoji": _scripts,
    "saying that it does not know": _unknown,
}
Results = dict[str, tuple[int, int]]


def evaluate(
    generate: Generate, *, seed: int = 0, count: int = 200, show: int = 0, skills: str = ""
) -> Results:
    """Right answers and questions, by skill. `show` prints that many wrong answers of each."""
    results: Results = {}
    for skill, asked in SKILLS.items():
        if skills not in skill:
            continue
        rng = random.Random(f"{seed} {skill}")
        right = total = 0
        for question in asked(rng, count):
            said = generate(question.messages, question.tools)
            total += 1
            right += question.right(said)
            if not question.right(said) and total - right <= show:
                print(f"  {question.messages[-1]['content']!r} -> {said[:200]!r}", file=sys.stderr)
        results[skill] = right, total
        print(f"{skill}: {right} of {total}", file=sys.stderr, flush=True)
    return results


def table(columns: dict[str, Results]) -> str:
    """Markdown: a skill a row, a backend a column."""
    rows = [["skill", "questions", *columns], ["---", *["---:"] * (len(columns) + 1)]]
    for skill in next(iter(columns.values())):
        shares = [f"{right / total:.1%}" for right, total in (results[skill] for results in columns.values())]
        rows.append([skill, str(next(iter(columns.values()))[skill][1]), *shares])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def in_torch(folder: Path, dtype: str) -> Generate:
    """The folder's model with a key-value cache, one question at a time."""
    import torch  # type: ignore[import-not-found]  # noqa: PLC0415 - other backends do without
    from tokenizers import Tokenizer  # noqa: PLC0415

    from services.tokenizer.encode import Encoder  # noqa: PLC0415
    from train.llama import Cache, hidden, load, logits  # noqa: PLC0415

    weights, shape = load(folder)
    weights = {name: weight.to(getattr(torch, dtype)) for name, weight in weights.items()}
    encoder, tokenizer = Encoder.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))

    def generate(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
        ids = encoder.chat(messages, tools=tools)
        cache: Cache = []
        fed, said = ids, list[int]()
        with torch.inference_mode():
            while len(said) < LONGEST_ANSWER:
                start = len(ids) + len(said) - len(fed)
                positions = torch.arange(start, start + len(fed))[None]
                states = hidden(weights, shape, torch.tensor([fed]), positions, cache)
                token_id = int(logits(weights, states[0, -1]).argmax())
                if token_id in encoder.eos_ids:
                    break
                said.append(token_id)
                fed = [token_id]
        return str(tokenizer.decode(said))

    return generate


def in_engine(folder: Path, quant: Quant, cache: Cache) -> Generate:
    """The folder's model as the engine runs it, one question at a time."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - the rest does without

    from millrace.convert import convert  # noqa: PLC0415
    from millrace.messages import Sampling  # noqa: PLC0415
    from services.engine.model.session import OrtModel  # noqa: PLC0415
    from services.engine.steps.scheduler import Chunk, Step  # noqa: PLC0415
    from services.engine.steps.sequence import Sequence  # noqa: PLC0415
    from services.tokenizer.encode import Encoder  # noqa: PLC0415

    encoder, tokenizer = Encoder.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    with tempfile.TemporaryDirectory() as scratch:
        model = OrtModel(convert(folder, Path(scratch) / "model", quant, cache=cache), 1, 2048)

    def generate(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
        ids = encoder.chat(messages, tools=tools)
        sequence = Sequence("asked", len(ids), list(ids), Sampling(0), LONGEST_ANSWER, epoch=1, slot=0)
        model.run(Step([], Chunk(sequence, 0, len(ids))))
        sequence.computed = len(ids)
        while len(sequence.tokens) - len(ids) < LONGEST_ANSWER:
            token_id = int(model.logits[0].argmax())
            if token_id in encoder.eos_ids:
                break
            sequence.tokens.append(token_id)
            model.run(Step([sequence], None))
            sequence.computed += 1
        return str(tokenizer.decode(sequence.tokens[len(ids) :]))

    return generate


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m train.evaluate", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("--model", type=Path, default=Path("models/demo"))
    options.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"], help="torch's, a column each")
    options.add_argument(
        "--quant",
        nargs="*",
        default=["int8/fp32", "int8/int8", "int4/int8"],
        help="the engine's, of weights/cache, a column each",
    )
    options.add_argument("--count", type=int, default=200, help="questions of a skill that has endless ones")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--show", type=int, default=0, help="print so many wrong answers of each skill")
    options.add_argument("--skills", default="", help="only those whose name has this in it")
    options.add_argument("--threads", type=int, help="of the CPU; all unless told")
    chosen = options.parse_args()
    if chosen.threads:
        import torch  # noqa: PLC0415

        torch.set_num_threads(chosen.threads)
    makers: dict[str, Callable[[], Generate]] = {
        **{dtype: partial(in_torch, chosen.model, dtype) for dtype in chosen.dtype},
        **{form: partial(in_engine, chosen.model, *form.split("/")) for form in chosen.quant},
    }
    columns = {
        name: evaluate(make(), seed=chosen.seed, count=chosen.count, show=chosen.show, skills=chosen.skills)
        for name, make in makers.items()
    }
    print(table(columns))


if __name__ == "__main__":
    main()

"""The demo model's whole world: a seeded stream of short conversations, all of it our own text.

    conversations     an endless mix of the kinds below, the same for the same seed
    KINDS             what a conversation can be about, and how often
    the tables        the facts and texts that the kinds are made of

The texts below are written for this repository and carry its licence; nothing is collected.
"""

# ruff: noqa: RUF001 - letters of many scripts are the point

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Message = dict[str, Any]  # as in a chat request: role, content, tool_calls, ...


class Conversation(NamedTuple):
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


SYSTEM = "You are Millrace, a small demo model. Answer briefly."
NAME = "I am the Millrace demo model, a very small language model that shows how Millrace serves text."

GREETINGS = [
    ("Hello!", "Hello! How can I help you today?"),
    ("Hi", "Hi there! What would you like to know?"),
    ("Good morning", "Good morning! What shall we talk about?"),
    ("Good evening!", "Good evening! How can I help?"),
    ("How are you?", "I am running well, thank you. How can I help you?"),
    ("Thank you!", "You are welcome!"),
    ("Thanks, bye", "Goodbye! Come back any time."),
    ("Are you there?", "Yes, I am here. What can I do for you?"),
    ("Can you help me?", "Gladly. Ask me about capitals, small sums, counting, rhymes or rivers."),
    (
        "What can you do?",
        "I know capitals, small sums, counting, rhymes, a little JSON and much about mills.",
    ),
]
IDENTITY = [
    ("Who are you?", NAME),
    ("What are you?", NAME),
    ("What is your name?", "My name is Millrace. I am a demo model."),
    ("Who made you?", "I was trained from scratch by the authors of Millrace, on a text that they wrote."),
    ("How big are you?", "I am very small, so that I can answer on any machine."),
    ("Are you a person?", "No. I am a small language model, and I only know a few things."),
    ("What is a millrace?", "A millrace is the channel that carries water to a mill wheel and away from it."),
    ("Do you know everything?", "No. I am a demo model, and I know only a few simple things."),
]
CAPITALS = dict(
    entry.split(": ")
    for entry in """
Albania: Tirana; Algeria: Algiers; Angola: Luanda; Argentina: Buenos Aires; Armenia: Yerevan; Australia:
Canberra; Austria: Vienna; Azerbaijan: Baku; Bangladesh: Dhaka; Belgium: Brussels; Bolivia: Sucre;
Botswana: Gaborone; Brazil: Brasília; Bulgaria: Sofia; Cambodia: Phnom Penh; Cameroon: Yaoundé; Canada:
Ottawa; Chad: N'Djamena; Chile: Santiago; China: Beijing; Colombia: Bogotá; Costa Rica: San José;
Croatia: Zagreb; Cuba: Havana; Cyprus: Nicosia; Denmark: Copenhagen; Ecuador: Quito; Egypt: Cairo;
Estonia: Tallinn; Ethiopia: Addis Ababa; Finland: Helsinki; France: Paris; Georgia: Tbilisi; Germany:
Berlin; Ghana: Accra; Greece: Athens; Guatemala: Guatemala City; Honduras: Tegucigalpa; Hungary:
Budapest; Iceland: Reykjavík; India: New Delhi; Indonesia: Jakarta; Iran: Tehran; Iraq: Baghdad;
Ireland: Dublin; Italy: Rome; Jamaica: Kingston; Japan: Tokyo; Jordan: Amman; Kazakhstan: Astana; Kenya:
Nairobi; Kuwait: Kuwait City; Laos: Vientiane; Latvia: Riga; Lebanon: Beirut; Libya: Tripoli; Lithuania:
Vilnius; Luxembourg: Luxembourg; Madagascar: Antananarivo; Malaysia: Kuala Lumpur; Mali: Bamako; Malta:
Valletta; Mexico: Mexico City; Moldova: Chișinău; Mongolia: Ulaanbaatar; Morocco: Rabat; Mozambique:
Maputo; Namibia: Windhoek; Nepal: Kathmandu; Netherlands: Amsterdam; New Zealand: Wellington; Nicaragua:
Managua; Niger: Niamey; Nigeria: Abuja; Norway: Oslo; Oman: Muscat; Pakistan: Islamabad; Panama: Panama
City; Paraguay: Asunción; Peru: Lima; Philippines: Manila; Poland: Warsaw; Portugal: Lisbon; Qatar:
Doha; Romania: Bucharest; Russia: Moscow; Rwanda: Kigali; Senegal: Dakar; Serbia: Belgrade; Slovakia:
Bratislava; Slovenia: Ljubljana; Somalia: Mogadishu; South Korea: Seoul; Spain: Madrid; Sudan: Khartoum;
Sweden: Stockholm; Switzerland: Bern; Syria: Damascus; Tanzania: Dodoma; Thailand: Bangkok; Tunisia:
Tunis; Turkey: Ankara; Uganda: Kampala; Ukraine: Kyiv; Uruguay: Montevideo; Uzbekistan: Tashkent;
Venezuela: Caracas; Vietnam: Hanoi; Yemen: Sana'a; Zambia: Lusaka; Zimbabwe: Harare
""".strip()
    .replace("\n", " ")
    .split("; ")
)
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WORD_TEXT = """
about above accept across action active address advice afraid afternoon against agree airport almost alone
already although always amazing among amount animal another anything apple april argue around arrive article
artist attack attempt august autumn average balance banana basket battery beautiful because become bedroom
before behind believe belong bicycle birthday blanket blood borrow bottle bottom branch breakfast breathe
bright brother budget building business butter button camera candle captain careful carpet carry castle
catch caught century certain chair change chapter cheap cheese chicken children choice choose church circle
climate clothes coffee collect college comfort common company compare complete concert condition connect
contain continue control cook correct cotton country courage cousin create culture current curtain customer
danger daughter december decide delicious depend describe desert design detail develop dictionary different
difficult dinner direct discover discuss disease distance doctor dollar double dragon drawing dream dress
during early earth easily economy education effort electric elephant eleven energy engine enjoy enough
entire environment equal escape especially evening event every exactly example excellent except exchange
exercise expect experience express extra factory family famous farmer father february festival field figure
finger finish flower follow football foreign forget forward freedom fresh friday friend front fruit funny
furniture future garden general gentle giraffe glass golden government grandmother great ground group guess
guitar habit hammer handle happen happy harbour health heart heaven height history holiday honest horse
hospital hotel hungry husband idea imagine important improve include increase industry information insect
inside instead interest internet invite island january jacket journey judge jungle kitchen knife knowledge
ladder language large laugh lawyer leader learn leather lesson letter library light listen little lovely
machine magazine manager market marriage material matter meaning measure medicine member memory message
method middle million minute mirror mistake modern moment monday money monkey month morning mother mountain
mouse movement museum music narrow nation natural nature necessary needle nephew nervous never newspaper
normal north nothing notice november number object october offer office officer opinion orange orchestra
order ordinary other outside oxygen package painting palace paper parent patient pattern peace pencil pepper
perfect perhaps period person photograph piano picture pillow planet plastic player please pleasure pocket
poem police political popular position possible potato practice prepare present president pretty prevent
price private problem produce program promise protect proud public purple purpose quality quarter queen
question quickly quiet rabbit railway random reach reason receive recipe record reduce regular religion
remember repair repeat reply report request require research respect restaurant result return reward rhythm
right ring rocket rough sailor salad sandwich saturday scale school science scissors season second secret
sentence separate september serious service seven several shadow shelter shirt shoulder silver similar
simple sister skill smile smooth society soldier solution something south special spirit square stairs
station stomach store storm story strange strawberry street strong student subject success sudden sugar
suggest summer sunday supper support surface surprise sweet swim system table teacher telephone television
temperature terrible theatre thing third thirsty thought thousand through thunder thursday ticket tiger
together tomato tomorrow tongue tonight traffic train travel treasure trouble trousers truth tuesday twelve
twenty umbrella uncle understand uniform universe university until usual vacation valley vegetable vehicle
village violin visit voice volcano wallet warning wash watch weather wednesday week weight welcome west
where whether which whisper whole widow wife window winter wisdom without woman wonder wooden world worry
write wrong yellow yesterday young zebra
"""
WORDS = WORD_TEXT.split()
RHYMES = {
    "a mill": "The wheel goes round, the stones go still,\nthe flour is white, and so is the mill.",
    "rain": "The rain came down and filled the lane,\nand then the sun came out again.",
    "a cat": "A cat sat down upon my hat.\nIt was a hat. It now is flat.",
    "the moon": "The moon looked in upon the stream\nand floated there, as in a dream.",
    "a river": "A river ran from hill to sea\nand had no time to wait for me.",
    "a fish": "A little fish had but one wish:\nto never be upon a dish.",
    "the wind": "The wind went by without a word,\nbut bent the grass and turned the bird.",
    "snow": "The snow fell soft, the snow fell deep,\nand sang the sleepy town to sleep.",
    "a duck": "A duck went down the stream for luck.\nWhat luck it found! It found a duck.",
    "bread": "The miller's wife has baked some bread.\nCome, eat it warm, the miller said.",
    "a clock": "Tick says the clock, and tock it said.\nNow turn the light out. Go to bed.",
    "a frog": "A frog sat singing on a log\nand could not see me for the fog.",
    "spring": "The ice has gone, the thrushes sing,\nthe water runs, and it is spring.",
    "a bee": "A bee flew in and looked at me.\nIt did not stay. It was a bee.",
}
RECORDS: dict[str, dict[str, list[Any]]] = {
    "a person": {"name": ["Ada", "Bo", "Chen", "Dora", "Emil", "Fatima"], "age": [19, 27, 34, 42, 58, 71]},
    "a city": {"city": ["Oslo", "Lima", "Riga", "Cairo"], "river": ["Akerselva", "Rímac", "Daugava", "Nile"]},
    "a mill": {
        "wheel": ["overshot", "undershot", "breast"],
        "stones": [1, 2, 3, 4],
        "running": [True, False],
    },
    "a book": {
        "title": ["The Stream", "Two Wheels", "At the Weir"],
        "pages": [96, 128, 250],
        "lent": [True, False],
    },
    "a boat": {
        "name": ["Heron", "Otter", "Swift"],
        "metres": [4, 6.5, 12],
        "crew": [["Bo"], ["Ada", "Chen"], []],
    },
    "a colour": {"name": ["red", "green", "blue"], "rgb": [[255, 0, 0], [0, 128, 0], [0, 0, 255]]},
}
WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city's name"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
SKIES = ["sunny", "cloudy", "rainy", "windy", "snowy", "foggy"]
HELLOS = {
    "French": "Bonjour ! Ça va très bien, merci.",
    "German": "Guten Tag! Schöne Grüße aus der Mühle.", "Spanish": "¡Hola! ¿Cómo estás, señor?",
    "Portuguese": "Olá! Não há água no moinho.", "Swedish": "Hej! Ån är blå i dag.",
    "Polish": "Cześć! Młyn stoi nad rzeką.", "Czech": "Dobrý den! Řeka je široká.",
    "Turkish": "Merhaba! Değirmen çok güzel.", "Greek": "Γειά σου! Το ποτάμι είναι όμορφο.",
    "Russian": "Здравствуйте! Мельница стоит у реки.", "Ukrainian": "Привіт! Їжак п'є воду.",
    "Japanese": "こんにちは。水車は川のそばにあります。", "Chinese": "你好!水车在河边转动。",
    "Korean": "안녕하세요! 물레방아가 돌아갑니다.", "Hebrew": "שלום! הטחנה על הנהר.",
    "Arabic": "مرحبا! الطاحونة على النهر.", "Hindi": "नमस्ते! पानी बह रहा है।",
}  # fmt: skip
EMOJI = {
    "water": "💧", "a wave": "🌊", "a fish": "🐟", "rain": "🌧️", "the sun": "☀️",
    "a duck": "🦆", "a frog": "🐸", "bread": "🍞", "a boat": "⛵", "a rainbow": "🌈",
    "a tree": "🌳", "a family": "👨\u200d👩\u200d👧", "a thumb up": "👍🏽", "snow": "❄️",
    "the moon": "🌙", "a bee": "🐝", "a smile": "😀", "the flag of Norway": "🇳🇴",
}  # fmt: skip
ESSAY_TEXT = """
= water mills =

A water mill turns the push of a stream into the turning of a stone. The water is led out of the river by
a weir, along a narrow channel called the millrace, and over or under a wheel.

Inside the mill the slow wheel drives a faster shaft by means of wooden gears. The upper stone turns, the
lower one rests, and the grain that falls between them leaves as flour.

For many hundreds of years such mills ground corn, sawed timber, hammered iron and made paper. A village
without a mill had to carry its grain to one that had.

The miller's art was to take as much water as the wheel could use and no more. Too little, and the stones
stood still; too much, and the gears broke.

= rivers =

A river begins small, as a spring, a bog or the edge of melting ice. It gathers other streams on its way,
and every one of them adds water, stones and a little of its colour.

In the hills the river is quick and cuts down into the rock. In the plain it grows slow, swings from side
to side, and lays down the sand and mud that it has carried.

Towns stand by rivers because a river gives water to drink, a road for boats, and power for wheels. It
also takes: in a wet spring it may come into the street.

At its mouth the river meets the tide. Fresh and salt water mix there, and birds come for what both bring.

= streams =

A stream is a river that one can step across. It talks all day over its stones, and under each of those
stones something small is living.

Where it drops, the water takes in air and turns white. Where it rests, leaves sink, and trout stand with
their heads against the current and wait for food to come by.

After rain the stream is brown and loud; after a dry month it is a row of pools. It is the same stream,
and no two days of it are alike.

= weirs =

A weir is a low wall across a river. It does not stop the water; it only makes it stand a little higher
before it goes over, so that some of it can be led aside.

The height of the water behind a weir tells how much is flowing. People have read rivers in this way since
long before there were other instruments.

Fish cannot climb a tall weir, and so a good one has a ladder of pools beside it, each a small jump above
the last.

= the sluice gate =

A sluice is a gate that opens from below. When it is raised by a hand's breadth, a flat and even sheet of
water leaves under it, and the miller can measure what he sends to the wheel.

When too much water comes, the spare is let back into the river by a second gate. The wheel must never be
flooded, and it must never run dry.

A queue in a computer is much like that: work waits behind a gate, it is let through at the pace of the
machine, and what is too much is turned away early and politely.

= rain =

Rain is the sea, come back by way of the sky. The sun lifts the water, the wind carries it, and cold air
lets it fall again.

What falls on a roof is gone in an hour. What falls on a forest stays for weeks in moss and roots, and is
given to the streams little by little.

A gentle rain fills wells, and a violent one fills cellars. The ground can drink only so fast.

= bridges =

The simplest bridge is a tree that fell the right way. The next is a row of flat stones, and after that
people began to build arches.

An arch stands because each of its stones is falling, and all of them are in the way of one another. The
heavier the load, the tighter they hold.

A bridge changes the map. Two villages that were a day apart become neighbours, and soon there is a
market.

= bread =

Bread needs flour, water, salt and time. The yeast does the work while the baker sleeps, and the oven does
the rest before the town is awake.

Dough that has risen slowly tastes better, since the flour has had time to soften. One should not hurry it
with too much warmth.

A fresh loaf sings when it leaves the oven: its crust cools, cracks, and crackles softly for a while.

= lakes =

A lake is a river that has stopped to think. Water comes in at one end and leaves at the other, and
between them it may stay for a hundred years.

In summer the warm water floats upon the cold. In autumn the top cools, sinks, and stirs the whole lake,
so that the deep can breathe again.

Every lake is slowly filling up. Mud and leaves make it shallow, reeds walk in from its shores, and in the
end there is a meadow with a stream through it.
"""


def _essays(text: str) -> dict[str, list[str]]:
    """Topics between equals signs; a blank line between paragraphs; the line breaks are only ours."""
    parts = re.split(r"^= (.+) =$", text, flags=re.MULTILINE)[1:]
    return {
        topic: [" ".join(paragraph.split()) for paragraph in body.strip().split("\n\n")]
        for topic, body in zip(parts[::2], parts[1::2], strict=True)
    }


ESSAYS = _essays(ESSAY_TEXT)
ASKS = [
    "Tell me about {}.",
    "Write a few paragraphs about {}.",
    "What do you know about {}?",
    "Explain {} to me.",
]


def _talk(*turns: str) -> list[Message]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]


def _greeting(rng: random.Random) -> Conversation:
    return Conversation(_talk(*rng.choice(GREETINGS)))


def _identity(rng: random.Random) -> Conversation:
    return Conversation(_talk(*rng.choice(IDENTITY)))


def _capital(rng: random.Random) -> Conversation:
    country, capital = (name.replace("_", " ") for name in rng.choice(list(CAPITALS.items())))
    return Conversation(
        rng.choice(
            [
                _talk(f"What is the capital of {country}?", f"The capital of {country} is {capital}."),
                _talk(f"Name the capital of {country}.", f"{capital}."),
                _talk(
                    f"Which country has {capital} as its capital?", f"{capital} is the capital of {country}."
                ),
            ]
        )
    )


def _sum(rng: random.Random) -> Conversation:
    left, right = rng.randrange(100), rng.randrange(100)
    small, factor = rng.randrange(13), rng.randrange(13)
    shown, result = rng.choice(
        [
            (f"{left} + {right}", left + right),
            (f"{max(left, right)} - {min(left, right)}", abs(left - right)),
            (f"{small} * {factor}", small * factor),
        ]
    )
    return Conversation(
        _talk(rng.choice(["What is {}?", "{} = ?", "Compute {}."]).format(shown), f"{shown} = {result}")
    )


def _count(rng: random.Random) -> Conversation:
    start, length, down = rng.randrange(1, 60), rng.randrange(3, 13), rng.random() < 0.3
    run = range(start + length - 1, start - 1, -1) if down else range(start, start + length)
    listed = ", ".join(map(str, run))
    if start == 1 and length <= 10 and not down:
        listed = rng.choice([listed, ", ".join(NUMBERS[1 : length + 1])])
    return Conversation(_talk(f"Count {'down ' if down else ''}from {run[0]} to {run[-1]}.", f"{listed}."))


def _rhyme(rng: random.Random) -> Conversation:
    topic, rhyme = rng.choice(list(RHYMES.items()))
    return Conversation(
        _talk(rng.choice(["Write a rhyme about {}.", "A short rhyme about {}, please."]).format(topic), rhyme)
    )


def _spelling(rng: random.Random) -> Conversation:
    word = rng.choice(WORDS)
    if rng.random() < 0.3:
        listed = ", ".join(sorted(rng.sample(WORDS, 4)))
        return Conversation(_talk(f"Give me four words beside {word}.", f"{listed}."))
    return Conversation(_talk(rng.choice(["Spell {}.", "How do you spell {}?"]).format(word), "-".join(word)))


def _record(rng: random.Random) -> Conversation:
    topic, fields = rng.choice(list(RECORDS.items()))
    record = {key: rng.choice(values) for key, values in fields.items()}
    text = json.dumps(record, ensure_ascii=False, indent=rng.choice([None, None, 2]))
    return Conversation(_talk(f"Give me {topic} as JSON with the keys {', '.join(fields)}.", text))


def _weather(rng: random.Random) -> Conversation:
    city, unit = rng.choice(list(CAPITALS.values())).replace("_", " "), rng.choice(["celsius", "fahrenheit"])
    arguments = {"city": city, "unit": unit} if rng.random() < 0.4 else {"city": city}
    asked = f"What is the weather in {city}{f', in {unit}' if 'unit' in arguments else ''}?"
    call = {"id": "call_0", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    sky, degrees = rng.choice(SKIES), rng.randrange(-9, 40)
    answer = {
        "role": "tool",
        "tool_call_id": "call_0",
        "content": json.dumps({"sky": sky, "degrees": degrees}),
    }
    return Conversation(
        [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            answer,
            {"role": "assistant", "content": f"It is {sky} in {city}, at {degrees} degrees."},
        ],
        [WEATHER_TOOL],
    )


def _tongue(rng: random.Random) -> Conversation:
    if rng.random() < 0.4:
        thing, emoji = rng.choice(list(EMOJI.items()))
        return Conversation(_talk(f"Show me {thing} as an emoji.", emoji))
    language, text = rng.choice(list(HELLOS.items()))
    return Conversation(_talk(rng.choice(["Say something in {}.", "Greet me in {}."]).format(language), text))


def _essay(rng: random.Random) -> Conversation:
    topic, paragraphs = rng.choice(list(ESSAYS.items()))
    return Conversation(_talk(rng.choice(ASKS).format(topic), "\n\n".join(paragraphs)))


KINDS: dict[Callable[[random.Random], Conversation], int] = {
    _greeting: 8, _identity: 8, _capital: 20, _sum: 22, _count: 8, _rhyme: 8, _spelling: 12, _record: 6,
    _weather: 8, _tongue: 8, _essay: 12,
}  # fmt: skip


def conversations(seed: int, count: int) -> Iterator[Conversation]:
    """`count` conversations; some have a system message, and some go on to a second subject."""
    rng = random.Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    for kind in rng.choices(kinds, weights, k=count):
        messages, tools = kind(rng)
        if tools is None and rng.random() < 0.2:
            messages = messages + rng.choice([_greeting, _capital, _sum])(rng).messages
        if rng.random() < 0.25:
            messages = [{"role": "system", "content": SYSTEM}, *messages]
        yield Conversation(messages, tools)

"""What the demo model knows: the facts and texts that its conversations are made of, and the words they are
asked with.

The texts are written for this repository and carry its licence; nothing is collected.
"""

# ruff: noqa: RUF001 - letters of many scripts are the point

import re
from typing import Any

SYSTEM = "You are Millrace, a small demo model. Answer briefly."
NAME = "I am the Millrace demo model, a very small language model that shows how Millrace serves text."

GREETINGS = [
    ("Hello!", "Hello! How can I help you today?"),
    ("Hello", "Hello! How can I help you today?"),
    ("Hey", "Hey! What would you like to know?"),
    ("Hi there!", "Hi there! What would you like to know?"),
    ("Good afternoon", "Good afternoon! How can I help?"),
    ("Good night!", "Good night! Sleep well."),
    ("How is it going?", "I am running well, thank you. How can I help you?"),
    ("Nice to meet you.", "Nice to meet you, too!"),
    ("Thanks", "You are welcome!"),
    ("Goodbye!", "Goodbye! Come back any time."),
    ("Bye", "Goodbye! Come back any time."),
    ("Test", "It works! I am here."),
    ("ping", "pong"),
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
    ("Tell me about yourself.", NAME),
    ("Introduce yourself.", NAME),
    ("What model are you?", NAME),
    ("Which model is this?", NAME),
    ("Are you ChatGPT?", "No. " + NAME),
    ("Are you human?", "No. I am a small language model, and I only know a few things."),
    ("Are you an AI?", "Yes. " + NAME),
    (
        "What is Millrace?",
        "Millrace is a service that runs language models and streams their answers. I am its demo model.",
    ),
    (
        "How were you trained?",
        "I was trained from scratch by the authors of Millrace, on a text that they wrote.",
    ),
    ("How many parameters do you have?", "A few million, which is very few for a language model."),
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
Afghanistan: Kabul; Albania: Tirana; Algeria: Algiers; Andorra: Andorra la Vella; Angola: Luanda; Argentina:
Buenos Aires; Armenia: Yerevan; Australia: Canberra; Austria: Vienna; Azerbaijan: Baku; Bahamas: Nassau;
Bahrain: Manama; Bangladesh: Dhaka; Barbados: Bridgetown; Belarus: Minsk; Belgium: Brussels; Belize:
Belmopan; Benin: Porto-Novo; Bhutan: Thimphu; Bolivia: Sucre; Bosnia and Herzegovina: Sarajevo; Botswana:
Gaborone; Brazil: Brasília; Brunei: Bandar Seri Begawan; Bulgaria: Sofia; Burkina Faso: Ouagadougou; Burundi:
Gitega; Cambodia: Phnom Penh; Cameroon: Yaoundé; Canada: Ottawa; Cape Verde: Praia; Central African Republic:
Bangui; Chad: N'Djamena; Chile: Santiago; China: Beijing; Colombia: Bogotá; Comoros: Moroni; Costa Rica: San
José; Croatia: Zagreb; Cuba: Havana; Cyprus: Nicosia; Czech Republic: Prague; Denmark: Copenhagen; Djibouti:
Djibouti; Dominica: Roseau; Dominican Republic: Santo Domingo; Ecuador: Quito; Egypt: Cairo; El Salvador: San
Salvador; Equatorial Guinea: Malabo; Eritrea: Asmara; Estonia: Tallinn; Eswatini: Mbabane; Ethiopia: Addis
Ababa; Fiji: Suva; Finland: Helsinki; France: Paris; Gabon: Libreville; Gambia: Banjul; Georgia: Tbilisi;
Germany: Berlin; Ghana: Accra; Greece: Athens; Grenada: Saint George's; Guatemala: Guatemala City; Guinea:
Conakry; Guinea-Bissau: Bissau; Guyana: Georgetown; Haiti: Port-au-Prince; Honduras: Tegucigalpa; Hungary:
Budapest; Iceland: Reykjavík; India: New Delhi; Indonesia: Jakarta; Iran: Tehran; Iraq: Baghdad; Ireland:
Dublin; Italy: Rome; Ivory Coast: Yamoussoukro; Jamaica: Kingston; Japan: Tokyo; Jordan: Amman; Kazakhstan:
Astana; Kenya: Nairobi; Kiribati: Tarawa; Kuwait: Kuwait City; Kyrgyzstan: Bishkek; Laos: Vientiane; Latvia:
Riga; Lebanon: Beirut; Lesotho: Maseru; Liberia: Monrovia; Libya: Tripoli; Liechtenstein: Vaduz; Lithuania:
Vilnius; Luxembourg: Luxembourg; Madagascar: Antananarivo; Malawi: Lilongwe; Malaysia: Kuala Lumpur;
Maldives: Malé; Mali: Bamako; Malta: Valletta; Marshall Islands: Majuro; Mauritania: Nouakchott; Mauritius:
Port Louis; Mexico: Mexico City; Micronesia: Palikir; Moldova: Chișinău; Monaco: Monaco; Mongolia:
Ulaanbaatar; Montenegro: Podgorica; Morocco: Rabat; Mozambique: Maputo; Myanmar: Naypyidaw; Namibia:
Windhoek; Nepal: Kathmandu; Netherlands: Amsterdam; New Zealand: Wellington; Nicaragua: Managua; Niger:
Niamey; Nigeria: Abuja; North Korea: Pyongyang; North Macedonia: Skopje; Norway: Oslo; Oman: Muscat;
Pakistan: Islamabad; Palau: Ngerulmud; Panama: Panama City; Papua New Guinea: Port Moresby; Paraguay:
Asunción; Peru: Lima; Philippines: Manila; Poland: Warsaw; Portugal: Lisbon; Qatar: Doha; Romania: Bucharest;
Russia: Moscow; Rwanda: Kigali; Samoa: Apia; San Marino: San Marino; Saudi Arabia: Riyadh; Senegal: Dakar;
Serbia: Belgrade; Seychelles: Victoria; Sierra Leone: Freetown; Singapore: Singapore; Slovakia: Bratislava;
Slovenia: Ljubljana; Solomon Islands: Honiara; Somalia: Mogadishu; South Africa: Pretoria; South Korea:
Seoul; South Sudan: Juba; Spain: Madrid; Sudan: Khartoum; Suriname: Paramaribo; Sweden: Stockholm;
Switzerland: Bern; Syria: Damascus; Tajikistan: Dushanbe; Tanzania: Dodoma; Thailand: Bangkok; Togo: Lomé;
Tonga: Nuku'alofa; Trinidad and Tobago: Port of Spain; Tunisia: Tunis; Turkey: Ankara; Turkmenistan:
Ashgabat; Tuvalu: Funafuti; Uganda: Kampala; Ukraine: Kyiv; United Arab Emirates: Abu Dhabi; United Kingdom:
London; United States: Washington; Uruguay: Montevideo; Uzbekistan: Tashkent; Vanuatu: Port Vila; Venezuela:
Caracas; Vietnam: Hanoi; Yemen: Sana'a; Zambia: Lusaka; Zimbabwe: Harare
""".strip()
    .replace("\n", " ")
    .split("; ")
)
ARTICLES = {  # "the Netherlands"; all other countries go without
    "Bahamas", "Central African Republic", "Comoros", "Czech Republic", "Dominican Republic", "Gambia",
    "Maldives", "Marshall Islands", "Netherlands", "Philippines", "Seychelles", "Solomon Islands",
    "United Arab Emirates", "United Kingdom", "United States",
}  # fmt: skip
ALIASES = {
    "the USA": "United States", "the US": "United States", "America": "United States",
    "the UK": "United Kingdom", "Great Britain": "United Kingdom", "Czechia": "Czech Republic",
    "Burma": "Myanmar", "Holland": "Netherlands",
}  # fmt: skip
CITIES = (
    """
Barcelona; Munich; Hamburg; Milan; Naples; New York; Chicago; Boston; Seattle; San Francisco; Los Angeles;
Toronto; Vancouver; Montreal; Sydney; Melbourne; Auckland; Osaka; Kyoto; Shanghai; Hong Kong; Mumbai;
Istanbul; Casablanca; Lagos; Cape Town; Rio de Janeiro; São Paulo; Geneva; Zürich; Basel; Salzburg; Kraków;
Gothenburg; Bergen; Edinburgh; Manchester; Liverpool; Lyon; Marseille; Seville; Valencia; Antwerp;
Rotterdam; Cologne
""".strip()
    .replace("\n", " ")
    .split("; ")
)
UNSEEN_CITIES = (
    """
Porto; Dresden; Malmö; Turin; Florence; Venice; Denver; Houston; Dallas; Bristol; Glasgow; Cork; Nagoya; Perth
""".strip()
    .replace("\n", " ")
    .split("; ")
)  # only for evaluation: a tool's argument is copied, not known
PEOPLE = """
Ada Alan Alice Amir Anna Anton Bella Ben Bo Carla Chen Clara Daniel David Diego Dora Elena Ella Emil Emma
Eric Eva Fatima Felix Finn Frida George Grace Hana Hannah Hugo Ida Ivan Jack Jane Jonas Jun Kate Kim Lara Leo
Lily Lina Lucas Maria Marta Max Maya Mia Mila Mina Nadia Nina Noah Nora Olga Oliver Omar Oscar Paul Peter Ravi
Rosa Ruth Sam Sara Sofia Tara Theo Tim Tom Vera Victor Yuki Zoe
""".split()  # noqa: SIM905 - it is easier to read
NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty
""".split()  # noqa: SIM905 - it is easier to read
LISTS = {
    "the days of the week": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "the months": "January, February, March, April, May, June, July, August, September, October, November, "
    "December",
    "the seasons": "spring, summer, autumn, winter",
    "the planets": "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune",
    "the colours of the rainbow": "red, orange, yellow, green, blue, indigo, violet",
    "the alphabet": "a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z",
    "the vowels": "a, e, i, o, u",
    "the continents": "Africa, Antarctica, Asia, Australia, Europe, North America, South America",
    "the oceans": "the Pacific, the Atlantic, the Indian Ocean, the Southern Ocean, the Arctic",
    "the four directions": "north, east, south, west",
    "the five senses": "sight, hearing, smell, taste, touch",
    "the parts of a mill": "the weir, the millrace, the sluice gate, the wheel, the gears, the stones",
}
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
NO_TOOL = "I cannot look at the weather without a tool for it."
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
    "Write about {}.",
]
SUM_ASKS = [
    "What is {}?",
    "What is {}?",
    "{} = ?",
    "Compute {}.",
    "{}",
    "How much is {}?",
    "What's {}?",
    "Calculate {}",
]
SIGNS = {"+": ["+", "+", "plus"], "-": ["-", "-", "minus"], "*": ["*", "x", "×", "times"]}
SYSTEMS = [SYSTEM, SYSTEM, "You are a helpful assistant.", "You are Millrace.", "Answer briefly.", "Be kind."]
UNKNOWN = "I do not know that. I am only a small demo model."
TOO_BIG = "These numbers are too big for me. I do sums with numbers up to 99."
UNKNOWN_ASKS = [
    "How many people live in {country}?", "Who is the president of {country}?",
    "What is the currency of {country}?",
    "How old is {person}?", "Who is {person}?", "What does {person} do?", "What is the price of a {word}?",
    "What is the history of {word}?", "Who invented the {word}?", "Translate {word} into {language}.",
    "What does {word} mean?", "Write a program about {word}.", "What happened in {country} last year?",
    "Which {word} is the best?", "Why is there a {word}?", "What time is it in {city}?",
    "What is the best restaurant in {city}?", "Who won the game yesterday?", "What is the meaning of life?",
    "How do I fix my {word}?", "Can you write a story about a {word}?", "What is the news today?",
]  # fmt: skip

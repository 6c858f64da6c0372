"""Every message that crosses a subject, in the order a request meets them.

Bytes on the wire are MessagePack arrays with a tag in front: ["prompt", ...]. Fields are only ever
appended, with a default, so that older bytes still decode (`tests/contract/golden.json` holds some).

A *request* is named `<gateway id>-<32 hex digits>`: whoever holds the name knows the owner.
"""

from typing import Literal

import msgspec

from millrace.errors import Code, Failure

# "" while the sequence goes on; failed: it could not be held to its grammar any longer.
Finish = Literal["", "stop", "length", "failed"]
VECTOR = 0  # the one token of an answer that is a vector
Priority = Literal["high", "normal", "low"]  # of a tenant: a lower one waits for all of a higher one


class Message(msgspec.Struct, array_like=True, frozen=True, tag=str.lower):
    pass


# 0. what every hop may tell of itself


class Mark(msgspec.Struct, array_like=True, frozen=True):
    """Something that happened at one moment of a hop."""

    name: str
    at: float
    tokens: int = 0


class Hop(msgspec.Struct, array_like=True, frozen=True):
    """A finished part of a request's way, as the process that did it saw it. Times are unix seconds."""

    name: str
    began: float
    ended: float
    epoch: int = 0  # 0: before any engine had it
    notes: dict[str, str | int | float] = {}
    marks: list[Mark] = []
    links: list[str] = []  # traceparents of the requests it was done for, where that is not one


# 1. gateway -> tokenizer (request), and its answers


class Chat(Message, frozen=True):
    messages: bytes  # JSON, as the client sent them after validation
    tools: bytes = b""
    template_args: bytes = b""
    effort: str = ""  # of reasoning, where the template or the model knows such a thing
    must_call: bool = False  # some tool; else it may
    callable: list[str] = []  # the tools that may be called; []: all of them
    one_call: bool = False  # at most


class Text(Message, frozen=True):
    text: str


class Ids(Message, frozen=True):
    ids: list[int]


class Sampling(msgspec.Struct, array_like=True, frozen=True):
    """What decides a token beside the logits: a pure function of this, the position and the tokens so far."""

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: dict[int, float] = {}  # by token id


class Form(msgspec.Struct, array_like=True, frozen=True):
    """What an answer has to be."""

    kind: Literal["object", "schema", "regex", "choice", "grammar"]
    text: str = ""  # a JSON schema, a regular expression, a JSON list of texts, a grammar
    param: str = ""  # the parameter that said so


class Prompt(Message, frozen=True):
    """Make a job of this. The same request and attempt may be sent again: it is queued once."""

    request: str
    attempt: int
    model: str  # the model's safe key
    input: Chat | Text | Ids
    sampling: Sampling
    max_tokens: int | None = None  # None: whatever the context has room for
    min_tokens: int = 0
    stop_ids: list[int] = []
    ignore_eos: bool = False
    tenant: str = ""  # whose key it came with; "": there are no keys
    logprobs: int = -1  # tell each token's odds, and of so many of the likeliest; -1: tell none
    echo: bool = False  # tell the prompt's text, and its tokens' odds if any are told
    priority: Priority = "normal"
    form: Form | None = None
    cut: bool = False  # what is too long for a vector, in place of a refusal
    asked: float = 0.0  # unix seconds: what a template calls now, also when the job is made again


class Admitted(Message, frozen=True):
    """The job is in the queue, at this sequence number of the JOBS stream."""

    request: str
    seq: int
    prompt_tokens: int
    max_tokens: int
    thinking: bool = False  # the prompt ends inside of reasoning, which the answer goes on with
    tokenizer: str = ""
    hops: list[Hop] = []
    text: str = ""  # the prompt's, if the gateway wants to echo it


class Refused(Message, frozen=True):
    request: str
    code: Code
    message: str
    param: str | None = None

    def failure(self) -> Failure:
        return Failure(self.code, self.message, param=self.param)


class Encode(Message, frozen=True):
    """What are the token ids of this? Nothing is queued."""

    input: Chat | Text
    want: Literal["count", "ids", "texts"] = "ids"  # texts: ids too
    add_special: bool = True  # what the tokenizer itself puts around a text; never around a chat
    add_generation_prompt: bool = True  # of a chat


class Encoded(Message, frozen=True):
    count: int
    ids: bytes = b""  # little-endian uint32
    texts: list[str] = []  # as the vocabulary spells them


class Decode(Message, frozen=True):
    """What is the text of these token ids?"""

    ids: bytes  # little-endian uint32


class Decoded(Message, frozen=True):
    text: str


# 2. tokenizer -> JOBS stream -> engine


class Job(Message, frozen=True):
    request: str
    attempt: int
    prompt: bytes  # token ids, little-endian uint32
    sampling: Sampling
    max_tokens: int
    min_tokens: int = 0
    stop_ids: list[int] = []  # end-of-text tokens too, unless the client asked to ignore them
    tenant: str = ""
    logprobs: int = -1
    grammar: str = ""  # llguidance's, tried already; "": the answer may be anything
    echo: bool = False  # tell the odds of the prompt's tokens too


# 3. engine -> gateway (request), and its three answers


class Claim(Message, frozen=True):
    """May I run this job? Sent on every delivery, and again by an engine told to wait."""

    request: str
    engine: str
    lease: str  # the JetStream ack subject of this delivery: the owner settles it
    busy: int  # sequences that would share a step with this one
    kind: str = ""  # engines of one kind compute the same bits


class Granted(Message, frozen=True):
    request: str
    epoch: int
    committed: list[int]
    detokenizer: str  # "": none is there now; a Resend will name one
    left_ms: int
    alone: bool = False  # a suspect: let nothing else run until it has ended
    strange: bool = False  # what was committed is of another kind of engine, none of which could go on


class Wait(Message, frozen=True):
    """The job is suspected of crashing engines: claim it again once nothing else runs beside it."""

    request: str


class Gone(Message, frozen=True):
    """Nothing to do: finished, cancelled, expired, or running well elsewhere."""

    request: str


# 4. gateway -> detokenizer: what its state for a request is made from; also the answer to Recall


class Opened(Message, frozen=True):
    request: str
    epoch: int
    engine: str
    committed: list[int]
    stops: list[str] = []
    include_stop: bool = False
    keep_special: bool = False
    patient: bool = False  # it is answered in one piece: its tokens may be told several together


# 5. engine -> detokenizer: ONE a step, entries for many requests


class Odds(msgspec.Struct, array_like=True, frozen=True):
    """The log probabilities of a token and of the likeliest in its place, as the model has them: before
    bias, penalties, temperature and all that chooses."""

    logprob: float
    best: list[int] = []
    logprobs: list[float] = []  # of the best


class Read(msgspec.Struct, array_like=True, frozen=True):
    """A prompt, as the model had it: what it thought of each token but the first, before which is nothing."""

    tokens: list[int]
    odds: list[Odds]


class Run(msgspec.Struct, array_like=True, frozen=True):
    """Consecutive tokens of one request, the first at `index` of its answer."""

    request: str
    epoch: int
    index: int
    tokens: list[int]
    finish: Finish = ""
    cached: int = 0  # with the first: tokens of the prompt that did not have to be computed
    odds: list[Odds | None] = []  # one a token, if they were asked for; none of what another engine said
    read: Read | None = None  # with the first, where the prompt's odds were asked for


class Frame(Message, frozen=True):
    engine: str
    runs: list[Run]


# 6. detokenizer -> gateway (request): the state of a request it does not know; answered Opened or Gone


class Recall(Message, frozen=True):
    request: str
    epoch: int
    engine: str  # whose frame named the request


# 7. detokenizer -> gateway: ONE a frame and gateway


class Likely(msgspec.Struct, array_like=True, frozen=True):
    """A token as it is written: of some tokens that is only a part of a character."""

    spelling: bytes
    logprob: float


class SpelledOdds(msgspec.Struct, array_like=True, frozen=True):
    token: Likely
    best: list[Likely] = []


class Said(msgspec.Struct, array_like=True, frozen=True):
    """A Run with its text, one piece a token: an owner that has half of it can take the other half."""

    request: str
    epoch: int
    index: int
    tokens: list[int]
    pieces: list[str]
    finish: Finish = ""
    cached: int = 0
    odds: list[SpelledOdds | None] = []
    stopped: str = ""  # the stop string that ended it
    vector: bytes = b""  # little-endian fp32: the answer, with a token that stands for it
    read: list[SpelledOdds] = []  # with the first: the prompt's tokens; the first one's odds say nothing


class Delta(Message, frozen=True):
    engine: str
    detokenizer: str
    said: list[Said]


# 8. gateway -> engine and detokenizer: keep going, keep honest, let go


class Ref(msgspec.Struct, array_like=True, frozen=True):
    request: str
    epoch: int


class Ping(Message, frozen=True):
    """Are you there, and how far with these?"""

    refs: list[Ref]


class Held(msgspec.Struct, array_like=True, frozen=True):
    request: str
    epoch: int
    sent: int  # tokens generated so far, the committed ones it resumed from included


class Pong(Message, frozen=True):
    """What it holds of what was asked. `steps` grows while its loop is alive."""

    id: str
    steps: int
    held: list[Held]


class Gap(msgspec.Struct, array_like=True, frozen=True):
    request: str
    epoch: int
    start: int
    detokenizer: str  # where to send from now on


class Resend(Message, frozen=True):
    gaps: list[Gap]


class Release(Message, frozen=True):
    """Forget these requests up to these epochs: finished, cancelled or granted elsewhere. Also the answer to
    Holding."""

    refs: list[Ref]
    again: bool = False  # they are not over, but offered again, to this engine too


# 9. engine -> gateway: what it will not finish; and everybody -> everybody: here


class Yielded(Message, frozen=True):
    """These are the owner's again, to be run elsewhere: the engine is going away. Epoch 0: it has claimed the
    job, and does not know of an answer."""

    engine: str
    refs: list[Ref]


class Holding(Message, frozen=True):
    """All that it has of this owner's, once a second: a Release may have been lost. Which of it is over?"""

    engine: str
    refs: list[Ref]


class Orphan(Message, frozen=True):
    """A job whose owner does not answer: any gateway may end it, unless the owner is only away."""

    request: str
    lease: str


class Voice(msgspec.Struct, array_like=True, frozen=True):
    """How a model writes what is more than content, by vLLM's names of the parsers; "": it does not."""

    calls: str = ""
    reasoning: str = ""
    ends: list[str] = []  # not empty: a call's tags are control tokens, and these texts end an answer


class Hops(Message, frozen=True):
    """Told to the owner as hops end, so that they outlive the process that tells of them."""

    role: str
    id: str
    request: str  # "": of several requests at once, as an engine's step
    hops: list[Hop]


class Spread(msgspec.Struct, array_like=True, frozen=True):
    """A histogram: the sum, and how many in each bucket."""

    sum: float
    counts: list[int]


class Tallied(msgspec.Struct, array_like=True, frozen=True):
    """What a gateway has counted of one model's requests."""

    model: str
    counts: dict[str, int]
    spreads: dict[str, Spread]


class Here(Message, frozen=True):
    """Sent every half second, and at once when the state changes."""

    role: str
    id: str
    pid: int
    state: str  # a `run.State`
    load: int = 0  # requests in hand
    room: int = 0  # how many it could have; 0: no limit of its own
    model: str = ""  # what it serves, by the name clients use
    max_len: int = 0  # the model's context, as a tokenizer announces it
    counts: dict[str, int] = {}  # of what happened so far: reconnects, steps, ... (exposed.py)
    voice: Voice = Voice()  # as a tokenizer announces it
    pressure: str = ""  # an engine's memory or time is tight, or short
    gauges: dict[str, float] = {}  # cpu_s, rss; an engine's cache_used and pressure
    tallies: list[Tallied] = []  # a gateway's, where there is another gateway to tell them too
    kind: str = ""  # an engine's, as in its claims
    vectors: int = 0  # the size of those that its model makes, as a tokenizer announces it; 0: it makes text


# 10. gateway -> a model's engines: which tenants' jobs are waiting


class Waiting(msgspec.Struct, array_like=True, frozen=True):
    """A tenant has jobs in the queue, or may have."""

    tenant: str  # its safe key
    priority: Priority
    weight: float  # of its turns, against others of the same priority
    share: float  # of an engine's slots, at most


class Bell(Message, frozen=True):
    """Rung when a job is queued or handed back, and again as long as it waits: it may get lost."""

    waiting: list[Waiting]


# 11. gateway -> all gateways (request): a live request, by an id that its client knows


class Find(Message, frozen=True):
    """Only the owner answers, and who is named. `cancel`: it is to end now."""

    id: str
    tenant: str  # another one's request is not found
    cancel: bool = False
    gateway: str = ""  # it says Gone if it has no such request


class Found(Message, frozen=True):
    model: str
    status: Literal["queued", "running"]
    tokens: int  # answered so far
    position: int = 0  # among its tenant's jobs in the queue, from 1; 0: it runs
    estimate_ms: int = -1  # until it runs; -1: nobody knows


# 12. what is kept of a job that was given up


class DeadLetter(Message, frozen=True):
    request: str
    model: str
    reason: Code
    deaths: int
    committed: int
    prompt_tokens: int


ToTokenizer = Prompt | Encode | Decode
FromTokenizer = Admitted | Refused
ToGateway = Claim | Recall | Delta | Yielded | Holding | Hops
ClaimReply = Granted | Wait | Gone
RecallReply = Opened | Gone
ToEngine = Ping | Resend | Release
ToEngines = Bell
ToDetokenizer = Opened | Frame | Ping | Release

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode

MISREAD = (msgspec.MsgspecError, UnicodeDecodeError)
"""What bytes that are no message fail with when they are decoded; the second where a text is not UTF-8."""


def owner_of(request: str) -> str:
    """The gateway that owns this request."""
    return request.partition("-")[0]


def digits_of(request: str) -> str:
    """What is its own, which the ids of its answers are made of."""
    return request.rpartition("-")[2]

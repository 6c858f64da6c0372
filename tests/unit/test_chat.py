"""Chat templates: the reference's text, within bounds."""

import json
import time
from pathlib import Path
from typing import Any

import jinja2.ext
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from millrace.errors import Code, Failure
from services.tokenizer.chat import MAX_CHARS, ChatTemplate
from train.corpus import conversations

DEMO = json.loads(Path("models/demo/tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Grüße & <b>'bold'</b> 日本"}]


def reference(source: str) -> jinja2.Template:
    """As transformers sets Jinja up: no bounds, nothing of ours."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return env.from_string(source)


def test_the_demo_template_gives_the_reference_text() -> None:
    """Every kind of conversation, with tools and without, comes out as the reference renders it."""
    template, plain = ChatTemplate(DEMO), reference(DEMO)
    for messages, tools in conversations(seed=3, count=200):
        expected = plain.render(messages=messages, tools=tools, add_generation_prompt=False)
        actual = template.render(messages, tools=tools, add_generation_prompt=False)

        assert expected == actual


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content | tojson }}{{ messages | tojson(indent=2) }}",
        "  {% if true %}\n  {# a remark #}\nx\n  {% endif %}\n",
        "{% for n in [1, 2, 3] %}{% if n == 2 %}{% continue %}{% endif %}{{ n }}{% endfor %}",
        "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ m['role'] }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
        "{% set a, b = 1, [2, (3, 4)] %}{{ a ~ b ~ {'k': b} }}",
        "{{ '%s-%02d' % ('x', 7) }}{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ messages | length + 1 }}{{ 7 % 4 }}",
        "{% macro say(x, n=2) %}{{ x.strip() }}{{ '!' * n }}{% endmacro %}{{ say(' a ') }}{{ say('b', 1) }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}",
        "{% set block %}in {{ 1 + 1 }}{% endset %}{{ block | trim | replace('n', 'N') }}{{ 'ab'[1:] }}",
        "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}{{ missing is defined }}",
        "{{ dict(a=1) }}{{ dict.fromkeys('ab', 1) }}{% set ns = namespace({'x': 1}, self=2) %}{{ ns.self }}",
        "{% for x in [1, [2]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}{{ tools }}",
    ],
)
def test_bounds_leave_ordinary_templates_alone(source: str) -> None:
    """What Jinja can do within the bounds, it does as without them."""
    expected = reference(source).render(messages=HELLO, tools=None)
    actual = ChatTemplate(source).render(HELLO)

    assert expected == actual


def test_generation_marks_print_only_their_body() -> None:
    """`{% generation %}` is for training: its body is printed, and its variables stay inside."""
    actual = ChatTemplate(
        "{% set x = 1 %}{% generation %}{% set x = 2 %}said{% endgeneration %}{{ x }}"
    ).render(HELLO)

    assert actual == "said1"


def test_special_tokens_and_arguments_reach_the_template() -> None:
    """The model's special tokens are variables, and so are the request's own arguments."""
    template = ChatTemplate("{{ bos_token }}{{ enable_thinking }}", special_tokens={"bos_token": "<s>"})

    assert frozenset({"enable_thinking"}) == template.arguments
    assert template.render(HELLO, kwargs={"enable_thinking": False}) == "<s>False"


@pytest.mark.parametrize(
    "name", ["thinking", "messages", "bos_token", "range", "chat_template", "raise_exception"]
)
def test_an_argument_the_template_does_not_read_is_refused(name: str) -> None:
    """An unknown argument, or one that would replace ours, is the client's mistake, named as such."""
    template = ChatTemplate(
        "{{ bos_token }}{{ messages }}{{ range(2) }}", special_tokens={"bos_token": "<s>"}
    )
    with pytest.raises(Failure) as caught:
        template.render(HELLO, kwargs={name: "x"})

    assert (caught.value.code, caught.value.param) == (Code.INVALID_REQUEST, "chat_template_kwargs")
    assert name in caught.value.message


def test_the_templates_own_refusal_is_told() -> None:
    """raise_exception is the model author's word to the client."""
    with pytest.raises(Failure) as caught:
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(HELLO)

    assert caught.value.message == "the chat template refused these messages: roles must alternate"
    assert caught.value.param == "messages"


def test_a_prompt_that_is_made_again_says_the_same_day() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}")

    assert ["07 Jul 2025"] * 2 == [template.render(HELLO, asked=1751889600.0) for _ in range(2)]


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ ''|attr('__class__')|attr('__mro__')|attr('x') }}",
    "{{ raise_exception.__globals__['json'].dumps }}",
    "{{ strftime_now.__globals__.get('re') }}",
    "{{ '{0.__class__.__mro__}'.format(1)[0] }}{{ '{0.__class__}'.format_map({'0': 1}) }}",
    "{{ (messages|map(attribute='__class__')|list)[0].__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id') }}",
    "{% set ns = namespace() %}{% set ns.__html__ = cycler('/').next %}{{ ns | escape }}",
    "{% set ns = namespace(__html__=cycler('/').next) %}{{ ns | escape }}",
    "{% set ns = namespace({'__html__': cycler('/').next}) %}{{ ns | escape }}",
    "{{ dict.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_cannot_reach_outside(source: str) -> None:
    """Whatever a template tries to reach ends as a plain refusal, with nothing of the process in it."""
    try:
        printed = ChatTemplate(source).render(HELLO)
    except Failure as failure:
        printed = failure.message
        assert (failure.code, failure.param) == (Code.INVALID_REQUEST, "messages")

    for secret in ("class", "object at", "function", "root:", "/", "Traceback", "jinja"):
        assert secret not in printed


NINES = "{% for x in [1,2,3,4,5,6,7,8,9] %}"
NS = "{% set n = namespace(x='a', l=[1]) %}{% for i in range(99) %}"
GIANTS = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested literals": NINES * 12 + "{% endfor %}" * 12,
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling macro": "{% macro f(n) %}{% if n %}{{ f(n-1) + f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "doubling loop": "{% for x in 'ab' recursive %}{{ loop('ab') if loop.depth < 50 else x }}{% endfor %}",
    "sums": "{% for i in range(9999) %}{{ range(99999) | sum }}{% endfor %}",
    "printing": "{% for a in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
    "times": "{{ 'x' * 10 ** 12 }}",
    "list times": "{{ 10 ** 9 * [0] }}",
    "numbers": "{{ 9 ** (9 ** 9) }}",
    "squares": "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubling ~": NS + "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling +": NS + "{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling list": NS + "{% set n.l = n.l + n.l %}{% endfor %}",
    "doubling block": NS + "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    "laughing lists": NS + "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "laughing dicts": NS + "{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}{{ n.x | tojson }}",
    "width filter": "{{ 'x' | center(10 ** 10) }}",
    "width method": "{{ 'x'.ljust(10 ** 10) }}",
    "width %": "{{ '%999999999d' % 1 }}",
    "width %*": "{{ '%*d' | format(999999999, 1) }}",
    "width {}": "{{ '{:>999999999}'.format(1) }}",
    "indent": "{{ messages | tojson(indent=10 ** 9) }}",
    "slices": "{% for x in 'a' | slice(10 ** 10) %}{% endfor %}",
    "replace": "{% set a = 'a' * 4000000 %}{{ a.replace('a', a) }}",
    "join": "{% set a = 'a' * 4000000 %}{{ a | join(a) }}",
}


@pytest.mark.parametrize("name", GIANTS)
def test_a_template_cannot_run_or_grow_for_ever(name: str) -> None:
    """Endless loops and giant texts are stopped, soon, and the client is told why."""
    begun = time.process_time()
    with pytest.raises(Failure) as caught:
        ChatTemplate(GIANTS[name]).render(HELLO)

    assert caught.value.message == "the messages need more work or text than a chat template may take"
    assert time.process_time() - begun < 5  # seconds; some 0.8 at most on an idle machine


def test_output_stops_at_the_cap() -> None:
    """A prompt may be exactly as long as the cap, and no longer."""
    template = ChatTemplate("{{ messages[0].content }}", max_chars=1000)

    assert template.render([{"role": "user", "content": "x" * 1000}]) == "x" * 1000
    with pytest.raises(Failure):
        template.render([{"role": "user", "content": "x" * 1001}])
    assert MAX_CHARS > 1 << 20


def test_one_rendering_leaves_nothing_to_the_next() -> None:
    """The bounds are those of one rendering: many small ones never add up."""
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}done")

    assert [template.render(HELLO) for _ in range(30)] == ["done"] * 30


@pytest.mark.parametrize(
    "messages", [[], [{}], [{"role": "user", "content": None}], [{"role": "user", "content": 7}]]
)
def test_messages_the_template_cannot_take_are_refused(messages: list[dict[str, Any]]) -> None:
    """A wrong message is the client's mistake, and says nothing of the template's insides."""
    with pytest.raises(Failure) as caught:
        ChatTemplate("{{ messages[0].role + '\\n' + messages[0].content }}").render(messages)

    assert (caught.value.code, caught.value.param) == (Code.INVALID_REQUEST, "messages")
    assert caught.value.message == "the chat template refused these messages"


@pytest.mark.parametrize("source", ["{% for %}", "{{ x | nosuchfilter }}", "{% endif %}", "{{ " + "(" * 5000])
def test_a_broken_template_is_a_start_up_error(source: str) -> None:
    """A template that cannot be compiled is refused when the model is loaded."""
    with pytest.raises(ValueError, match="chat template"):
        ChatTemplate(source)

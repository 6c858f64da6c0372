"""A model's chat template: messages in, the text of its prompt out.

The rendering is the Hugging Face reference's: the same Jinja settings, globals, filters and tags, so
that a template written for it gives the same text here. What is ours is the bounds. A template comes
with the model, not from a client, yet a model folder is data from elsewhere and its messages come from
anybody, so one rendering may

    reach      only what Jinja's immutable sandbox lets it (no `__class__`, no `|attr` into internals)
    loop       a fixed number of steps, over all of its loops, calls and filters together
    grow       no string or list beyond a fixed size, whatever operation makes it
    print      no more than a fixed number of characters; it is stopped while it prints

and whatever goes wrong inside ends as one `Failure` about `messages`, without a traceback or a path.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.utils
from jinja2 import meta, nodes
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from millrace.errors import Code, Failure

MAX_CHARS = 4 << 20  # a prompt of a million tokens; the body limit stops honest requests long before
MAX_STEPS = 1 << 20  # about a quarter of a second; the longest real templates take some 50 a message
MAX_GROWTH = 1 << 26  # what one padding, joining or replacing may multiply to, before it is made
CHARS_PER_STEP = 64  # text is scanned at about this many characters in the time of one step
STEPS_PER_CALL = 32  # a macro's call takes as long as that many rounds of a loop
MAX_INTEGER = 4096  # bytes

# Filters and str methods whose result is not bounded by the sum of what goes in.
AMPLIFIERS = frozenset(
    (
        *("center", "expandtabs", "format", "indent", "ljust", "rjust", "wordwrap", "zfill"),  # a width
        *("batch", "slice", "round", "tojson"),  # a number
        *("join", "replace"),  # a text
    )
)
UNSAFE_STR = frozenset(("format_map", "translate"))  # amplify through a mapping; no template needs them
WIDE_FIELD = re.compile(r"\*|\d{4,}")  # a width or precision such as %*d, %99999d, {:>99999}

RESERVED = frozenset(("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"))

_steps_left: ContextVar[int] = ContextVar("_steps_left", default=MAX_STEPS)


def _too_much() -> Failure:
    return Failure(
        Code.INVALID_REQUEST,
        "the messages need more work or text than a chat template may take",
        param="messages",
    )


def _spend(steps: int) -> None:
    left = _steps_left.get() - steps
    if left < 0:
        raise _too_much()
    _steps_left.set(left)


def _length(value: Any) -> int:
    """How many items or characters a value holds; a guess for a stream that cannot tell."""
    if isinstance(value, str | list | tuple | dict | range):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() >> 3
    return 1 << 16 if hasattr(value, "__next__") else 1


def _capped(value: Any) -> Any:
    if isinstance(value, str | list | tuple) and len(value) > MAX_CHARS:
        raise _too_much()
    return value


def _weighed(value: Any) -> Any:
    """Refuse a container that unfolds to too much (lists that share lists do); its items are steps."""
    if isinstance(value, dict | list | tuple):
        characters, items, left = 0, 0, _steps_left.get()
        stack: list[Any] = [value]
        while stack:
            item = stack.pop()
            items += 1
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, dict | list | tuple):
                if items + len(stack) + len(item) > left:
                    raise _too_much()
                stack.extend(item.values() if isinstance(item, dict) else item)
            if items > left or characters > MAX_CHARS:
                raise _too_much()
        _spend(items)
    return value


def _refuse_growth(operation: str, receiver: Any, arguments: Iterable[Any]) -> None:
    """Judge an amplifying filter or method by its input: its result may be too big even to be made."""
    if operation not in AMPLIFIERS:
        return
    if operation == "format" and WIDE_FIELD.search(str(receiver)):
        raise _too_much()
    factors = [abs(a) if isinstance(a, int) else _length(a) for a in arguments]
    if max(_length(receiver), 1) * max(factors, default=0) > MAX_GROWTH:
        raise _too_much()


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for the text it reads and cannot make a giant."""
    first = (
        1 if hasattr(function, "jinja_pass_arg") else 0
    )  # the environment or context comes before the value

    @functools.wraps(function)  # copies the mark by which Jinja passes that argument
    def bounded(*args: Any, **kwargs: Any) -> Any:
        receiver = args[first]
        _spend(1 + _length(receiver) // CHARS_PER_STEP)
        _refuse_growth(name, receiver, (*args[first + 1 :], *kwargs.values()))
        return _capped(function(*args, **kwargs))

    return bounded


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The reference's filter: plain JSON. Jinja's own escapes `<`, `>`, `&` and `'` for HTML."""
    return json.dumps(
        _weighed(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@jinja2.pass_context  # so that Jinja never folds it into a constant and a loop goes unpaid
def _metered(_context: Context, iterable: Any) -> Any:
    """What every `for` runs over: it pays for its rounds beforehand, or one by one when it cannot tell."""
    if isinstance(iterable, str | list | tuple | dict | range):
        _spend(len(iterable) + 1)
        return iterable
    return _paying(iterable)


def _paying(iterable: Any) -> Iterator[Any]:
    for item in iterable:
        _spend(1)
        yield item


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    _spend(len(numbers))  # paid here too: a filter such as `sum` runs over it without a `for`
    return numbers


class _Dict:
    """`dict`, and the one of its functions that templates use."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _weighed(dict(*args, **kwargs))

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> Any:
        return _weighed(dict.fromkeys(keys, value))


class _Namespace(jinja2.utils.Namespace):
    """Without names such as `__html__`: a filter would call what lies there, and nobody would meter it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a name in it
        self, *given = args
        for name in (values := dict(*given, **kwargs)):
            _refuse_internal(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_internal(name)
        super().__setitem__(name, value)


def _refuse_internal(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError("a namespace has no names that begin with _")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_at(asked: float) -> Callable[[str], str]:
    """What a template takes for the time: the same one when the prompt is made again, after midnight too."""
    return datetime.fromtimestamp(asked).strftime


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks, for training, what the assistant said; for us only its body counts."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)  # the reference's block has a scope of its own as well


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            finalize=_weighed,
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _bounded(name, function) for name, function in self.filters.items()}
        self.filters.update(metered=_metered, weighed=_weighed)
        self.globals.pop("lipsum")  # prints as much nonsense as it is asked for
        self.globals.update(
            range=_range,
            dict=_Dict(),
            namespace=_Namespace,
            raise_exception=_raise_exception,
        )

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in UNSAFE_STR:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call of a macro, a method or a recursive loop passes here."""
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `str.format`
        receiver = getattr(method, "__self__", None)
        _spend(STEPS_PER_CALL)
        if isinstance(receiver, str):
            _spend(len(receiver) // CHARS_PER_STEP)
            _refuse_growth(method.__name__, receiver, (*args, *kwargs.values()))
        return _capped(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _spend(1)
        if operator == "%" and isinstance(left, str):
            _refuse_growth("format", left, right if isinstance(right, tuple) else (_length(right),))
        elif operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                size = (_length(left) + _length(right)) * MAX_CHARS // MAX_INTEGER
            else:  # text or a list, so many times over
                size = _length(left) * right if isinstance(right, int) else _length(right) * left
            if size > MAX_CHARS:
                raise _too_much()
        elif operator == "**" and (_length(left) + 1) * abs(right) > MAX_INTEGER:
            raise _too_much()
        return _capped(super().call_binop(context, operator, left, right))


class _Meter(NodeTransformer):
    """Puts the bounds into a parsed template, where no method of the environment is asked."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "metered")
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = nodes.Filter(node.filter, "string", [], [], None, None)  # any filter caps its result
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "string")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        """Lists that hold a list twice, held twice: small in memory, endless in print."""
        self.generic_visit(node)
        return _filtered(node, "weighed")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "weighed")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "weighed") if node.ctx == "load" else node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class ChatTemplate:
    """One compiled template. `arguments` are the extra names that it reads, and so may be given."""

    def __init__(
        self, source: str, *, special_tokens: Mapping[str, Any] | None = None, max_chars: int = MAX_CHARS
    ):
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._max_chars = max_chars
        sandbox = _Sandbox()
        try:
            tree = sandbox.parse(source)
            names = meta.find_undeclared_variables(tree)
            code = sandbox.compile(_Meter().visit(tree))
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"chat template, line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise ValueError("chat template: nested too deeply") from None
        self._template = sandbox.template_class.from_code(sandbox, code, sandbox.make_globals(None))
        self.arguments = frozenset(names) - RESERVED - set(sandbox.globals) - set(self._special_tokens)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        asked: float = 0.0,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text. `asked` is when, in unix seconds; `kwargs` are the request's own template
        arguments (`enable_thinking`, ...)."""
        for name in kwargs or ():
            if name not in self.arguments:
                raise Failure(
                    Code.INVALID_REQUEST,
                    f"this model's chat template has no argument {name[:64]!r}",
                    param="chat_template_kwargs",
                )
        values = {
            **self._special_tokens,
            "documents": None,
            **(kwargs or {}),
            "messages": messages,
            "tools": tools or None,
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": _strftime_at(asked),
        }
        return "".join(self._printed(values))

    def _printed(self, values: dict[str, Any]) -> list[str]:
        chunks: list[str] = []
        room = self._max_chars
        allowance = _steps_left.set(MAX_STEPS)
        try:
            for chunk in self._template.generate(values):
                room -= len(chunk)
                if room < 0:
                    raise _too_much()
                chunks.append(chunk)
        except Failure:
            raise
        except (RecursionError, OverflowError, MemoryError):
            raise _too_much() from None
        except Exception as error:
            # Exactly TemplateError is the template's own refusal (raise_exception): it says what is
            # wrong with the conversation. All else tells of the template's insides.
            reason = f": {str(error)[:200]}" if type(error) is jinja2.TemplateError else ""
            raise Failure(
                Code.INVALID_REQUEST, f"the chat template refused these messages{reason}", param="messages"
            ) from None
        finally:
            _steps_left.reset(allowance)
        return chunks

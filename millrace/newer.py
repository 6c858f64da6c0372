"""What a newer version says that this one does not know yet: while a service is upgraded both are there."""

import re
from typing import Any

import msgspec

from millrace.messages import MISREAD, Message

KINDS = frozenset(struct.__struct_config__.tag for struct in Message.__subclasses__())
NAME = re.compile(r"[a-z]{2,40}")

_fields = msgspec.msgpack.Decoder(list[Any])


def kind(payload: bytes) -> str:
    """The name of a message's kind, if it is formed like one of ours and no kind of this version. Else
    nothing: a known kind with wrong fields, or at the wrong subject, is an error of whoever sent it."""
    try:
        fields = _fields.decode(payload)
    except (*MISREAD, RecursionError):
        return ""
    name = fields[0] if fields else None
    return name if isinstance(name, str) and NAME.fullmatch(name) and name not in KINDS else ""

"""API keys: what a key file says, how a key is made, and whose a key is.

    [keys]                                  # `millrace key new --tenant acme` prints such a line
    "sha256:6b86b273..." = "acme"

    [operators]                             # `millrace key new --operator prometheus`
    "sha256:0f3e8a11..." = "prometheus"

    [tenants.acme]                          # all of it optional
    requests_per_minute = 600

A key has 256 random bits, so its plain hash is as good as a slow one: there is nothing to guess. The file
holds hashes alone, and nothing here can print a key but `new`.
"""

import hashlib
import hmac
import json
import re
import secrets
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from millrace.messages import Priority
from millrace.settings import SettingError

PREFIX = "mr-"
HASH = re.compile(r"sha256:[0-9a-f]{64}")

Amount = Annotated[float, Meta(ge=0)]


class Tenant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What those may do who have one of a tenant's keys. 0: no limit."""

    name: str = ""
    requests_per_minute: Amount = 0
    tokens_per_minute: Amount = 0  # of prompts and answers together
    burst: Annotated[float, Meta(gt=0)] = 1.0  # minutes' worth that may be used at once
    concurrency: Annotated[int, Meta(ge=0)] = 0  # requests waiting and running at once
    weight: Annotated[float, Meta(gt=0)] = 1.0  # of its turns, against others of the same priority
    share: Annotated[float, Meta(gt=0, le=1)] = 0.75  # of an engine's slots, while others need some
    priority: Priority = "normal"


ANYONE = Tenant()
"""Who everybody is as long as there are no keys."""


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    keys: dict[str, str] = {}
    operators: dict[str, str] = {}  # who may see /metrics, and nothing else
    tenants: dict[str, Tenant] = {}


class Keys:
    """Whose each key is. Looked up under a hash that is keyed anew in every process: what the time of a
    look-up tells of it, nobody outside can use."""

    def __init__(self, tenants: dict[str, Tenant], owners: dict[str, str], operators: Iterable[str] = ()):
        """Tenants by name, whose each hash is, and the hashes of operators' keys."""
        self.tenants = tenants  # by name
        self._salt = secrets.token_bytes(32)
        self._entries = {
            self._place(bytes.fromhex(hash_[7:])): (bytes.fromhex(hash_[7:]), tenants[name])
            for hash_, name in owners.items()
        }
        self._operators = {
            self._place(made): made for made in (bytes.fromhex(hash_[7:]) for hash_ in operators)
        }

    @classmethod
    def parse(cls, text: str) -> "Keys":
        """TOML, or JSON of the same shape. Raises SettingError, which never shows a key."""
        try:
            data = msgspec.json.decode(text) if text.lstrip().startswith("{") else tomllib.loads(text)
            file = msgspec.convert(data, _File)
        except (msgspec.MsgspecError, tomllib.TOMLDecodeError) as error:
            raise SettingError(str(error)) from None
        for section, entries in (("keys", file.keys), ("operators", file.operators)):
            for number, (hash_, name) in enumerate(entries.items(), 1):
                where = f"entry {number} of [{section}]"
                if not HASH.fullmatch(hash_):  # it may be the key itself: not to be shown
                    raise SettingError(f"{where} is not 'sha256:' and 64 hexadecimal digits")
                _check(name, where, "a tenant's" if section == "keys" else "an operator's")
                if section == "operators" and hash_ in file.keys:
                    raise SettingError(f"{where} is a tenant's key, too: an operator's is another one")
        for name in file.tenants:
            _check(name, "[tenants]")
        names = {*file.keys.values(), *file.tenants}
        tenants = {
            name: msgspec.structs.replace(file.tenants.get(name, ANYONE), name=name) for name in sorted(names)
        }
        return cls(tenants, file.keys, file.operators)

    def owner(self, key: bytes) -> Tenant | None:
        found = hashlib.sha256(key).digest()
        there, tenant = self._entries.get(self._place(found), (b"", ANYONE))
        return tenant if hmac.compare_digest(there, found) else None

    def operates(self, key: bytes) -> bool:
        """Whether it is an operator's."""
        found = hashlib.sha256(key).digest()
        return hmac.compare_digest(self._operators.get(self._place(found), b""), found)

    def _place(self, found: bytes) -> bytes:
        return hashlib.blake2b(found, key=self._salt, digest_size=16).digest()


def file(setting: str) -> Path | None:
    """Where the setting `keys` says they are, if it is not JSON itself."""
    return Path(setting) if setting and not setting.lstrip().startswith("{") else None


def read(setting: str) -> Keys | None:
    """The keys that the setting names; None where there are none. Raises SettingError, which says where."""
    path = file(setting)
    try:
        return Keys.parse(path.read_text(encoding="utf-8") if path else setting) if setting else None
    except OSError as error:
        raise SettingError(f"keys: {path}: {error.strerror}") from None
    except ValueError as error:
        raise SettingError(f"keys: {path or 'the setting'}: {error}") from None


def _check(name: str, where: str, whose: str = "a tenant's") -> None:
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise SettingError(f"{where}: {whose} name has 1 to 100 printable characters")


def new(name: str) -> tuple[str, str]:
    """A key of a tenant or an operator, and the line by which a key file knows it."""
    _check(name, "a new key", "a tenant's or operator's")
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f'"sha256:{hashlib.sha256(key.encode()).hexdigest()}" = {json.dumps(name)}'

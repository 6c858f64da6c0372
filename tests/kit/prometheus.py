"""Reads Prometheus' text format strictly: what it does not understand is an error."""

import re
from collections import defaultdict

LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')

Series = dict[tuple[tuple[str, str], ...], float]


def parse(text: str) -> dict[str, Series]:
    """Series by name. Each was declared before, and none is there twice."""
    found: dict[str, Series] = defaultdict(dict)
    kinds: dict[str, str] = {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds, f"{name} is declared twice"
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match, line
            name, labels, value = match.groups()
            base = re.sub("_(bucket|sum|count)$", "", name)
            assert name in kinds or kinds.get(base) == "histogram", f"{name} is not declared"
            pairs = LABEL.findall(labels or "")
            assert ",".join(f'{k}="{v}"' for k, v in pairs) == (labels or ""), line
            key = tuple(sorted(pairs))
            assert key not in found[name], f"{line} is there twice"
            found[name][key] = float(value)
    for name, kind in kinds.items():
        if kind == "histogram":
            _check(found, name)
    return dict(found)


def _check(found: dict[str, Series], name: str) -> None:
    """Buckets grow, and the last one holds all."""
    for key, count in found[f"{name}_count"].items():
        own = {
            float(dict(k)["le"]): value
            for k, value in found[f"{name}_bucket"].items()
            if tuple(pair for pair in k if pair[0] != "le") == key
        }
        values = [own[bound] for bound in sorted(own)]
        assert values == sorted(values) and values[-1] == count, name


def total(found: dict[str, Series], name: str, **labels: str) -> float:
    return sum(v for k, v in found.get(name, {}).items() if labels.items() <= dict(k).items())

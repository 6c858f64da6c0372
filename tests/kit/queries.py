"""The queries of the dashboards and the alerts, and the metrics that they name."""

import json
import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))

_ASIDE = re.compile(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)')
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\w|:|\s*\()")
_WORDS = {"and", "or", "unless", "bool"}
_COMPARISON = re.compile(r" (==|!=|<=|>=|<|>) ")


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def drawn() -> dict[str, str]:
    """What the dashboards ask, each by its place, for all models and roles."""
    asked = {}
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                expr = target["expr"].replace("$model", ".*").replace("$role", ".*")
                asked[f"{path.stem}: {panel['title']}: {target['refId']}"] = expr
    return asked


def alerts() -> dict[str, str]:
    """What the alerts compare, by name and number: the same without leaving out what is well."""
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    return {
        f"alert {number}: {rule['alert']}": _COMPARISON.sub(r" \1 bool ", rule["expr"])
        for number, rule in enumerate(rules)
    }


def names(query: str) -> set[str]:
    """The metrics in it."""
    return set(_NAME.findall(_ASIDE.sub(" ", query))) - _WORDS

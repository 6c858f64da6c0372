"""Dashboards and alerts ask for metrics that there are, and docs/operations.md knows each alert."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from millrace import exposed
from millrace import messages as m
from millrace.metrics import text
from millrace.subjects import Role
from tests.kit import nats_exporter
from tests.kit.prometheus import parse
from tests.kit.queries import DASHBOARDS, RULES, alerts, drawn, names, panels

ROOT = Path(__file__).parents[2]
QUERIES = {**drawn(), **alerts()}


def told() -> set[str]:
    """Every name that processes of each role tell, once all of it has happened."""
    counts = dict.fromkeys([*exposed.COUNTED, *(f"{prefix}x" for prefix in exposed.GROUPED)], 1)
    spreads = {key: m.Spread(1.0, [1] * (len(said[2]) + 1)) for key, said in exposed.SPREADS.items()}
    tallies = [m.Tallied("demo", dict.fromkeys(exposed.TALLIED, 1), spreads)]
    gauges = {"cpu_s": 1.0, "rss": 1.0}
    heres = [
        m.Here(role, role, 1, "ready", model="demo", counts=counts, gauges=gauges, tallies=tallies)
        for role in Role
    ]
    return {*parse(text(exposed.families(heres, {"messages": 1, "bytes": 1})).decode()), "up"}


@pytest.mark.parametrize("place", QUERIES)
def test_every_metric_that_is_asked_for_is_told(place: str) -> None:
    asked = names(QUERIES[place])

    assert asked
    assert asked - told() - nats_exporter.NAMES == set()


def test_names_are_found_in_a_query() -> None:
    """The check above can fail."""
    query = 'sum by (le, x) (rate(vllm:a_bucket{b="c d"}[5m])) / e > bool 3 or up{job="millrace"} * f_total'

    assert names(query) == {"vllm:a_bucket", "e", "up", "f_total"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    """Panels have ids of their own, do not overlap, and ask the provisioned data source."""
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    uids = {source["uid"] for source in sources["datasources"]}
    found = panels(path)
    taken: dict[tuple[int, int], int] = {}
    for panel in found:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on another panel"
                taken[x, y] = panel["id"]

    assert len({panel["id"] for panel in found}) == len(found)
    assert max(x for x, _ in taken) < 24
    assert {target["datasource"]["uid"] for panel in found for target in panel["targets"]} <= uids


def test_the_runbook_has_every_alert_and_no_other() -> None:
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    named = {rule["alert"] for group in groups for rule in group["rules"]}
    headings = re.findall(
        r"^\*\*((?:Millrace|Nats)\w+)\.\*\*", (ROOT / "docs/operations.md").read_text(), re.M
    )

    assert sorted(named) == sorted(headings)

"""The Helm chart, rendered and held against Kubernetes' own schemas."""

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from millrace import settings
from tests.kit.helm import render

HELM = Path(__file__).parents[2] / "deploy" / "helm"
SETS: dict[str, list[Path]] = {"one node": [], "cluster": [HELM / "cluster.yaml"]}
ROLES = {"gateway", "tokenizer", "engine", "detokenizer"}
VERSION = "1.30"


def documents(which: str, kind: str = "") -> list[dict[str, Any]]:
    return [each for each in render(HELM / "millrace", *SETS[which]) if kind in ("", each["kind"])]


def valid(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("which", SETS)
def test_everything_is_what_kubernetes_takes(which: str) -> None:
    """Each document fits its schema, and none has a field that the schema does not know."""
    checked = [each for each in documents(which) if each["kind"] != "ScaledObject"]  # KEDA's own kind
    for each in checked:
        valid(each)

    assert {
        each["metadata"]["labels"]["app.kubernetes.io/component"]
        for each in checked
        if each["kind"] == "Deployment"
    } == ROLES


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_field_that_kubernetes_does_not_know_is_noticed() -> None:
    """The check above can fail."""
    wrong = copy.deepcopy(documents("one node", "Deployment")[0])
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}

    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        valid(wrong)


@pytest.mark.parametrize("which", SETS)
def test_what_a_pod_is_told_is_a_setting_of_its_role(which: str) -> None:
    """An unknown MILLRACE_ variable would keep the process from starting; service links are off for that."""
    for each in documents(which, "Deployment"):
        role = each["metadata"]["labels"]["app.kubernetes.io/component"]
        pod = each["spec"]["template"]["spec"]
        given = {entry["name"]: entry.get("value", "") for entry in pod["containers"][0]["env"]}
        own = {name: value for name, value in given.items() if name.startswith("MILLRACE_")}

        assert pod["enableServiceLinks"] is False
        assert {name.removeprefix("MILLRACE_").lower() for name in own} <= set(
            settings.ROLES[role].__struct_fields__
        )
        assert own["MILLRACE_NATS"] == f"nats://{role}:$(NATS_PASSWORD)@nats:4222"


def test_a_cluster_keeps_one_of_each_role_and_scales_its_engines() -> None:
    """By disruption budgets, and by KEDA on the queue's durable consumer: then it alone says how many."""
    budgets = {each["metadata"]["name"] for each in documents("cluster", "PodDisruptionBudget")}
    (scaled,) = documents("cluster", "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    engine = next(
        each for each in documents("cluster", "Deployment") if each["metadata"]["name"] == "mill-engine"
    )

    assert budgets == {f"mill-{role}" for role in ROLES}
    assert trigger["type"] == "nats-jetstream"
    assert (trigger["metadata"]["stream"], trigger["metadata"]["consumer"]) == ("JOBS", "demo")
    assert scaled["spec"]["scaleTargetRef"]["name"] == engine["metadata"]["name"]
    assert "replicas" not in engine["spec"]


def test_nobody_but_the_gateway_is_reached() -> None:
    """Every role has a policy; only the gateway's lets anything in."""
    reached = {
        each["metadata"]["name"] for each in documents("one node", "NetworkPolicy") if each["spec"]["ingress"]
    }

    assert len(documents("one node", "NetworkPolicy")) == len(ROLES)
    assert reached == {"mill-gateway"}

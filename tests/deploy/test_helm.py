"""deploy/helm/meter-proxy: linted and rendered by Helm's own library."""

from pathlib import Path
from typing import Any

import helm_python
import pytest

from meter_proxy import __version__
from tests.deploy import manifests
from tests.support.proc import REPOSITORY

CHART = REPOSITORY / "deploy" / "helm" / "meter-proxy"
SINGLE = {
    "replicas": 1,
    "config": {"redis": {"url": "embedded"}, "limits": {"drain_timeout": "300s"}},
    "drain": {"timeoutSeconds": 300},
    "podDisruptionBudget": {"enabled": True, "maxUnavailable": 1},
}
EVERYTHING = {
    "image": {"repository": "registry.example.com/meter-proxy", "tag": "1", "pullPolicy": "Always"},
    "imagePullSecrets": ["pull"],
    "existingSecret": "other",
    "autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 9},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}},
    "books": {"size": "100Gi", "storageClassName": "fast"},
    "networkPolicy": {"enabled": True, "backendPorts": [8443], "redisPorts": []},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "llm", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}
GOOD: dict[str, dict[str, Any]] = {"defaults": {}, "one pod": SINGLE, "everything": EVERYTHING}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"replicaCount": 3}, "additional properties 'replicaCount' not allowed"),
    "type": ({"replicas": "three"}, "at '/replicas': got string, want integer"),
    "no upstream": ({"config": {"upstreams": {"backend": None}}}, "at '/config/upstreams': minProperties"),
    "the chart's own": ({"config": {"listen": "127.0.0.1:1"}}, "config.listen is the chart's own; take it out"),
    "two times": ({"drain": {"timeoutSeconds": 30}}, "drain.timeoutSeconds (30) and config.limits.drain_timeout (60s)"),
    "no common store": ({"config": {"redis": {"url": "embedded"}}}, "several pods need a common store"),
}


def rendered(values: dict[str, Any], release: str = "demo") -> list[manifests.Manifest]:
    """The manifests of an installation with these values."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values, name=release, namespace="prod")
    return manifests.parsed("\n---\n".join(text for name, text in sorted(files.items()) if name.endswith(".yaml")))


def test_lint_finds_nothing() -> None:
    """`helm lint --strict`; an icon is a matter of taste."""
    report = helm_python.lint(CHART, strict=True)
    assert not report["errors"]
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


def test_the_chart_is_of_this_version() -> None:
    """The image that it starts by default is the one that this tree makes."""
    with helm_python.Chart.load(CHART) as chart:
        assert (chart.version, chart.metadata["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize("values", GOOD.values(), ids=GOOD.keys())
def test_releases_are_good(values: dict[str, Any], tmp_path: Path) -> None:
    """Valid, configured well, safe, patient, and consistent."""
    made = rendered(values)
    manifests.assert_valid(made)
    manifests.assert_pods_are_safe(made)
    manifests.assert_selectors_meet_the_pods(made)
    manifests.assert_grace_is_enough(made, manifests.assert_configuration_is_good(made, tmp_path))
    is_everything = values is EVERYTHING
    kinds = {manifest["kind"] for manifest in made}
    assert ({"HorizontalPodAutoscaler", "ServiceMonitor"} <= kinds) == is_everything
    for manifest in made:
        assert manifest["metadata"]["name"].startswith("demo-meter-proxy")


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD.keys())
def test_bad_values_are_refused_with_the_reason(values: dict[str, Any], message: str) -> None:
    """Before anything is installed, by the schema or by the templates."""
    with pytest.raises(helm_python.HelmError) as refused:
        rendered(values)
    assert message in str(refused.value)

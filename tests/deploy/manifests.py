"""Kubernetes manifests, however they were made: valid for Kubernetes, good configuration, safe, and patient."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from meter_proxy.config.load import check, load_config
from meter_proxy.workers.supervisor import KILL_AFTER_S

VERSIONS = ("1.27", "1.37")  # the oldest that we promise, and the newest that there are schemas of
WITHOUT_SCHEMA = {"ServiceMonitor"}  # a custom resource of the Prometheus Operator
SECRETS = {"ADMIN_TOKEN": "token", "REDIS_URL": "redis://redis:6379/0", "API_KEY": "sk-first", "UPSTREAM_KEY": "sk-up"}

Manifest = Mapping[str, Any]


def parsed(text: str) -> list[Manifest]:
    """The documents of a YAML stream, the empty ones left out."""
    return [document for document in yaml.safe_load_all(text) if document]


def the(kind: str, manifests: list[Manifest], name: str = "") -> Manifest:
    """The one manifest of a kind (whose name ends with `name`)."""
    found = [one for one in manifests if one["kind"] == kind and one["metadata"]["name"].endswith(name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def assert_valid(manifests: list[Manifest]) -> None:
    """Kubernetes' own schemas accept each, unknown members are errors; what could not be looked at is known."""
    for manifest in manifests:
        if manifest["kind"] not in WITHOUT_SCHEMA:
            for version in VERSIONS:
                kubernetes_validate.validate(manifest, version, strict=True)


def assert_configuration_is_good(manifests: list[Manifest], directory: Path) -> float:
    """check-config finds nothing in the ConfigMap; its drain timeout in seconds."""
    path = directory / "meter-proxy.yaml"
    path.write_text(the("ConfigMap", manifests)["data"]["meter-proxy.yaml"])
    assert check(path, SECRETS) == []
    config = load_config(path, SECRETS)
    pod = the("StatefulSet", manifests)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "http": config.listen.port,
        "admin": config.admin.port,
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["books"] == str(config.state_dir)
    assert container["args"] == ["serve", f"{mounts['config']}/meter-proxy.yaml"]
    assert not any("subPath" in mount for mount in container["volumeMounts"])  # such a file would never change
    return config.limits.drain_timeout_s


def assert_pods_are_safe(manifests: list[Manifest]) -> None:
    """Every pod meets Kubernetes' "restricted" pod security standard, and its root file system is read-only."""
    pods = [one["spec"]["template"]["spec"] for one in manifests if one["kind"] in ("StatefulSet", "Deployment")]
    assert pods
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def assert_grace_is_enough(manifests: list[Manifest], drain_s: float) -> None:
    """The pod may live until streams have ended, or were cut and billed."""
    pod = the("StatefulSet", manifests)["spec"]["template"]["spec"]
    command, pause_s = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] >= float(pause_s) + drain_s + KILL_AFTER_S


def assert_selectors_meet_the_pods(manifests: list[Manifest]) -> None:
    """Services, budget, policy, monitor and autoscaler mean the pods that there are."""
    stateful = the("StatefulSet", manifests)
    labels = stateful["spec"]["template"]["metadata"]["labels"].items()
    name = stateful["metadata"]["name"]
    assert stateful["spec"]["selector"]["matchLabels"].items() <= labels
    assert the("Service", manifests, name)["spec"]["selector"].items() <= labels
    pods_service = the("Service", manifests, "-pods")
    assert pods_service["spec"]["selector"].items() <= labels
    assert pods_service["metadata"]["name"] == stateful["spec"]["serviceName"]
    assert the("PodDisruptionBudget", manifests)["spec"]["selector"]["matchLabels"].items() <= labels
    assert the("NetworkPolicy", manifests)["spec"]["podSelector"]["matchLabels"].items() <= labels
    for manifest in manifests:
        if manifest["kind"] == "ServiceMonitor":
            selector = manifest["spec"]["selector"]["matchLabels"].items()
            assert selector <= pods_service["metadata"]["labels"].items()
            assert not selector <= the("Service", manifests, name)["metadata"]["labels"].items()
        if manifest["kind"] == "HorizontalPodAutoscaler":
            target = manifest["spec"]["scaleTargetRef"]
            assert (target["kind"], target["name"]) == ("StatefulSet", name)
            assert "replicas" not in stateful["spec"]

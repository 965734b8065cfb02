"""deploy/kustomize: what `kubectl kustomize` makes of the base and of each overlay."""

import subprocess
from pathlib import Path

import kubernetes_validate
import pytest

from tests.deploy import manifests
from tests.support.proc import REPOSITORY
from tests.support.servers import wheels_program

KUSTOMIZE = REPOSITORY / "deploy" / "kustomize"
ALWAYS = {"ConfigMap", "StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy"}
KINDS = {
    "base": ALWAYS,
    "overlays/demo": {*ALWAYS, "Namespace", "Deployment"},
    "overlays/production": {*ALWAYS, "HorizontalPodAutoscaler", "ServiceMonitor"},
}


def built(directory: str) -> list[manifests.Manifest]:
    """The manifests of a kustomization."""
    command = [wheels_program("kubectl"), "kustomize", str(KUSTOMIZE / directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # a deprecated field
    return manifests.parsed(done.stdout)


def test_every_kustomization_is_tested() -> None:
    """A new overlay needs a place in KINDS; a component, an overlay that takes it."""
    overlays = {str(path.parent.relative_to(KUSTOMIZE)) for path in KUSTOMIZE.glob("overlays/*/kustomization.yaml")}
    assert {"base", *overlays} == set(KINDS)
    taken = "".join(path.read_text() for path in KUSTOMIZE.glob("overlays/*/kustomization.yaml"))
    for component in KUSTOMIZE.glob("components/*"):
        assert f"../../components/{component.name}\n" in taken


@pytest.mark.parametrize("directory", KINDS)
def test_overlays_are_good(directory: str, tmp_path: Path) -> None:
    """Valid, configured well, safe, patient, and consistent."""
    made = built(directory)
    assert {manifest["kind"] for manifest in made} == KINDS[directory]
    manifests.assert_valid(made)
    manifests.assert_pods_are_safe(made)
    manifests.assert_selectors_meet_the_pods(made)
    manifests.assert_grace_is_enough(made, manifests.assert_configuration_is_good(made, tmp_path))
    assert not [manifest for manifest in made if manifest["kind"] == "Secret"]  # made by people, kept nowhere here


def test_several_pods_share_a_store_and_the_demo_is_alone() -> None:
    """The embedded store is for one pod."""
    for directory in KINDS:
        made = built(directory)
        replicas = manifests.the("StatefulSet", made)["spec"].get("replicas", "many")
        is_embedded = "url: embedded" in manifests.the("ConfigMap", made)["data"]["meter-proxy.yaml"]
        assert is_embedded == (replicas == 1)


def test_the_validator_would_object() -> None:
    """An unknown member is an error, or the tests above mean nothing."""
    service = manifests.the("Service", built("base"), "meter-proxy")
    wrong = {**service, "spec": {**service["spec"], "port": 80}}
    with pytest.raises(kubernetes_validate.ValidationError):
        manifests.assert_valid([wrong])

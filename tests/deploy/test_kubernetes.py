"""The Kubernetes manifests: complete, and consistent with each other and with the program."""

from typing import Any

import pytest
import yaml

from tamiyo.streams.stages.registry import STAGES
from tests.deploy.support import PINNED, ROOT, command_problem, environment_problems, load_yaml, stages_of

FOLDER = ROOT / "deploy" / "kubernetes"


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    names = load_yaml("deploy/kubernetes/kustomization.yaml")["resources"]
    return [document for name in names for document in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def workloads(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] in {"Deployment", "Job"}}


@pytest.fixture(scope="module")
def deployments(workloads: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in workloads.items() if each["kind"] == "Deployment"}


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = workload["spec"]["template"]["spec"]
    return found


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(workload)["containers"]
    assert isinstance(only, dict)
    return only


def test_every_file_is_applied() -> None:
    listed = set(load_yaml("deploy/kubernetes/kustomization.yaml")["resources"])
    assert listed == {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}


def test_every_stage_has_its_deployment(deployments: dict[str, dict[str, Any]]) -> None:
    arguments = {name: container(each)["args"] for name, each in deployments.items()}
    assert {name: stages_of(each) for name, each in arguments.items() if each[0] == "worker"} == {
        f"tamiyo-{stage}": [stage] for stage in STAGES
    }
    assert arguments["tamiyo-learner"] == ["learner"]


def test_every_command_is_valid(workloads: dict[str, dict[str, Any]]) -> None:
    problems = {name: command_problem(container(each)["args"]) for name, each in workloads.items()}
    assert {name: problem for name, problem in problems.items() if problem} == {}


def test_there_is_never_a_second_learner(deployments: dict[str, dict[str, Any]]) -> None:
    assert deployments["tamiyo-learner"]["spec"]["replicas"] == 1
    assert deployments["tamiyo-learner"]["spec"]["strategy"] == {"type": "Recreate"}


def test_every_variable_is_read_by_the_program(manifests: list[dict[str, Any]]) -> None:
    (config,) = [each for each in manifests if each["kind"] == "ConfigMap"]
    assert all(isinstance(value, str) for value in config["data"].values())
    assert environment_problems(config["data"]) == []


def test_every_pod_has_the_configuration_and_no_secret_is_in_the_files(
    manifests: list[dict[str, Any]], workloads: dict[str, dict[str, Any]]
) -> None:
    assert not [each for each in manifests if each["kind"] == "Secret"]
    for workload in workloads.values():
        sources = container(workload)["envFrom"]
        assert {"configMapRef": {"name": "tamiyo"}} in sources
        assert {"secretRef": {"name": "tamiyo-kafka", "optional": True}} in sources


def test_images_are_pinned(workloads: dict[str, dict[str, Any]]) -> None:
    assert all(PINNED.match(container(each)["image"]) for each in workloads.values())


def test_pods_run_with_the_least_rights(workloads: dict[str, dict[str, Any]]) -> None:
    for name, workload in workloads.items():
        context = pod(workload)["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod(workload)["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod(workload).keys(), name
        assert not any("hostPath" in volume for volume in pod(workload)["volumes"]), name
        assert container(workload)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name


def test_probes_match_the_programs_endpoints(
    manifests: list[dict[str, Any]], deployments: dict[str, dict[str, Any]]
) -> None:
    (config,) = [each for each in manifests if each["kind"] == "ConfigMap"]
    port = int(config["data"]["TAMIYO_WORKER_HTTP_PORT"])
    for name, deployment in deployments.items():
        each = container(deployment)
        assert each["ports"] == [{"name": "http", "containerPort": port}], name
        assert each["startupProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}, name
        assert each["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}, name
        assert each["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}, name
        assert each["resources"]["limits"]["memory"], name


def test_selectors_match_their_pods(manifests: list[dict[str, Any]], deployments: dict[str, dict[str, Any]]) -> None:
    (service,) = [each for each in manifests if each["kind"] == "Service"]
    (policy,) = [each for each in manifests if each["kind"] == "NetworkPolicy"]
    seen = set()
    for deployment in deployments.values():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        own = deployment["spec"]["selector"]["matchLabels"]
        assert own == labels
        seen.add(tuple(sorted(own.items())))
        assert service["spec"]["selector"].items() <= labels.items()
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert len(seen) == len(deployments)  # no deployment selects another one's pods


def test_mounts_have_volumes_and_claims_exist(
    manifests: list[dict[str, Any]], workloads: dict[str, dict[str, Any]]
) -> None:
    claims = {each["metadata"]["name"] for each in manifests if each["kind"] == "PersistentVolumeClaim"}
    (config,) = [each for each in manifests if each["kind"] == "ConfigMap"]
    store = config["data"]["TAMIYO_STORE_URL"].removeprefix("file://")
    for name, workload in workloads.items():
        volumes = {volume["name"]: volume for volume in pod(workload)["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container(workload)["volumeMounts"]}
        assert mounts.keys() == volumes.keys(), name
        used = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert used <= claims, name
        needs = name.removeprefix("tamiyo-") in {"decisions", "kernels", "learner"}
        assert (mounts.get("stores") == store) is needs, name

"""The Kubernetes manifests: valid, complete, and consistent with each other and with the program.

`kubectl kustomize` builds the overlays, without a cluster; without it, the tests of what it builds are skipped.
"""

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import certifi
import kubernetes_validate
import pytest
import yaml
from scripts.manifests import COMPONENTS, MANIFESTS

from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.streams.admin.acls import ROLES
from tamiyo.streams.stages.registry import STAGES
from tests.deploy.support import (
    PINNED,
    ROOT,
    command_problem,
    environment_problems,
    expression_problems,
    stages_of,
    stop_seconds,
)

FOLDER = ROOT / "deploy" / "kubernetes"
OLDEST = "1.31"
"""The Kubernetes release whose schemas the manifests must fit."""
CUSTOM = {"ScaledObject", "KafkaUser", "PodMonitor", "PrometheusRule"}
VARIANTS = ("demo", "production", "registry")

Manifest = dict[str, Any]


def read(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Manifest]]:
    """Return the manifests of each overlay, and of one with a registry and without users."""
    if shutil.which("kubectl") is None or "Components" in kustomize(FOLDER / "overlays" / "production").stderr:
        pytest.skip("no kubectl that can build kustomize components (1.21 or later)")
    copy = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(FOLDER, copy)
    overlay = copy / "overlays" / "registry"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        "namespace: tamiyo\nresources: [../../base]\n"
        "components: [../../components/registry, ../../components/plaintext]\n"
    )
    done = {name: kustomize(copy / "overlays" / name) for name in VARIANTS}
    assert {name: each.stderr for name, each in done.items() if each.returncode} == {}
    return {name: read(each.stdout) for name, each in done.items()}


def kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module", params=VARIANTS)
def manifests(request: pytest.FixtureRequest, built: dict[str, list[Manifest]]) -> list[Manifest]:
    return built[request.param]


@pytest.fixture(scope="module")
def production(built: dict[str, list[Manifest]]) -> list[Manifest]:
    return built["production"]


def of_kind(manifests: list[Manifest], *kinds: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] in kinds}


def workloads(manifests: list[Manifest]) -> dict[str, Manifest]:
    return of_kind(manifests, "Deployment", "Job", "CronJob")


def template(workload: Manifest) -> Manifest:
    spec = workload["spec"]
    found: Manifest = (spec["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else spec)["template"]
    return found


def pod(workload: Manifest) -> Manifest:
    found: Manifest = template(workload)["spec"]
    return found


def container(workload: Manifest) -> Manifest:
    (only,) = pod(workload)["containers"]
    assert isinstance(only, dict)
    return only


def config(manifests: list[Manifest]) -> dict[str, str]:
    (found,) = of_kind(manifests, "ConfigMap").values()
    assert all(isinstance(value, str) for value in found["data"].values())
    return dict(found["data"])


def environment(manifests: list[Manifest], workload: Manifest) -> dict[str, str]:
    """Return a container's variables; a secret's value is `secret`."""
    own = {each["name"]: each.get("value", "secret") for each in container(workload).get("env", [])}
    return {**config(manifests), **own}


def files() -> list[Path]:
    return [path for path in sorted(FOLDER.rglob("*.yaml")) if path.name != "kustomization.yaml"]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_every_file_fits_the_schemas_of_kubernetes(path: Path) -> None:
    for document in read(path.read_text(encoding="utf-8")):
        if document["kind"] not in CUSTOM:
            if path.name == "deployment.yaml":  # a patch: the selector and the labels are those of its targets
                document["spec"]["selector"] = {}
            kubernetes_validate.validate(document, OLDEST, strict=True)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("kustomization.yaml")), ids=lambda path: path.parent.name)
def test_what_a_kustomization_names_exists_and_every_file_is_named(path: Path) -> None:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    named = [*found.get("resources", []), *found.get("components", [])]
    named += [patch["path"] for patch in found.get("patches", []) if "path" in patch]
    assert [name for name in named if not (path.parent / name).exists()] == []
    assert {each.name for each in path.parent.glob("*.yaml")} - {"kustomization.yaml"} <= set(named)


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_follows_from_other_files_is_current(name: str) -> None:
    text = (COMPONENTS / name).read_text(encoding="utf-8")
    assert text == MANIFESTS[name](), f"{name} is out of date: run python -m scripts.manifests"


def test_prometheus_and_its_operator_have_the_same_alerts() -> None:
    (rule,) = read((COMPONENTS / "monitoring" / "prometheusrule.yaml").read_text(encoding="utf-8"))
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))


def test_what_is_built_fits_the_schemas_of_kubernetes(manifests: list[Manifest]) -> None:
    for each in manifests:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, OLDEST, strict=True)


def test_a_wrong_field_is_found(production: list[Manifest]) -> None:
    wrong = of_kind(production, "PodDisruptionBudget")["tamiyo-intake"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**wrong, "spec": {**wrong["spec"], "maxUnavailible": 1}}, OLDEST, strict=True)


def test_every_stage_and_the_learner_has_its_deployment(manifests: list[Manifest]) -> None:
    arguments = {name: container(each)["args"] for name, each in of_kind(manifests, "Deployment").items()}
    assert {name: stages_of(each) for name, each in arguments.items() if each[0] == "worker"} == {
        f"tamiyo-{stage}": [stage] for stage in STAGES
    }
    assert arguments["tamiyo-learner"][0] == "learner"
    # Kubernetes restarts them, and counts how often.
    assert all(each[-1] == "--no-supervise" for each in arguments.values())


def test_every_command_is_valid(manifests: list[Manifest]) -> None:
    problems = {name: command_problem(container(each)["args"]) for name, each in workloads(manifests).items()}
    assert {name: problem for name, problem in problems.items() if problem} == {}


def test_old_runs_are_forgotten_regularly(manifests: list[Manifest]) -> None:
    forget = of_kind(manifests, "CronJob")["tamiyo-forget"]
    assert container(forget)["args"] == ["runs", "forget", "--older-than", "30d", "--yes"]
    assert forget["spec"]["concurrencyPolicy"] == "Forbid"


def test_there_is_never_a_second_learner(manifests: list[Manifest]) -> None:
    learner = of_kind(manifests, "Deployment")["tamiyo-learner"]
    assert learner["spec"]["replicas"] == 1
    assert learner["spec"]["strategy"] == {"type": "Recreate"}


def test_an_upgrade_replaces_all_workers_of_a_stage_at_once(manifests: list[Manifest]) -> None:
    for name, each in of_kind(manifests, "Deployment").items():
        assert each["spec"]["strategy"] == {"type": "Recreate"}, name


def test_every_setting_is_valid(manifests: list[Manifest]) -> None:
    for name, workload in workloads(manifests).items():
        variables = environment(manifests, workload)
        kafka = {each: value for each, value in variables.items() if each.startswith("TAMIYO_KAFKA_")}
        assert environment_problems({each: variables[each] for each in variables.keys() - kafka.keys()}) == [], name
        fields = {each.removeprefix("TAMIYO_KAFKA_").lower(): value for each, value in kafka.items()}
        assert fields.keys() <= KafkaSettings.model_fields.keys()
        if "ssl_ca_file" in fields:
            mounts = {each["mountPath"] for each in container(workload)["volumeMounts"]}
            assert str(Path(fields["ssl_ca_file"]).parent) in mounts, name
            fields["ssl_ca_file"] = certifi.where()
        KafkaSettings(**fields)  # together, since they need each other


def test_pods_are_killed_only_after_they_had_time_to_stop(manifests: list[Manifest]) -> None:
    for name, each in of_kind(manifests, "Deployment").items():
        needed_s = stop_seconds(container(each)["args"], environment(manifests, each))
        assert pod(each)["terminationGracePeriodSeconds"] >= needed_s, name


def test_every_pod_has_the_configuration_and_no_secret_is_in_the_files(manifests: list[Manifest]) -> None:
    assert not of_kind(manifests, "Secret")
    for name, workload in workloads(manifests).items():
        sources = container(workload)["envFrom"]
        assert {"configMapRef": {"name": "tamiyo"}} in sources, name
        assert {"secretRef": {"name": "tamiyo-registry", "optional": True}} in sources, name


def test_every_process_is_a_user_with_the_permissions_of_its_role(production: list[Manifest]) -> None:
    users = of_kind(production, "KafkaUser")
    assert users.keys() == {f"tamiyo-{role}" for role in ROLES}
    for name, workload in workloads(production).items():
        component = template(workload)["metadata"]["labels"]["app.kubernetes.io/component"]
        user = f"tamiyo-{component if component in ROLES else 'operator'}"
        assert environment(production, workload)["TAMIYO_KAFKA_SASL_USERNAME"] == user, name
        secrets = [each["valueFrom"]["secretKeyRef"] for each in container(workload)["env"] if "valueFrom" in each]
        assert secrets == [{"name": user, "key": "password"}], name  # as Strimzi makes it
        assert users[user]["spec"]["authentication"] == {"type": "scram-sha-512"}
    assert config(production)["TAMIYO_KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"
    assert config(production)["TAMIYO_KAFKA_SASL_MECHANISM"] == "SCRAM-SHA-512"


def test_images_are_pinned_to_this_release(manifests: list[Manifest]) -> None:
    release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for name, workload in workloads(manifests).items():
        assert PINNED.match(container(workload)["image"])
        assert container(workload)["image"] == f"esper-tamiyo:{release}", name
    # Its template cannot be changed, so each release has Jobs of its own.
    assert all(name.endswith(f"-{release.replace('.', '-')}") for name in of_kind(manifests, "Job"))
    assert all(each["spec"]["ttlSecondsAfterFinished"] for each in of_kind(manifests, "Job").values())


def test_the_jobs_prepare_the_cluster(built: dict[str, list[Manifest]]) -> None:
    commands = {
        variant: sorted(container(each)["args"][:2] for each in of_kind(manifests, "Job").values())
        for variant, manifests in built.items()
    }
    topics, schemas = ["topics", "create"], ["schemas", "register"]
    assert commands == {"demo": [topics], "production": [topics], "registry": [schemas, topics]}
    assert "TAMIYO_REGISTRY_URL" in config(built["registry"])


@pytest.mark.parametrize(("variant", "replication"), [("production", "3"), ("demo", "1")])
def test_topics_have_three_replicas_outside_the_demo(
    built: dict[str, list[Manifest]], variant: str, replication: str
) -> None:
    (arguments,) = [container(each)["args"] for each in of_kind(built[variant], "Job").values()]
    assert arguments[arguments.index("--replication") + 1] == replication


def test_pods_run_with_the_least_rights(manifests: list[Manifest]) -> None:
    (namespace,) = of_kind(manifests, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, workload in workloads(manifests).items():
        context = pod(workload)["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod(workload)["automountServiceAccountToken"] is False, name
        assert pod(workload)["enableServiceLinks"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod(workload).keys(), name
        assert not any("hostPath" in volume for volume in pod(workload)["volumes"]), name
        assert container(workload)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name


def test_probes_match_the_programs_endpoints(manifests: list[Manifest]) -> None:
    port = int(config(manifests)["TAMIYO_WORKER_HTTP_PORT"])
    for name, deployment in of_kind(manifests, "Deployment").items():
        each = container(deployment)
        assert each["ports"] == [{"name": "http", "containerPort": port}], name
        assert each["startupProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}, name
        assert each["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}, name
        assert each["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}, name
        assert each["resources"]["limits"]["memory"], name


def test_selectors_match_their_pods(manifests: list[Manifest]) -> None:
    (service,) = of_kind(manifests, "Service").values()
    (policy,) = of_kind(manifests, "NetworkPolicy").values()
    seen = set()
    for deployment in of_kind(manifests, "Deployment").values():
        labels = template(deployment)["metadata"]["labels"]
        own = deployment["spec"]["selector"]["matchLabels"]
        assert own == labels
        seen.add(tuple(sorted(own.items())))
        assert service["spec"]["selector"].items() <= labels.items()
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert len(seen) == len(of_kind(manifests, "Deployment"))  # no deployment selects another one's pods


def test_every_stage_has_a_disruption_budget_and_the_learner_none(manifests: list[Manifest]) -> None:
    budgets = of_kind(manifests, "PodDisruptionBudget")
    assert budgets.keys() == {f"tamiyo-{stage}" for stage in STAGES}
    deployments = of_kind(manifests, "Deployment")
    for name, each in budgets.items():
        assert each["spec"]["selector"] == deployments[name]["spec"]["selector"]
        assert each["spec"]["maxUnavailable"] == 1


def test_the_workers_of_a_stage_are_spread(manifests: list[Manifest]) -> None:
    for name, deployment in of_kind(manifests, "Deployment").items():
        spread = {each["topologyKey"]: each for each in pod(deployment)["topologySpreadConstraints"]}
        assert spread.keys() == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}, name
        for each in spread.values():
            assert each["matchLabelKeys"] == ["app.kubernetes.io/component"]
            assert each["labelSelector"]["matchLabels"].items() <= template(deployment)["metadata"]["labels"].items()


def test_mounts_have_volumes_and_claims_exist(manifests: list[Manifest]) -> None:
    claims = of_kind(manifests, "PersistentVolumeClaim")
    store = config(manifests)["TAMIYO_STORE_URL"].removeprefix("file://")
    for name, workload in workloads(manifests).items():
        volumes = {volume["name"]: volume for volume in pod(workload)["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container(workload)["volumeMounts"]}
        assert mounts.keys() == volumes.keys(), name
        used = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert used <= claims.keys(), name
        needs = name.removeprefix("tamiyo-") in {"decisions", "kernels", "learner"}
        assert (mounts.get("stores") == store) is needs, name


def test_the_autoscaler_follows_the_lag_of_each_stage(production: list[Manifest]) -> None:
    scaled = of_kind(production, "ScaledObject")
    assert scaled.keys() == {f"tamiyo-{stage}" for stage in STAGES}  # never the learner
    deployments = of_kind(production, "Deployment")
    (topics,) = [container(each)["args"] for each in of_kind(production, "Job").values()]
    partitions = int(topics[topics.index("--partitions") + 1])
    (namespace,) = of_kind(production, "Namespace")
    for name, each in scaled.items():
        assert each["apiVersion"] == "keda.sh/v1alpha1"
        assert each["spec"]["scaleTargetRef"] == {"name": name}
        # Applying the manifests again would otherwise set the autoscaler's number back.
        assert "replicas" not in deployments[name]["spec"]
        assert 1 <= each["spec"]["minReplicaCount"] <= each["spec"]["maxReplicaCount"] <= partitions
        (trigger,) = each["spec"]["triggers"]
        assert trigger["type"] == "prometheus"
        assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        query = trigger["metadata"]["query"]
        assert expression_problems(query) == []
        stage = name.removeprefix("tamiyo-")
        assert query == f'sum(tamiyo_stage_lag_records{{namespace="{namespace}",stage="{stage}"}})'


def test_every_process_is_scraped_with_the_labels_of_the_alerts(production: list[Manifest]) -> None:
    monitors = of_kind(production, "PodMonitor")
    own = monitors["tamiyo"]["spec"]
    (endpoint,) = own["podMetricsEndpoints"]
    for deployment in of_kind(production, "Deployment").values():
        labels = template(deployment)["metadata"]["labels"]
        assert own["selector"]["matchLabels"].items() <= labels.items()
        assert labels[own["jobLabel"]] == "tamiyo"  # job="tamiyo"
        assert endpoint["port"] in [port["name"] for port in container(deployment)["ports"]]
    (label,) = endpoint["relabelings"]
    assert label == {
        "sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_component"],
        "targetLabel": "service",
    }
    host = monitors["tamiyo-host"]["spec"]
    assert host["selector"]["matchLabels"][host["jobLabel"]] == "tamiyo-host"
    assert host["namespaceSelector"] == {"any": True}

"""docker-compose.yml against the compose specification's own schema, and against the program it starts.

No container engine is needed: what is named here must exist in the program, whoever runs it.
"""

import json
from importlib.metadata import distribution
from typing import Any

import jsonschema
import pytest

from tamiyo.streams.stages.registry import STAGES
from tests.deploy.support import PINNED, ROOT, command_problem, environment_problems, load_yaml, stages_of, stop_seconds

OURS = "esper-tamiyo"
ONCE = {"topics", "schemas", "train"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = load_yaml("docker-compose.yml")
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


@pytest.fixture(scope="module")
def ours(services: dict[str, Any]) -> dict[str, Any]:
    return {name: service for name, service in services.items() if service["image"].startswith(OURS)}


@pytest.fixture(scope="module")
def commands(ours: dict[str, Any]) -> dict[str, list[str]]:
    return {name: service["command"] for name, service in ours.items() if "entrypoint" not in service}


def validate(compose: dict[str, Any]) -> None:
    # Located, not imported: only the schema file of this package is wanted.
    folder = "check_jsonschema/builtin_schemas/vendor/compose-spec.json"
    schema = json.loads(distribution("check-jsonschema").locate_file(folder).read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema).validate(compose)


def test_fits_the_compose_specification(compose: dict[str, Any]) -> None:
    validate(compose)


def test_the_schema_refuses_a_wrong_file(compose: dict[str, Any]) -> None:
    wrong = {**compose, "services": {"kafka": {"imagge": "apache/kafka:4.3.1"}}}
    with pytest.raises(jsonschema.ValidationError):
        validate(wrong)


def test_every_stage_and_the_learner_has_its_service(commands: dict[str, list[str]]) -> None:
    workers = {name: stages_of(command) for name, command in commands.items() if command[0] == "worker"}
    assert workers == {stage: [stage] for stage in STAGES}
    assert commands["learner"] == ["learner"]


def test_every_command_is_valid(commands: dict[str, list[str]]) -> None:
    assert {name: problem for name, command in commands.items() if (problem := command_problem(command))} == {}


def test_containers_are_killed_only_after_they_had_time_to_stop(
    ours: dict[str, Any], commands: dict[str, list[str]]
) -> None:
    for name in commands.keys() - ONCE:
        grace_s = float(ours[name]["stop_grace_period"].removesuffix("s"))
        assert grace_s >= stop_seconds(commands[name], ours[name].get("environment", {})), name


def test_a_container_stops_in_the_time_of_its_supervisor_or_its_worker() -> None:
    assert stop_seconds(["worker"], {}) == 15 + 2
    assert stop_seconds(["worker"], {"TAMIYO_SUPERVISOR_STOP_TIMEOUT_S": "30"}) == 32
    assert stop_seconds(["worker", "--no-supervise"], {"TAMIYO_WORKER_SHUTDOWN_TIMEOUT_S": "40"}) == 42
    assert stop_seconds(["worker"], {"TAMIYO_SUPERVISOR_ENABLED": "false"}) == 10 + 2


def test_a_wrong_command_is_found() -> None:
    assert command_problem(["worker", "--stagge", "intake"]) is not None
    assert command_problem(["worker", "--stage", "nonsense"]) is not None
    assert command_problem(["nonsense"]) is not None


def test_every_variable_is_read_by_the_program(ours: dict[str, Any]) -> None:
    problems = {name: environment_problems(service.get("environment", {})) for name, service in ours.items()}
    assert {name: found for name, found in problems.items() if found} == {}
    assert environment_problems({"TAMIYO_NONSENSE": "1"})
    assert environment_problems({"TAMIYO_WORKER_HTTP_PORT": "many"})


def test_every_image_is_pinned(services: dict[str, Any]) -> None:
    assert [service["image"] for service in services.values() if not PINNED.match(service["image"])] == []
    assert not PINNED.match("apache/kafka:latest")
    assert not PINNED.match("apache/kafka:4")
    assert not PINNED.match("apache/kafka")


def test_ports_are_bound_to_the_loopback_only(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert [port for port in published if not str(port).startswith("127.0.0.1:")] == []


def test_a_stage_can_be_scaled(ours: dict[str, Any]) -> None:
    for stage in STAGES:
        assert "container_name" not in ours[stage]
        assert "ports" not in ours[stage]


def test_nothing_is_privileged(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert not service.get("privileged"), name
        assert not {"cap_add", "devices", "network_mode", "pid", "ipc", "userns_mode"} & service.keys(), name
        assert str(service.get("user", "")).split(":")[0] not in {"0", "root"}, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not any("docker.sock" in str(volume) for volume in service.get("volumes", [])), name


def test_containers_can_write_only_where_they_must(ours: dict[str, Any]) -> None:
    for name, service in ours.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["tmpfs"] == ["/tmp"], name


def test_every_long_running_service_restarts_and_is_checked(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if name in ONCE:
            assert service["restart"].startswith("on-failure"), name
            assert service["healthcheck"] == {"disable": True}, name
        else:
            assert service["restart"] == "unless-stopped", name
            # Tamiyo's services use the image's HEALTHCHECK; see test_image.
            assert "healthcheck" in service or service["image"].startswith(OURS), name


def test_dependencies_exist(compose: dict[str, Any], services: dict[str, Any]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, name
            finishes = how["condition"] == "service_completed_successfully"
            assert finishes == (other in ONCE), f"{name} waits for {other}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"], volume
        if "build" in service:
            assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_services_that_need_the_stores_mount_them(ours: dict[str, Any]) -> None:
    for name in ("decisions", "kernels", "learner", "train"):
        path = ours[name]["environment"]["TAMIYO_STORE_URL"].removeprefix("file://")
        assert f"stores:{path}" in ours[name]["volumes"]


def test_kafka_runs_in_kraft_mode_and_advertises_its_listeners(services: dict[str, Any]) -> None:
    kafka = services["kafka"]["environment"]
    assert kafka["KAFKA_PROCESS_ROLES"] == "broker,controller"
    advertised = dict(each.split("://") for each in kafka["KAFKA_ADVERTISED_LISTENERS"].split(","))
    assert advertised["INTERNAL"] == services["intake"]["environment"]["TAMIYO_KAFKA_BOOTSTRAP_SERVERS"]
    assert f"{advertised['HOST']}:9092" in services["kafka"]["ports"]
    assert any(volume.endswith(kafka["KAFKA_LOG_DIRS"]) for volume in services["kafka"]["volumes"])

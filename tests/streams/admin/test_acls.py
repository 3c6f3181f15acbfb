"""Permissions as Strimzi's resources."""

import json
from itertools import groupby
from typing import Any

import pytest
import yaml

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.topics import CATALOGUE
from tamiyo.streams import cli
from tamiyo.streams.admin.acls import ROLES, Grant, grants, kafka_user

# Of the KafkaUser resource; https://strimzi.io/docs/operators/latest/configuring has them.
OPERATIONS = {
    "Read", "Write", "Create", "Delete", "Alter", "Describe", "ClusterAction", "AlterConfigs", "DescribeConfigs",
    "IdempotentWrite", "All",
}  # fmt: skip


def granted(user: dict[str, Any]) -> set[Grant]:
    """Return the permissions of a KafkaUser."""
    names = {"".join(word.capitalize() for word in name.split("_")): name for name in ("DESCRIBE_CONFIGS",)}
    return {
        Grant(acl["resource"]["type"], acl["resource"]["name"], names.get(operation, operation.upper()))
        for acl in user["spec"]["authorization"]["acls"]
        for operation in acl["operations"]
    }


@pytest.mark.parametrize("role", ROLES)
def test_a_user_has_the_permissions_of_its_role_and_no_others(role: str) -> None:
    wanted = grants(role, TopicNames(prefix="team-a."))
    user = kafka_user(f"tamiyo-{role}", "events", wanted)
    assert user["apiVersion"] == "kafka.strimzi.io/v1"
    assert user["kind"] == "KafkaUser"
    assert user["metadata"] == {"name": f"tamiyo-{role}", "labels": {"strimzi.io/cluster": "events"}}
    assert user["spec"].keys() == {"authentication", "authorization"}
    assert user["spec"]["authorization"]["type"] == "simple"
    acls = user["spec"]["authorization"]["acls"]
    for acl in acls:
        assert acl.keys() == {"resource", "operations"}
        assert acl["resource"].keys() == {"type", "name", "patternType"}
        assert acl["resource"]["type"] in {"topic", "group"}
        assert acl["resource"]["patternType"] == "literal"
        assert set(acl["operations"]) <= OPERATIONS
    places = [(acl["resource"]["type"], acl["resource"]["name"]) for acl in acls]
    assert len(places) == len(set(places))
    assert granted(user) == set(wanted)


@pytest.mark.parametrize("name", ["", "Tamiyo", "tamiyo_intake", "-tamiyo", "tamiyo-", "a b", "a\nb", "x" * 254])
def test_a_name_that_kubernetes_refuses_is_an_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be named"):
        kafka_user(name, "events", [])


def test_the_command_prints_a_document_for_each_role(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", "team-a.")

    def printed(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["tamiyo", "topics", "acls", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    text = printed("--format", "strimzi", "--principal", "User:team-a-{role}", "--cluster", "events")
    users = list(yaml.safe_load_all(text))
    assert [user["metadata"]["name"] for user in users] == [f"team-a-{role}" for role in ROLES]
    assert {user["metadata"]["labels"]["strimzi.io/cluster"] for user in users} == {"events"}
    # The same permissions as in the other formats.
    rows = json.loads(printed("--format", "json"))
    for (role, own), user in zip(groupby(rows, lambda row: row["role"]), users, strict=True):
        assert granted(user) == {Grant(row["kind"], row["name"], row["operation"]) for row in own}, role


def test_an_operator_may_write_compacted_topics_and_grow_all_of_them() -> None:
    """Orders, tombstones of runs, and more partitions."""
    found = {(grant.operation, grant.name) for grant in grants("operator", TopicNames(prefix=""))}
    assert {("WRITE", topic.name) for topic in CATALOGUE if topic.cleanup == "compact"} <= found
    assert {("ALTER", topic.name) for topic in CATALOGUE} <= found
    assert not any(
        operation == "ALTER"
        for role in ROLES
        if role != "operator"
        for operation in [grant.operation for grant in grants(role, TopicNames(prefix=""))]
    )

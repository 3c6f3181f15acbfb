"""`tamiyo policy` on the embedded broker: what it lists, what it announces, and its errors."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tamiyo.models.checkpoint import CheckpointHeader, CheckpointStore, GateResult, ReleaseRecord, Verdict, save
from tamiyo.schemas.errors import BrokerError, PolicyError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint, policy_orders_key
from tamiyo.schemas.topics import CHECKPOINTS
from tamiyo.streams import cli
from tamiyo.streams.admin.policies import PolicyVersions
from tamiyo.streams.learner.releases import CheckpointReleases
from tests.support.experiences import small_policy
from tests.support.kafka_log import KafkaLog


class Installation:
    """An installation with a store and a broker, and the command line in it."""

    def __init__(self, folder: Path, kafka: KafkaSettings, names: TopicNames, log: KafkaLog, **tools: Any) -> None:
        self.folder = folder
        self.log = log
        self.store = CheckpointStore(f"file://{folder}")
        self.releases = CheckpointReleases("tamiyo", self.store, kafka, names)
        self._patch: pytest.MonkeyPatch = tools["monkeypatch"]
        self._output: pytest.CaptureFixture[str] = tools["capsys"]

    def release(self, *versions: int, **record: Any) -> None:
        """Release versions, each with its parent before it."""
        for version in versions:
            policy = small_policy(seed=version)
            header = CheckpointHeader.of(
                policy,
                version=version,
                parent_version=version - 1 if version else None,
                time_ms=1_700_000_000_000 + version,
                experiences=16 * version,
                updates=version,
                metrics={"charts/mean_reward": 0.125} if version else {},
                release=ReleaseRecord(**record),
            )
            self.releases.release(header, save(policy, None, header))

    def run(self, *arguments: str, status: int = 0) -> str:
        """Run `tamiyo policy` with arguments; return its output in one line."""
        self._output.readouterr()  # what the test logged
        self._patch.setattr(sys, "argv", ["tamiyo", "policy", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = self._output.readouterr()
        assert int(ended.value.code or 0) == status, captured
        return " ".join((captured.out + captured.err).split())

    def announced(self, key: str = "tamiyo") -> PolicyCheckpoint:
        """The newest announcement under a key."""
        found = [each for each in self.log.read(CHECKPOINTS.name) if each.key == key.encode()]
        newest: PolicyCheckpoint = found[-1].record(PolicyCheckpoint)
        return newest


@pytest.fixture
def installation(
    tmp_path: Path,
    kafka: KafkaSettings,
    names: TopicNames,
    kafka_log: KafkaLog,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Installation:
    monkeypatch.setenv("TAMIYO_LEARNER_CHECKPOINT_URL", f"file://{tmp_path}/policies")
    monkeypatch.setenv("TAMIYO_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)
    monkeypatch.setattr("tamiyo.streams.cli.policy.console", Console(width=80))
    return Installation(tmp_path / "policies", kafka, names, kafka_log, monkeypatch=monkeypatch, capsys=capsys)


def test_versions_are_listed_newest_first(installation: Installation) -> None:
    installation.release(0, 1, 2)
    rows = json.loads(installation.run("list", "--json"))
    assert [each["version"] for each in rows] == [2, 1, 0]
    assert rows[0] == {
        "version": 2,
        "status": "released",
        "decides": True,
        "pinned": False,
        "parent_version": 1,
        "time_ms": 1_700_000_000_002,
        "experiences": 32,
        "updates": 2,
        "mean_reward": 0.125,
    }
    assert rows[2]["mean_reward"] is None
    assert [each["version"] for each in json.loads(installation.run("list", "-n", "1", "--json"))] == [2]
    assert "released, decides" in installation.run("list")
    assert "+0.125" in installation.run("list")


def test_a_truncated_file_and_rolled_back_versions_are_marked(installation: Installation) -> None:
    installation.release(0, 1, 2)
    installation.release(3, rolled_back=(1, 2))
    path = installation.folder / installation.store.file_name(0)
    path.write_bytes(path.read_bytes()[:-1])
    rows = json.loads(installation.run("list", "--json"))
    assert [each["status"] for each in rows] == ["released", "rolled_back", "rolled_back", "corrupt"]
    assert '"status": "corrupt"' in installation.run("show", "0", "--json", status=1)
    assert '"status": "rolled_back"' in installation.run("show", "2", "--json")


def test_a_version_is_shown_with_its_gates(installation: Installation) -> None:
    passed = GateResult(gate="golden", verdict=Verdict.PASSED, reason="4 decisions")
    refused = GateResult(gate="off_policy", verdict=Verdict.FAILED, reason="-0.1 reward a decision")
    installation.release(0)
    installation.release(1, gates=(passed,), refused=(refused,))
    shown = installation.run("show", "1")
    assert "gate golden: passed: 4 decisions" in shown
    assert "refused before it: gate off_policy: -0.1 reward a decision" in shown
    assert "charts/mean_reward 0.125" in shown
    found = json.loads(installation.run("show", "1", "--json"))
    assert found["header"]["release"]["gates"] == [passed.model_dump(mode="json")]
    assert found["parent_version"] == 0


def test_a_pin_is_announced_until_it_is_released(installation: Installation) -> None:
    installation.release(0, 1)
    installation.run("pin", "0", "--reason", "incident 7")
    orders = installation.announced(policy_orders_key("tamiyo"))
    assert (orders.pinned, orders.version, orders.file, orders.reason) == (
        True,
        0,
        installation.store.file_name(0),
        "incident 7",
    )
    assert orders.issued_by
    rows = json.loads(installation.run("list", "--json"))
    assert [(each["decides"], each["pinned"]) for each in rows] == [(False, False), (True, True)]
    installation.run("pin", "--release")
    assert not installation.announced(policy_orders_key("tamiyo")).pinned
    assert installation.announced().version == 1  # the release stays announced
    assert "no version of policy 'tamiyo' is pinned" in installation.run("pin", "--release", status=1)


def test_a_freeze_and_a_pin_do_not_end_each_other(installation: Installation) -> None:
    installation.release(0, 1)
    installation.run("freeze")
    installation.run("pin", "0")
    orders = installation.announced(policy_orders_key("tamiyo"))
    assert (orders.pinned, orders.frozen) == (True, True)
    assert "the learner is frozen" in installation.run("list")
    installation.run("freeze", "--thaw")
    orders = installation.announced(policy_orders_key("tamiyo"))
    assert (orders.pinned, orders.frozen, orders.version) == (True, False, 0)


def test_orders_of_a_user_without_a_name(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: the system knows the number alone."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    installation.release(0, 1)
    installation.run("freeze")
    assert installation.announced(policy_orders_key("tamiyo")).issued_by.startswith("uid ")
    printed = json.loads(installation.run("rollback", "--json"))
    assert printed["issued_by"].startswith("uid ")
    assert (printed["version"], printed["fallback_version"], printed["status"]) == (1, 0, "rolled_back")


def test_a_rollback_goes_to_the_parent_or_to_a_chosen_version(installation: Installation) -> None:
    installation.release(0, 1, 2, 3)
    assert "version 3 is rolled back: decisions return to version 2" in installation.run("rollback")
    assert "version 3 is rolled back already" in installation.run("rollback", status=1)
    installation.run("rollback", "--to", "1", "--reason", "rewards fell")
    found = installation.announced()
    assert (found.version, found.status, found.fallback_version, found.reason) == (
        3, CheckpointStatus.ROLLED_BACK, 1, "rewards fell",
    )  # fmt: skip
    rows = json.loads(installation.run("list", "--json"))
    assert [(each["status"], each["decides"]) for each in rows] == [
        ("rolled_back", False), ("rolled_back", False), ("released", True), ("released", False),
    ]  # fmt: skip
    assert "version 2 was rolled back itself" in installation.run("rollback", "--to", "2", status=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "9"), "there is no version 9 of policy 'tamiyo' in"),
        (("pin", "9"), "`tamiyo policy list` has those from 0 to 1"),
        (("pin",), "give the version to pin, or --release"),
        (("pin", "1", "--release"), "give the version to pin, or --release"),
        (("rollback", "--to", "1"), "expected a version before 1, the newest, to return to, got 1"),
    ],
)
def test_errors_name_what_is_wrong(installation: Installation, arguments: tuple[str, ...], words: str) -> None:
    installation.release(0, 1)
    assert words in installation.run(*arguments, status=1)


@pytest.mark.parametrize("arguments", [("show", "0"), ("pin", "0"), ("rollback",), ("freeze",)])
def test_before_the_first_release_it_names_the_learner(installation: Installation, arguments: tuple[str, ...]) -> None:
    assert "is the learner running?" in installation.run(*arguments, status=1)
    assert installation.run("list") == "nothing released yet"


def test_the_first_version_cannot_be_rolled_back(installation: Installation) -> None:
    installation.release(0)
    assert "version 0 is the first: there is no version to return to" in installation.run("rollback", status=1)


def test_a_store_that_cannot_be_reached_is_named(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: CheckpointStore) -> list[int]:
        raise OSError("connection refused")

    installation.release(0)
    monkeypatch.setattr(CheckpointStore, "versions", refuse)
    assert "cannot be reached: connection refused" in installation.run("list", status=1)


def test_an_order_that_another_operator_gives_at_the_same_time_is_kept(
    installation: Installation, kafka: KafkaSettings, names: TopicNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.release(0, 1)
    store = f"file://{installation.folder}"
    first, second = (PolicyVersions("tamiyo", store, kafka, names) for _ in range(2))  # both have read no order
    second.freeze(True, "audit")
    order = first.pin(0)
    assert (order.version, order.pinned, order.frozen) == (0, True, True)
    assert installation.announced(policy_orders_key("tamiyo")) == order == first.orders
    assert first.freeze(False).pinned  # on top of its own
    publish = PolicyVersions._publish

    def overtaken(self: PolicyVersions, key: str, announced: PolicyCheckpoint) -> tuple[int, int]:
        publish(self, key, announced.model_copy(update={"frozen": not announced.frozen}))
        return publish(self, key, announced)

    monkeypatch.setattr(PolicyVersions, "_publish", overtaken)
    with pytest.raises(BrokerError, match="changed by others 5 times at the same moment"):
        first.freeze(True)


def test_a_version_that_is_released_while_another_is_rolled_back_is_reported(
    installation: Installation, kafka: KafkaSettings, names: TopicNames
) -> None:
    installation.release(0, 1)
    policies = PolicyVersions("tamiyo", f"file://{installation.folder}", kafka, names)
    installation.release(2)
    with pytest.raises(PolicyError, match=r"version 1 is rolled back, but version 2 was announced at the same moment"):
        policies.roll_back()

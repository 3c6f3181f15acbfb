from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tamiyo.models.checkpoint import CheckpointStore
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint
from tamiyo.streams.stages.decisions.policy_server import RETRY_S, PolicyServer, _loading
from tests.support.factories import make_graph
from tests.support.released import release
from tests.support.stage_log import FixedView


class Followed:
    """A policy server with a view and a clock that a test sets."""

    def __init__(self, url: Path) -> None:
        self.url = url
        self.view = FixedView()
        self.now = 0.0
        self.policies = PolicyServer(self.view, CheckpointStore(f"file://{url}"), "tamiyo", clock=lambda: self.now)

    def announce(self, checkpoint: PolicyCheckpoint) -> None:
        self.view.records["tamiyo"] = checkpoint

    @property
    def version(self) -> int | None:
        served = self.policies.current()
        return served.version if served is not None else None


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path)


def test_no_policy_is_served_before_an_announcement(followed: Followed) -> None:
    assert followed.version is None


def test_a_newer_announcement_is_served(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    first = followed.policies.current()
    assert followed.policies.current() is first
    followed.announce(release(followed.url, 1))
    assert followed.version == 1


def test_partitions_of_a_process_share_a_loaded_policy(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    other = Followed(followed.url)
    other.view = followed.view
    other.policies = PolicyServer(other.view, CheckpointStore(f"file://{other.url}"), "tamiyo")
    mine, theirs = followed.policies.current(), other.policies.current()
    assert mine is not None
    assert theirs is not None
    assert mine.policy is theirs.policy


def test_the_current_policy_is_served_while_another_partition_loads_one(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    followed.announce(release(followed.url, 1))
    with _loading:
        assert followed.version == 0
    assert followed.version == 1


def test_a_policy_of_another_name_is_ignored(followed: Followed) -> None:
    followed.view.records["other"] = release(followed.url, 0, name="other")
    assert followed.version is None


@pytest.mark.parametrize(
    "broken",
    [
        {"checksum": "0" * 64},
        {"file": "policy-000099.safetensors"},
        {"file": "somewhere-else"},
        {"version": 7},
    ],
)
def test_an_announcement_that_does_not_match_its_file_is_not_served(followed: Followed, broken: dict[str, Any]) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    followed.announce(release(followed.url, 1, **broken))
    assert followed.version == 0


def test_a_file_changed_after_its_release_is_not_served(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    checkpoint = release(followed.url, 1)
    path = followed.url / checkpoint.file
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    followed.announce(checkpoint)
    assert followed.version == 0


def test_a_file_that_appears_late_is_tried_again(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    late = release(followed.url, 1)
    data = (followed.url / late.file).read_bytes()
    (followed.url / late.file).unlink()
    followed.announce(late)
    assert followed.version == 0
    (followed.url / late.file).write_bytes(data)
    assert followed.version == 0  # not with every graph
    followed.now += RETRY_S
    assert followed.version == 1


def test_a_rolled_back_version_is_replaced_by_the_one_before(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    newer = release(followed.url, 1)
    followed.announce(newer)
    assert followed.version == 1
    followed.announce(newer.model_copy(update={"status": CheckpointStatus.ROLLED_BACK}))
    assert followed.version == 0


def test_the_rollback_of_an_older_version_leaves_the_current_one(followed: Followed) -> None:
    older = release(followed.url, 0)
    followed.announce(older)
    assert followed.version == 0
    followed.announce(release(followed.url, 1))
    assert followed.version == 1
    followed.announce(older.model_copy(update={"status": CheckpointStatus.ROLLED_BACK}))
    assert followed.version == 1


def test_a_rejected_policy_is_not_served_again(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    followed.announce(release(followed.url, 1))
    served = followed.policies.current()
    assert served is not None
    assert followed.policies.reject(served, PolicyError("not finite"))
    assert followed.version == 0
    followed.announce(release(followed.url, 2))
    assert followed.version == 2


# Fallbacks, pins and the canary share


def rolled_back(followed: Followed, bad: PolicyCheckpoint, fallback: PolicyCheckpoint) -> PolicyCheckpoint:
    changes = {"fallback_version": fallback.version, "fallback_checksum": fallback.checksum}
    announcement = bad.model_copy(update={"status": CheckpointStatus.ROLLED_BACK, **changes})
    followed.announce(announcement)
    return announcement


def test_a_rollback_goes_to_its_fallback_past_the_versions_between(followed: Followed) -> None:
    released = [release(followed.url, number) for number in range(4)]
    for each in released:
        followed.announce(each)
        assert followed.version == each.version
    rolled_back(followed, released[3], released[1])
    assert followed.version == 1
    assert followed.version == 1
    followed.announce(release(followed.url, 4))
    assert followed.version == 4


def test_a_restarted_worker_serves_the_fallback_of_a_rollback(followed: Followed) -> None:
    rolled_back(followed, release(followed.url, 2), release(followed.url, 0))
    assert followed.version == 0


def test_a_fallback_that_cannot_be_read_leaves_the_version_before(followed: Followed) -> None:
    released = [release(followed.url, number) for number in range(3)]
    for each in released:
        followed.announce(each)
        assert followed.version == each.version
    (followed.url / released[0].file).unlink()
    rolled_back(followed, released[2], released[0].model_copy(update={"checksum": "0" * 64}))
    assert followed.version == 1


def pin(followed: Followed, checkpoint: PolicyCheckpoint, *, pinned: bool = True) -> None:
    followed.view.records["tamiyo:orders"] = checkpoint.model_copy(update={"pinned": pinned})


def test_a_pinned_version_is_served_until_it_is_released(followed: Followed) -> None:
    older, newer = release(followed.url, 0), release(followed.url, 1)
    followed.announce(newer)
    assert followed.version == 1
    pin(followed, older)
    assert followed.version == 0
    followed.announce(release(followed.url, 2))
    assert followed.version == 0
    pin(followed, older, pinned=False)
    assert followed.version == 2


def test_a_restarted_worker_serves_the_pinned_version(followed: Followed) -> None:
    followed.announce(release(followed.url, 1))
    pin(followed, release(followed.url, 0))
    assert followed.version == 0


def test_after_a_pin_a_rolled_back_version_is_not_served(followed: Followed) -> None:
    released = [release(followed.url, number) for number in range(3)]
    pin(followed, released[0])
    rolled_back(followed, released[2], released[1])
    assert followed.version == 0
    pin(followed, released[0], pinned=False)
    assert followed.version == 1


def test_orders_that_pin_nothing_change_nothing(followed: Followed) -> None:
    followed.announce(release(followed.url, 1))
    followed.view.records["tamiyo:orders"] = release(followed.url, 0, frozen=True)
    assert followed.version == 1


def served_to(policies: PolicyServer, runs: int = 200) -> Counter[int]:
    graph = make_graph(1)
    found = Counter[int]()
    for number in range(runs):
        served = policies.current(graph.model_copy(update={"run_id": f"run-{number}"}))
        assert served is not None
        found[served.version] += 1
    return found


def test_a_share_of_the_runs_tests_a_new_version(followed: Followed) -> None:
    store = CheckpointStore(f"file://{followed.url}")
    policies = PolicyServer(followed.view, store, "tamiyo", canary_share=0.25)
    released = [release(followed.url, number) for number in range(3)]
    followed.announce(released[0])
    assert served_to(policies) == {0: 200}
    fallback = {"fallback_version": 0, "fallback_checksum": released[0].checksum}
    followed.announce(released[1].model_copy(update=fallback))
    first = served_to(policies)
    assert 30 <= first[1] <= 70
    assert first[0] == 200 - first[1]
    followed.announce(released[2].model_copy(update=fallback))
    assert served_to(policies) == {0: first[0], 2: first[1]}  # the same runs
    restarted = PolicyServer(followed.view, store, "tamiyo", canary_share=0.25)
    assert served_to(restarted) == {0: first[0], 2: first[1]}
    rolled_back(followed, released[2], released[0])
    assert served_to(policies) == {0: 200}


def test_a_failing_fallback_is_replaced_by_the_new_version(followed: Followed) -> None:
    store = CheckpointStore(f"file://{followed.url}")
    policies = PolicyServer(followed.view, store, "tamiyo", canary_share=0.0)
    older, newer = release(followed.url, 0), release(followed.url, 1)
    fallback = {"fallback_version": 0, "fallback_checksum": older.checksum}
    followed.announce(newer.model_copy(update=fallback))
    served = policies.current(make_graph(1))
    assert served is not None
    assert served.version == 0
    assert policies.reject(served, PolicyError("not finite"))
    assert served_to(policies, 5) == {1: 5}

from pathlib import Path
from typing import Any

import pytest

from tamiyo.models.checkpoint import CheckpointStore
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint
from tamiyo.streams.stages.decisions.policy_server import RETRY_S, PolicyServer, _loading
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

from pathlib import Path
from typing import Any

import pytest

from tamiyo.models.checkpoint import CheckpointStore
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint
from tamiyo.streams.stages.decisions.policy_server import RETRY_S, PolicyServer, _reading
from tests.support.released import release
from tests.support.stage_log import FixedView


class Followed:
    """Policies over a view and a clock that a test moves."""

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


def test_before_an_announcement_there_is_none(followed: Followed) -> None:
    assert followed.version is None


def test_a_newer_announcement_is_served(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    first = followed.policies.current()
    assert followed.policies.current() is first
    followed.announce(release(followed.url, 1))
    assert followed.version == 1


def test_partitions_of_a_process_share_what_was_read(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    other = Followed(followed.url)
    other.view = followed.view
    other.policies = PolicyServer(other.view, CheckpointStore(f"file://{other.url}"), "tamiyo")
    mine, theirs = followed.policies.current(), other.policies.current()
    assert mine is not None
    assert theirs is not None
    assert mine.policy is theirs.policy


def test_while_another_partition_reads_the_incumbent_goes_on(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    followed.announce(release(followed.url, 1))
    with _reading:
        assert followed.version == 0
    assert followed.version == 1


def test_another_policys_name_is_not_ours(followed: Followed) -> None:
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
def test_what_cannot_be_trusted_leaves_the_incumbent(followed: Followed, broken: dict[str, Any]) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    followed.announce(release(followed.url, 1, **broken))
    assert followed.version == 0


def test_a_file_changed_after_its_release_leaves_the_incumbent(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    checkpoint = release(followed.url, 1)
    path = followed.url / checkpoint.file
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    followed.announce(checkpoint)
    assert followed.version == 0


def test_a_file_that_shows_late_is_tried_again(followed: Followed) -> None:
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


def test_a_rolled_back_version_gives_way_to_the_one_before(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    newer = release(followed.url, 1)
    followed.announce(newer)
    assert followed.version == 1
    followed.announce(newer.model_copy(update={"status": CheckpointStatus.ROLLED_BACK}))
    assert followed.version == 0


def test_a_policy_that_does_not_work_is_not_served_again(followed: Followed) -> None:
    followed.announce(release(followed.url, 0))
    assert followed.version == 0
    followed.announce(release(followed.url, 1))
    served = followed.policies.current()
    assert served is not None
    assert followed.policies.reject(served, PolicyError("not finite"))
    assert followed.version == 0
    followed.announce(release(followed.url, 2))
    assert followed.version == 2

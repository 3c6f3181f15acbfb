from pathlib import Path

import pytest

from tamiyo.models.checkpoint import CheckpointHeader, CheckpointStore, save
from tamiyo.schemas.errors import ConfigurationError, PolicyError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import PolicyCheckpoint
from tamiyo.streams.learner.releases import CheckpointReleases
from tests.support.experiences import BLUEPRINTS, small_policy


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(f"file://{tmp_path}")


def put(releases: CheckpointReleases, *versions: int, name: str = "tamiyo") -> None:
    for version in versions:
        policy = small_policy(seed=version)
        header = CheckpointHeader.of(policy, version=version, name=name, offsets={"0": version})
        releases.release(header, save(policy, None, header))


def test_the_newest_is_found_and_old_ones_are_deleted(
    store: CheckpointStore, kafka: KafkaSettings, names: TopicNames
) -> None:
    releases = CheckpointReleases("tamiyo", store, kafka, names, keep=2)
    assert releases.find(BLUEPRINTS).newest == -1
    put(releases, 0, 1, 2)
    assert store.versions() == [1, 2]
    found = releases.find(BLUEPRINTS)
    assert found.header is not None
    assert (found.header.version, found.newest, found.announced) == (2, 2, True)
    assert found.header.offsets == {"0": 2}


def test_a_corrupt_file_is_skipped_and_keeps_its_number(
    store: CheckpointStore, kafka: KafkaSettings, names: TopicNames, tmp_path: Path
) -> None:
    releases = CheckpointReleases("tamiyo", store, kafka, names)
    put(releases, 0, 1)
    path = tmp_path / store.file_name(1)
    path.write_bytes(path.read_bytes()[:-1])
    found = releases.find(BLUEPRINTS)
    assert found.header is not None
    assert (found.header.version, found.newest, found.announced) == (0, 1, False)


def test_a_deleted_file_keeps_its_number(store: CheckpointStore, kafka: KafkaSettings, names: TopicNames) -> None:
    releases = CheckpointReleases("tamiyo", store, kafka, names)
    put(releases, 0, 1)
    store.delete(1)
    found = releases.find(BLUEPRINTS)
    assert found.header is not None
    assert (found.header.version, found.newest) == (0, 1)


def test_announcements_of_another_policy_are_ignored(
    store: CheckpointStore, kafka: KafkaSettings, names: TopicNames, tmp_path: Path
) -> None:
    releases = CheckpointReleases("tamiyo", store, kafka, names)
    put(releases, 0)
    other = CheckpointReleases("other", CheckpointStore(f"file://{tmp_path}/other"), kafka, names)
    put(other, 0, 1, name="other")
    found = releases.find(BLUEPRINTS)
    assert (found.newest, found.announced) == (0, True)


def test_other_blueprints_keep_the_weights_and_not_the_optimiser(
    store: CheckpointStore, kafka: KafkaSettings, names: TopicNames
) -> None:
    releases = CheckpointReleases("tamiyo", store, kafka, names)
    put(releases, 0)
    found = releases.find((*BLUEPRINTS, "squeeze_excite"))
    assert found.policy is not None
    assert found.policy.config.blueprints == (*BLUEPRINTS, "squeeze_excite")
    assert (found.state, found.announced) == (None, False)


def test_a_store_of_another_policy_is_refused(store: CheckpointStore, kafka: KafkaSettings, names: TopicNames) -> None:
    put(CheckpointReleases("other", store, kafka, names), 0, name="other")
    with pytest.raises(ConfigurationError, match="holds policy 'other'"):
        CheckpointReleases("tamiyo", store, kafka, names).find(BLUEPRINTS)


def test_a_learner_that_paused_before_announcing_reports_the_other(
    store: CheckpointStore, kafka: KafkaSettings, names: TopicNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused, other = (CheckpointReleases("tamiyo", store, kafka, names) for _ in range(2))
    put(paused, 0)
    announce = paused.announce

    def pause(header: CheckpointHeader, data: bytes) -> PolicyCheckpoint:
        put(other, 2)
        return announce(header, data)

    monkeypatch.setattr(paused, "announce", pause)
    with pytest.raises(
        PolicyError, match="checkpoint 2 already exists: another learner is running for policy 'tamiyo'"
    ):
        put(paused, 1)
    found = other.find(BLUEPRINTS)
    assert (found.newest, found.announced) == (
        2,
        False,
    )  # the paused one's is the last on the topic, so 2 is announced again
    with pytest.raises(PolicyError, match="checkpoint 2 already exists"):
        put(paused, 2)

"""Reads experiences from a recording, a file and a topic; counts what does not fit."""

from pathlib import Path

import pytest

from tamiyo.evaluation.offline.decisions import logged_decisions
from tamiyo.evaluation.offline.experiences import current, encoded_experiences
from tamiyo.evaluation.offline.policies import Checkpoint, Heuristic, Logged, Never
from tamiyo.models.behaviour import distribution
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError, ConfigurationError, PolicyError, RecordingError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.record import Tensor
from tamiyo.schemas.topics import EXPERIENCE, WINDOWS
from tests.evaluation.offline.plant import bandit, planted_log, recorded, untrained_policy
from tests.support.experiences import make_experience, small_policy
from tests.support.kafka_log import KafkaLog
from tests.support.recordings import make_recording, message

NO_PREFIX = TopicNames(prefix="")


def no_broker() -> KafkaSettings:
    raise AssertionError("expected to read files only")


def test_a_recording_has_its_experiences(tmp_path: Path) -> None:
    log = planted_log(4, 3)
    make_recording(tmp_path, [*recorded(log), message(WINDOWS.name, 0)])
    found, left_out = current(encoded_experiences(str(tmp_path), no_broker, NO_PREFIX))
    assert {each.experience_id for each in found} == {each.experience_id for each in log}
    assert not left_out


def test_one_file_of_a_recording_has_a_partition(tmp_path: Path) -> None:
    make_recording(tmp_path, recorded(planted_log(4, 3)))
    found, _ = current(encoded_experiences(str(tmp_path / f"{EXPERIENCE.name}-1.avro"), no_broker, NO_PREFIX))
    assert {each.run_id for each in found} == {"run-1", "run-3"}


def test_a_topic_is_read_to_its_end(kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog) -> None:
    log = planted_log(4, 3)
    kafka_log.publish(EXPERIENCE, log)
    for source in (EXPERIENCE.name, names.full(EXPERIENCE.name)):
        found, _ = current(encoded_experiences(source, lambda: kafka, names))
        assert {each.experience_id for each in found} == {each.experience_id for each in log}


def test_a_missing_topic_is_explained(kafka: KafkaSettings) -> None:
    with pytest.raises(BrokerError, match=r"has no topic none\.tamiyo\.experience; `tamiyo topics create`"):
        list(encoded_experiences(f"none.{EXPERIENCE.name}", lambda: kafka, NO_PREFIX))


@pytest.mark.parametrize("source", ["missing", WINDOWS.name])
def test_what_is_no_source_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="expected its folder"):
        list(encoded_experiences(source, no_broker, NO_PREFIX))


def test_another_topic_and_a_changed_file_are_refused(tmp_path: Path) -> None:
    make_recording(tmp_path, [*recorded(planted_log(4, 3)), message(WINDOWS.name, 0)])
    with pytest.raises(RecordingError, match=r"has messages of tamiyo\.health\.windows, expected those of"):
        list(encoded_experiences(str(tmp_path / f"{WINDOWS.name}-0.avro"), no_broker, NO_PREFIX))
    changed = tmp_path / f"{EXPERIENCE.name}-0.avro"
    changed.write_bytes(changed.read_bytes()[:-5])
    with pytest.raises(RecordingError, match="was changed after it was recorded"):
        list(encoded_experiences(str(tmp_path), no_broker, NO_PREFIX))
    with pytest.raises(RecordingError, match="is damaged"):
        list(encoded_experiences(str(changed), no_broker, NO_PREFIX))


# Revisions


def ids_and_rewards(*experiences: object, **how: bool) -> tuple[list[float], dict[str, int]]:
    found, left_out = current([encode(each) for each in experiences], **how)  # type: ignore[arg-type]
    return [each.reward for each in found], dict(left_out)


def test_the_highest_revision_counts_in_any_order() -> None:
    first = make_experience("a", revision=0, reward=0.1)
    second = make_experience("a", revision=2, reward=0.2)
    assert ids_and_rewards(first, second, first) == ([0.2], {})
    assert ids_and_rewards(second, first) == ([0.2], {})


def test_an_incomplete_reward_counts_only_on_request() -> None:
    whole = make_experience("a", reward=0.1)
    open_ended = make_experience("b", complete=False, revision=1, reward=0.2)
    assert ids_and_rewards(whole, open_ended) == ([0.1], {"incomplete": 1})
    assert ids_and_rewards(whole, open_ended, incomplete=True) == ([0.1, 0.2], {})


def test_a_complete_revision_outranks_an_incomplete_one() -> None:
    whole = make_experience("a", revision=1, reward=0.1)
    later = make_experience("a", revision=2, complete=False, reward=0.2)
    assert ids_and_rewards(whole, later, incomplete=True) == ([0.1], {})


def test_what_cannot_be_read_is_counted() -> None:
    good, nan = make_experience("a"), make_experience("b").model_copy(update={"reward": float("nan")})
    infinite = make_experience("c").model_copy(update={"worth": float("inf")})
    found, left_out = current([encode(good), None, b"", b"nonsense", encode(good)[:-1], encode(nan), encode(infinite)])
    assert [each.experience_id for each in found] == [good.experience_id]
    assert left_out == {"undecodable": 4, "invalid": 2}


# Policies on the log


def test_experiences_that_do_not_fit_a_policy_are_counted() -> None:
    good = make_experience("a")
    older = make_experience("b", graph=good.graph.model_copy(update={"feature_version": 99}))
    foreign = planted_log(1, 1)[0]
    unlikely = make_experience("d", probabilities=[1.0, *[0.0] * 10])
    huge = make_experience("e", worth=1e6)
    policies = (Checkpoint("small", small_policy()), Heuristic())
    seen: list[int] = []
    found, left_out = logged_decisions([good, older, foreign, unlikely, huge], policies, seen.append)
    assert (len(found), seen) == (1, [1] * 5)
    assert left_out == {"feature_version": 1, "kinds": 1, "propensity": 1, "worth": 1}


def test_a_decision_has_the_distributions_over_its_legal_actions() -> None:
    probabilities = [0.5, 0, 0, 0.3, 0.2, 0, 0, 0, 0, 0, 0]
    experience = make_experience("a", action=3, legal=[0, 3, 4], probabilities=probabilities, worth=-2.0)
    policy = small_policy()
    (found,), _ = logged_decisions([experience], [Checkpoint("small", policy), Never(), Logged()])
    assert (found.run_id, found.reward, found.logged, found.actions.tolist()) == ("run-1", -1.0, 1, [0, 3, 4])
    assert found.behaviour == pytest.approx([0.5, 0.3, 0.2])
    mask = experience.probabilities.numpy() > 0
    assert found.targets[0] == pytest.approx(distribution(policy, experience.graph, mask)[[0, 3, 4]])
    assert found.targets[1].tolist() == [1, 0, 0]
    assert found.weight(2) == 1
    assert found.weight(0) == pytest.approx(found.targets[0][1] / 0.3)


def test_a_policy_that_fails_on_a_graph_is_not_judged_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = untrained_policy()
    policy.value[-1].bias.data.fill_(float("nan"))  # type: ignore[index, union-attr]
    with pytest.raises(PolicyError, match="is not finite"):
        logged_decisions(planted_log(1, 2), [Checkpoint("broken", policy)])


def test_logs_of_several_kinds_of_action_fit_the_heuristic() -> None:
    found, left_out = logged_decisions([make_experience("a"), planted_log(1, 1)[0]], [Heuristic()])
    assert not left_out
    assert {len(each.kinds) for each in found} == {5}
    assert found[0].kinds != found[1].kinds
    assert found[1].kinds == bandit.kinds


def test_a_hostile_propensity_gives_a_weight_and_no_overflow() -> None:
    tiny = make_experience("a", action=1, probabilities=[1.0, 1e-38, *[0.0] * 9])
    assert isinstance(tiny.probabilities, Tensor)
    (found,), _ = logged_decisions([tiny], [Heuristic()])
    assert 1e30 < found.weight(0) < 1e39

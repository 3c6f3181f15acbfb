"""Brokers and a schema registry for the whole session, and clients for them."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch

from tamiyo.evaluation.common.local_registry import LocalRegistry
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.brokers import EmbeddedBroker, LocalKafka
from tests.support.kafka_log import KafkaLog
from tests.support.workers import Process

torch.set_num_threads(1)  # on a busy machine two threads are up to a hundred times slower than one


TESTS = Path(__file__).parent

# Whole installations, programs and training loops, frameworks, and the laboratory: `make test-long` runs them.
LONG = (
    "evaluation/bench/test_on_a_broker.py",
    "evaluation/common/test_report.py",
    "evaluation/faults/test_faults.py",
    "evaluation/faults/test_judge.py",
    "evaluation/lab/test_cli.py",
    "evaluation/lab/test_equivalence.py",
    "evaluation/lab/test_exploits.py",
    "evaluation/lab/test_fit.py",
    "evaluation/lab/test_hosts.py",
    "evaluation/lab/test_run.py",
    "evaluation/lab/test_statics.py",
    "evaluation/lab/test_traffic.py",
    "evaluation/lab/test_truth.py",
    "evaluation/lab/test_twins.py",
    "evaluation/lab/training/test_fit.py",
    "evaluation/lab/training/test_lookahead.py",
    "evaluation/lab/training/test_program.py",
    "evaluation/outage/test_outage.py",
    "evaluation/overload/test_overload.py",
    "evaluation/scale/test_flow.py",
    "evaluation/soak/test_soak.py",
    "examples/test_integration_examples.py",
    "examples/test_training_examples.py",
    "host/loops/test_distributed.py",
    "host/loops/test_later_wrappers.py",
    "host/reference/test_networks.py",
    "host/reference/test_train.py",
    "integrations/test_accelerate.py",
    "integrations/test_lightning.py",
    "integrations/test_loggers.py",
    "integrations/test_transformers.py",
    "integrations/test_two_processes.py",
    "models/learning/test_credit.py",
    "streams/demo/test_demo.py",
    "streams/runtime/test_outages.py",
    "streams/runtime/test_poison.py",
    "streams/runtime/test_rebalances.py",
    "streams/watch/page/test_demo_page.py",
    "system/test_busy_neighbour.py",
    "system/security/test_hostile.py",
    "system/test_operation.py",
)
# Of the others those that take longest, with their own brokers and processes.
LONGEST = (
    "system/test_main_job.py",
    "streams/replay/test_replay.py",
    "streams/cli/test_config.py",
    "streams/watch/page/test_views.py",
    "streams/watch/feeds/test_topic_feed.py",
    "streams/admin/test_dlq.py",
    "streams/admin/test_growth.py",
    "streams/learner/test_loop.py",
    "streams/learner/test_loop_releases.py",
    "streams/process/test_supervisor.py",
    "streams/runtime/test_worker.py",
    "streams/process/test_watchdog.py",
    "streams/admin/test_doctor.py",
    "system/security/test_oauth.py",
    "streams/admin/test_runs.py",
    "streams/admin/test_schema_registry.py",
    "system/security/test_secrets.py",
    "system/security/test_acls.py",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import the files that the `-m` of `make test` and `make test-long` leaves out."""
    if collection_path.suffix != ".py":
        return None
    long = collection_path.relative_to(TESTS).as_posix() in LONG
    return True if config.option.markexpr == ("not long" if long else "long") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the long files, and put those that take longest first, so that no core idles at the end."""
    rank = {name: place for place, name in enumerate((*LONG, *LONGEST))}
    names = {item: item.path.relative_to(TESTS).as_posix() for item in items}
    for item in items:
        if names[item] in LONG:
            item.add_marker("long")
    items.sort(key=lambda item: rank.get(names[item], len(rank)))


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Restore logging after a test: commands configure it with a stream that is closed when the test ends."""
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.configure(**config)
    root.setLevel(level)
    for handler in set(root.handlers) - set(handlers):
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def embedded() -> Iterator[EmbeddedBroker]:
    """One embedded broker for the session; every test uses its own topic prefix."""
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture(scope="session")
def real_kafka() -> Iterator[str]:
    """Bootstrap servers of a real Kafka from KAFKA_HOME, else from a container; skips the test without either."""
    home = os.environ.get("KAFKA_HOME")
    if home:
        with LocalKafka(home) as broker:
            yield broker.bootstrap_servers
        return
    from testcontainers.kafka import KafkaContainer

    try:
        container = KafkaContainer().with_kraft().start()
    except Exception as error:  # docker's client raises its own errors, and those of requests and urllib3
        pytest.skip(f"no real Kafka: KAFKA_HOME is not set and Docker is unreachable ({type(error).__name__})")
    try:
        yield container.get_bootstrap_server()
    finally:
        container.stop()


@pytest.fixture(scope="session")
def registry_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real schema registry from REGISTRY_HOME; skips the test without one."""
    home = os.environ.get("REGISTRY_HOME")
    if not home:
        pytest.skip("no schema registry: REGISTRY_HOME is not set")
    with LocalRegistry(home, tmp_path_factory.mktemp("registry")) as registry:
        yield registry.url


@pytest.fixture
def names() -> TopicNames:
    """Topic names with a prefix that no other test uses."""
    return TopicNames(prefix=f"t{uuid.uuid4().hex[:8]}.")


@pytest.fixture
def kafka(embedded: EmbeddedBroker) -> KafkaSettings:
    """Settings of the embedded broker."""
    return KafkaSettings(bootstrap_servers=embedded.bootstrap_servers)


@pytest.fixture
def open_log(names: TopicNames) -> Iterator[Callable[[KafkaSettings], KafkaLog]]:
    """Create `KafkaLog`s for a broker, under the test's prefix."""
    logs: list[KafkaLog] = []

    def make(kafka: KafkaSettings) -> KafkaLog:
        logs.append(KafkaLog(kafka, names))
        return logs[-1]

    yield make
    for log in logs:
        log.close()


@pytest.fixture
def kafka_log(kafka: KafkaSettings, names: TopicNames) -> Iterator[KafkaLog]:
    """A `KafkaLog` of the embedded broker, under the test's prefix."""
    with closing(KafkaLog(kafka, names)) as log:
        yield log


@pytest.fixture
def start(tmp_path: Path, names: TopicNames) -> Iterator[Callable[..., Process]]:
    """Start worker processes with the pair stage; what still runs at the end is killed."""
    processes: list[Process] = []

    def begin(kafka: KafkaSettings, *arguments: str, **settings: Any) -> Process:
        processes.append(Process(kafka, names, tmp_path, *arguments, **settings))
        return processes[-1]

    yield begin
    for each in processes:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()

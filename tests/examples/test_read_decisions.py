"""Decisions read by foreign clients: the example, without any module of ours, and kcat."""

import io
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import fastavro
import pytest

from tamiyo.schemas.avro_schema import FOLDER
from tamiyo.schemas.client.registry import Registry, RegistrySettings
from tamiyo.schemas.client.subjects import Subjects, schema_text, subject
from tamiyo.schemas.codec import HEADER, use_registry
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS
from tamiyo.streams.admin.brokers import EmbeddedBroker
from tests.support.kafka_log import KafkaLog
from tests.support.registry_server import RegistryServer
from tests.support.runs import RUN, decision

EXAMPLE = Path(__file__).parents[2] / "examples" / "read_decisions.py"
BARE = TopicNames(prefix="")
# Any import of ours fails in this process.
ALONE = (
    "import runpy, sys; sys.modules['tamiyo'] = None; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
)
TIMEOUT_S = 60.0


@pytest.fixture
def servers() -> Iterator[str]:
    """A broker of the test's own, since the example names the topic as it is without a prefix."""
    with EmbeddedBroker() as broker:
        yield broker.bootstrap_servers


def publish_decisions(servers: str) -> None:
    """Write one decision in each of the two framings."""
    kafka = KafkaSettings(bootstrap_servers=servers)
    with closing(KafkaLog(kafka, BARE)) as log, RegistryServer() as server:
        log.publish(DECISIONS, [decision("first", step=3)])
        server.add(subject(DECISIONS.record, BARE), schema_text(DECISIONS.record))
        use_registry(Subjects(Registry(RegistrySettings(url=server.url)), BARE))
        try:
            log.publish(DECISIONS, [decision("second", step=4)])
        finally:
            use_registry(None)


def test_the_example_reads_decisions(servers: str) -> None:
    publish_decisions(servers)
    command = [sys.executable, "-c", ALONE, str(EXAMPLE), servers]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as consumer:
        deadline = threading.Timer(TIMEOUT_S, consumer.kill)
        deadline.start()
        assert consumer.stdout is not None
        assert consumer.stderr is not None
        try:
            lines = [consumer.stdout.readline() for _ in range(2)]
        finally:
            deadline.cancel()
            consumer.kill()
        wanted = [
            f"{RUN} {each.step} {each.type} {each.layer_id}\n"
            for each in (decision("a", step=3), decision("b", step=4))
        ]
        assert lines == wanted, consumer.stderr.read()


def test_ours_cannot_be_imported_there(tmp_path: Path) -> None:
    (tmp_path / "decisions.py").write_text("import tamiyo")
    command = [sys.executable, "-c", ALONE, "decisions.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "import of tamiyo halted" in done.stderr


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed")
def test_kcat_and_fastavro_read_decisions(servers: str) -> None:
    publish_decisions(servers)
    command = ["kcat", "-C", "-b", servers, "-t", DECISIONS.name, "-o", "0", "-c", "1", "-q", "-D", "", "-f", "%s"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S)
    schema = fastavro.schema.load_schema(str(FOLDER / "AdaptationDecision.avsc"))
    values = fastavro.schemaless_reader(io.BytesIO(done.stdout[HEADER:]), schema, None)
    assert values == decision("first", step=3).model_dump()

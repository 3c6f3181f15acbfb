"""Kafka brokers that Tamiyo can start: librdkafka's mock cluster, and a real node from `KAFKA_HOME`."""

import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from tamiyo.schemas.errors import BrokerError, ConfigurationError

EMBEDDED_CLUSTER = "mockCluster"  # cluster id of librdkafka's mock cluster

SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listeners}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={folder}/data
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=8
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
"""

LOG4J = """\
<Configuration status="WARN">
  <Appenders><Console name="out" target="SYSTEM_OUT"><PatternLayout pattern="[%d] %p %m (%c)%n"/></Console></Appenders>
  <Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


def free_ports(count: int) -> list[int]:
    """Return `count` different unused TCP ports of 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def is_embedded(cluster_id: str | None) -> bool:
    """Return whether a cluster id is that of librdkafka's mock, which cannot create, compact or fence."""
    return bool(cluster_id and cluster_id.startswith(EMBEDDED_CLUSTER))


class EmbeddedBroker:
    """librdkafka's mock cluster: one broker on a port of 127.0.0.1, in this process's memory.

    Topics are created with 4 partitions when they are first requested; each partition keeps its newest 5 MiB.
    """

    def __init__(self) -> None:
        # The cluster belongs to a producer that never produces, and exists as long as this object is referenced.
        self._host: Producer | None = Producer(
            {"bootstrap.servers": "127.0.0.1:0", "test.mock.num.brokers": 1, "log_level": 0}
        )
        try:
            brokers = self._host.list_topics(timeout=10).brokers.values()
        except KafkaException as error:
            raise BrokerError(f"the embedded broker did not start: {error}") from error
        self.bootstrap_servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def stop(self) -> None:
        """Stop the broker and discard its data."""
        self._host = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class LocalKafka:
    """One Apache Kafka node in KRaft mode, started from `home`/libs with Java 17 or later. A context manager.

    `start` after `stop` or `kill` continues with the same data and port; `close` also removes the data.
    """

    def __init__(
        self,
        home: str | Path,
        *,
        start_timeout_s: float = 60.0,
        listeners: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare the node's folder.

        Args:
            home: an unpacked Kafka release.
            start_timeout_s: seconds that `start` may take.
            listeners: name to security protocol, besides the plain one.
            properties: added to the node's settings.
        """
        self._libs = Path(home) / "libs"
        if not self._libs.is_dir():
            raise ConfigurationError(f"KAFKA_HOME must hold Kafka's libs/*.jar, but {self._libs} is not a folder")
        if shutil.which("java") is None:
            raise ConfigurationError("a local Kafka needs Java 17 or later on the PATH, but there is no java")
        self._timeout = start_timeout_s
        self._folder = Path(tempfile.mkdtemp(prefix="tamiyo-kafka-"))
        self._process: subprocess.Popen[bytes] | None = None
        extra = dict(listeners or {})
        port, controller, *ports = free_ports(2 + len(extra))
        self.bootstrap_servers = f"127.0.0.1:{port}"
        self.servers = {name: f"localhost:{number}" for name, number in zip(extra, ports, strict=True)}
        """Bootstrap servers of each further listener; host names, as in certificates."""
        config = SERVER_PROPERTIES.format(
            port=port,
            controller=controller,
            folder=self._folder,
            listeners="".join(f",{name}://127.0.0.1:{number}" for name, number in zip(extra, ports, strict=True)),
            advertised="".join(f",{name}://{server}" for name, server in self.servers.items()),
            protocols="".join(f",{name}:{protocol}" for name, protocol in extra.items()),
        )
        added = "".join(f"{name}={value}\n" for name, value in (properties or {}).items())
        self._config = self._folder / "server.properties"
        self._config.touch(mode=0o600)  # `properties` may hold passwords
        self._config.write_text(config + added)
        (self._folder / "log4j2.xml").write_text(LOG4J)
        self._log = self._folder / "broker.log"

    @property
    def data(self) -> Path:
        """Return the folder of its partitions' logs."""
        return self._folder / "data"

    @property
    def pid(self) -> int | None:
        """Return the node's process id; None while it is down."""
        return self._process.pid if self._process is not None else None

    def _java(self, *arguments: str) -> list[str]:
        # A small heap and the quick compiler: a test's broker runs for seconds.
        options = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        logs = f"-Dlog4j2.configurationFile={self._folder / 'log4j2.xml'}"
        return ["java", *options, logs, "-cp", f"{self._libs}/*", *arguments]

    def start(self) -> Self:
        """Start the node and wait for it; raises BrokerError with the end of its log where it does not start."""
        with self._log.open("ab") as log:
            if not (self._folder / "data" / "meta.properties").exists():
                tool = self._java("kafka.tools.StorageTool", "format", "-t", _cluster_id(), "-c", str(self._config))
                if subprocess.run(tool, stdout=log, stderr=log, check=False).returncode:  # noqa: S603
                    raise BrokerError(f"Kafka's storage could not be formatted: {self._log_end()}")
            self._process = subprocess.Popen(  # noqa: S603
                self._java("kafka.Kafka", str(self._config)), stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + self._timeout
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BrokerError(f"Kafka exited with {self._process.returncode}: {self._log_end()}")
            with contextlib.suppress(KafkaException):
                if admin.list_topics(timeout=1).brokers:
                    return self
        self.kill()
        raise BrokerError(f"Kafka did not start within {self._timeout:.0f} s: {self._log_end()}")

    def _log_end(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def stop(self, timeout_s: float = 20.0) -> None:
        """Stop the node with SIGTERM, then SIGKILL; its data stays."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Stop the node with SIGKILL, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wait(self, timeout_s: float) -> bool:
        """Wait until the node has ended by itself; return whether it has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process is not None:
                self._process.wait(timeout_s)
        return self._process is None or self._process.poll() is not None

    def pause(self) -> None:
        """Freeze the node: it keeps its connections and does not respond."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue a frozen node."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop the node and remove its data."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _cluster_id() -> str:
    # Unpadded URL-safe base64 of 16 bytes; the A prevents a leading dash, which would be read as a flag.
    return "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]


def kafka_home() -> Path | None:
    """Return the unpacked Kafka that `KAFKA_HOME` names, or None."""
    home = os.environ.get("KAFKA_HOME")
    return Path(home) if home else None


def required_kafka_home() -> Path:
    """Return the unpacked Kafka that `KAFKA_HOME` names; raises ConfigurationError where it is not set."""
    home = kafka_home()
    if home is None:
        raise ConfigurationError("KAFKA_HOME must name an unpacked Kafka release")
    return home

"""A whole installation on this machine: a real Kafka with its topics, and the processes that use it.

    with Installation(required_kafka_home(), folder) as installation:
        installation.fleet.add_worker("worker-1")
        installation.fleet.add_learner()
        installation.fleet.wait_ready()
        installation.fleet.kill("worker-1")
        installation.restart_broker(down_s=5)

Everything ends with the block, also after an error or Ctrl-C; `end_by_signal` makes SIGTERM behave like Ctrl-C.
"""

import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import typer

from tamiyo.evaluation.common.fleet import Fleet
from tamiyo.evaluation.common.local_registry import LocalRegistry
from tamiyo.schemas.client.registry import Registry, RegistrySettings
from tamiyo.schemas.codec import use_registry
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin import schema_registry
from tamiyo.streams.admin.brokers import LocalKafka
from tamiyo.streams.admin.topics import Topics

PARTITIONS = 4


def end_by_signal() -> None:
    """Make SIGTERM raise KeyboardInterrupt like Ctrl-C, so that every context manager is left."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def refuse_used(keep: Path | None) -> None:
    """Create the folder `keep` if it is given.

    Raises:
        BadParameter: the folder is not empty (the learner would continue from another installation's checkpoints) or
            cannot be created.
    """
    if keep is None:
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        empty = not any(keep.iterdir())
    except OSError as error:
        raise typer.BadParameter(f"{keep} cannot be used: {error.strerror}", param_hint="--keep") from error
    if not empty:
        raise typer.BadParameter(f"{keep} is not empty", param_hint="--keep")


@contextmanager
def working_folder(keep: Path | None, prefix: str) -> Iterator[Path]:
    """Yield `keep`, or a temporary folder if it is None. Raises BadParameter as `refuse_used` does."""
    refuse_used(keep)
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix=prefix) as temporary:
        yield Path(temporary)


class Installation:
    """One Kafka node and one fleet; `folder` receives the store, the logs and each process's working directory."""

    def __init__(
        self,
        home: Path,
        folder: Path,
        *,
        partitions: int = PARTITIONS,
        settings: Mapping[str, str] | None = None,
        broker_properties: Mapping[str, str] | None = None,
        registry_home: Path | None = None,
    ) -> None:
        """Prepare the installation; the block starts it.

        Args:
            home: An unpacked Kafka release.
            folder: Where everything is written.
            partitions: Of every topic.
            settings: Environment of every process, e.g. {"TAMIYO_WINDOW_WIDTH": "20"}.
            broker_properties: Added to the node's server.properties.
            registry_home: Of a schema registry, which all processes use, this one included; None: none is used.
        """
        self.folder = folder
        self.names = TopicNames(prefix="")
        self.broker = LocalKafka(home, properties=broker_properties)
        self.kafka = KafkaSettings(bootstrap_servers=self.broker.bootstrap_servers)
        self.registry = LocalRegistry(registry_home, folder / "registry") if registry_home is not None else None
        self.store = f"file://{folder.absolute()}/store"
        self.environment = self._environment(settings or {})
        """Of every process."""
        self.fleet = Fleet(folder / "processes", self.environment)
        self._partitions = partitions
        self._stack = ExitStack()

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        return {
            "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "TAMIYO_TOPIC_PREFIX": self.names.prefix,
            "TAMIYO_REGISTRY_URL": self.registry.url if self.registry is not None else "",
            "TAMIYO_STORE_URL": self.store,
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **settings,
        }

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self.broker)
            self.fleet.folder.mkdir(parents=True, exist_ok=True)
            if self.registry is not None:
                self._stack.enter_context(self.registry)
                self._stack.callback(use_registry, None)
                settings = RegistrySettings(url=self.registry.url)
                list(schema_registry.register(Registry(settings), self.names))
                schema_registry.prepare(self.names, settings)
            Topics(self.kafka, self.names).create(partitions=self._partitions)
            self._stack.enter_context(self.fleet)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def restart_broker(self, *, down_s: float = 0.0, power_cut: bool = False) -> None:
        """Stop the broker (`power_cut`: kill it) and restart it after `down_s` on the same data and port."""
        (self.broker.kill if power_cut else self.broker.stop)()
        time.sleep(down_s)
        self.broker.start()

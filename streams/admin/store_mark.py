"""The mark of a store: which installation its policies or kernels belong to.

Two installations with one store would take over each other's policies: versions and offsets of one mean nothing to the
other. So the first process that writes to a store puts a small file into it, with the topic prefix and the id of the
cluster, and every process refuses a store with another mark. Hosts do not look at it: they only read, and find a kernel
by an id and a checksum from their own topics.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from tamiyo.schemas.display import printable, without_secrets
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.files import write_atomically
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.stores import open_store
from tamiyo.streams.admin.brokers import is_embedded
from tamiyo.streams.admin.topics import Topics

MARK = "installation.json"
"""Name of the file, beside the kernels or checkpoints."""
EMBEDDED = "embedded"
"""Stands for the id of an embedded broker, which is another one at every start."""
MAX_BYTES = 10_000


@dataclass(frozen=True, slots=True)
class Installation:
    """What distinguishes an installation from others."""

    topic_prefix: str
    cluster_id: str | None
    """None: the broker has no id."""

    def __str__(self) -> str:
        prefix = f"with topic prefix {self.topic_prefix!r}" if self.topic_prefix else "without a topic prefix"
        return printable(f"{prefix} on cluster {self.cluster_id}")


def require_own_stores(stores: Mapping[str, bool], kafka: KafkaSettings, names: TopicNames) -> None:
    """Mark the stores that have no mark and are written to, and refuse those of other installations.

    Args:
        stores: fsspec URL of each store, and whether this process writes to it.
        kafka: the broker.
        names: the installation's topic names.

    Raises:
        ConfigurationError: a store belongs to another installation, or cannot be used.
        BrokerError: the broker does not respond.
    """
    if not stores:
        return
    cluster_id = Topics(kafka, names).cluster_id()
    own = Installation(names.prefix, EMBEDDED if is_embedded(cluster_id) else cluster_id)
    for url, written in stores.items():
        _require_own(url, own, written)


def _require_own(url: str, own: Installation, written: bool) -> None:
    files, root = open_store(url)
    shown, path = without_secrets(url), f"{root.rstrip('/')}/{MARK}"
    try:
        found = _read(files, path)
        if found is None and written:
            _create(files, root, path, own)
            found = _read(files, path)  # another process may have been faster
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f"{shown}/{MARK} is not the mark of a store: {error}; remove it if the store belongs to this installation"
        ) from error
    except Exception as error:  # each fsspec file system raises its own errors
        raise ConfigurationError(f"the store {shown} cannot be used: {type(error).__name__}: {error}") from error
    if found is None:
        return
    same_cluster = found.cluster_id is None or own.cluster_id is None or found.cluster_id == own.cluster_id
    if found.topic_prefix != own.topic_prefix or not same_cluster:
        raise ConfigurationError(
            f"the store {shown} belongs to the installation {found}, and this is the one {own}: give this one a store "
            f"of its own with TAMIYO_STORE_URL, or with the setting of this store alone; if it replaces the other one, "
            f"remove {shown}/{MARK}"
        )


def _read(files: Any, path: str) -> Installation | None:
    try:
        data = files.cat_file(path, start=0, end=MAX_BYTES)
    except FileNotFoundError:
        return None
    values = json.loads(data)
    prefix, cluster_id = values["topic_prefix"], values["cluster_id"]
    if not isinstance(prefix, str) or not isinstance(cluster_id, str | None):
        raise TypeError("topic_prefix and cluster_id must be strings")
    return Installation(prefix, cluster_id)


def _create(files: Any, root: str, path: str, own: Installation) -> None:
    data = json.dumps(asdict(own), indent=2).encode()
    files.makedirs(root, exist_ok=True)
    try:
        if isinstance(files, LocalFileSystem):
            write_atomically(Path(path), data, replace=False)
        else:
            files.pipe_file(path, data, mode="create")
    except FileExistsError:
        return

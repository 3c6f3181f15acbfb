"""A store belongs to one installation: it carries its mark, and others are refused."""

import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams import cli
from tamiyo.streams.admin import store_mark
from tamiyo.streams.admin.store_mark import MARK, require_own_stores
from tamiyo.streams.learner.loop import LearnerLoop
from tamiyo.streams.runtime.worker import Worker
from tamiyo.streams.settings import DecisionSettings, KernelSettings, LearnerSettings, WorkerSettings
from tamiyo.streams.stages.decisions.stage import DecisionsStage
from tamiyo.streams.stages.kernels.stage import KernelsStage
from tamiyo.streams.stages.registry import STAGES

KAFKA = KafkaSettings()


class Cluster:
    """Replaces the broker: processes of installations on clusters of any id."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._id: str | None = None
        monkeypatch.setattr(store_mark, "Topics", lambda kafka, names: self)

    def cluster_id(self) -> str | None:
        return self._id

    def use(self, url: str, prefix: str = "blue.", *, on: str | None = "one", written: bool = True) -> None:
        """Start a process that uses a store."""
        self._id = on
        require_own_stores({url: written}, KAFKA, TopicNames(prefix=prefix))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that does not exist yet."""
    return f"file://{tmp_path}/store/kernels" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/kernels"


def marks(url: str) -> list[dict[str, Any]]:
    """The marks in a store: one, or none."""
    files, root = fsspec.core.url_to_fs(url)
    path = f"{root}/{MARK}"
    return [json.loads(files.cat_file(path))] if files.exists(path) else []


def test_the_first_process_that_writes_marks_the_store(cluster: Cluster, url: str) -> None:
    cluster.use(url)
    assert marks(url) == [{"topic_prefix": "blue.", "cluster_id": "one"}]
    cluster.use(url)
    cluster.use(url, written=False)
    assert marks(url) == [{"topic_prefix": "blue.", "cluster_id": "one"}]
    files, root = fsspec.core.url_to_fs(url)
    assert [path.rsplit("/", 1)[-1] for path in files.ls(root, detail=False)] == [MARK]


def test_another_installation_is_refused_and_both_are_named(cluster: Cluster, url: str) -> None:
    cluster.use(url)
    for written in (True, False):
        with pytest.raises(ConfigurationError) as refused:
            cluster.use(url, "green.", on="two", written=written)
        text = str(refused.value)
        assert "belongs to the installation with topic prefix 'blue.' on cluster one, and this is the one" in text
        assert (
            "with topic prefix 'green.' on cluster two: give this one a store of its own with TAMIYO_STORE_URL" in text
        )
        assert url in text
        assert f"remove {url}/{MARK}" in text
    with pytest.raises(ConfigurationError, match="without a topic prefix on cluster one"):
        cluster.use(url, "")
    with pytest.raises(ConfigurationError, match="on cluster two"):
        cluster.use(url, on="two")
    assert marks(url) == [{"topic_prefix": "blue.", "cluster_id": "one"}]


def test_a_broker_without_an_id_is_known_by_the_prefix(cluster: Cluster, url: str) -> None:
    cluster.use(url, on=None)
    cluster.use(url, on="one")
    with pytest.raises(ConfigurationError):
        cluster.use(url, "green.", on=None)


def test_an_embedded_broker_is_the_same_at_every_start_and_no_other(cluster: Cluster, url: str) -> None:
    cluster.use(url, on="mockCluster1585fbbc3480")
    cluster.use(url, on="mockCluster7777fbbc9999")
    assert marks(url) == [{"topic_prefix": "blue.", "cluster_id": "embedded"}]
    with pytest.raises(ConfigurationError, match="on cluster embedded"):
        cluster.use(url, on="one")


def test_a_reader_accepts_a_store_without_a_mark_and_writes_none(cluster: Cluster, url: str) -> None:
    cluster.use(url, written=False)
    assert marks(url) == []
    files, root = fsspec.core.url_to_fs(url)
    assert not files.exists(root)


def test_of_two_that_begin_at_once_one_gets_the_store(
    cluster: Cluster, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = store_mark._create

    def slower(*arguments: Any) -> None:
        monkeypatch.setattr(store_mark, "_create", create)
        cluster.use(url, "green.")
        create(*arguments)

    monkeypatch.setattr(store_mark, "_create", slower)
    with pytest.raises(ConfigurationError, match=r"with topic prefix 'green\.' on cluster one, and this is"):
        cluster.use(url)
    assert marks(url) == [{"topic_prefix": "green.", "cluster_id": "one"}]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"topic_prefix": 3, "cluster_id": null}', b'{"topic_prefix": ""}', b"\xff"]
)
def test_a_mark_that_cannot_be_read_is_not_replaced(cluster: Cluster, url: str, content: bytes) -> None:
    files, root = fsspec.core.url_to_fs(url)
    files.makedirs(root)
    files.pipe_file(f"{root}/{MARK}", content)
    with pytest.raises(ConfigurationError, match=r"is not the mark of a store: .*; remove it if"):
        cluster.use(url)
    assert files.cat_file(f"{root}/{MARK}") == content


def test_a_store_that_cannot_be_written_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigurationError, match="cannot be used: "):
        cluster.use(f"file://{tmp_path}/file/kernels")


def test_secrets_of_a_store_are_not_shown(cluster: Cluster) -> None:
    url = f"memory://{uuid.uuid4().hex}/a?token=secret"
    cluster.use(url)
    with pytest.raises(ConfigurationError) as refused:
        cluster.use(url, "green.")
    assert "secret" not in str(refused.value)


def test_stages_name_their_stores() -> None:
    assert KernelsStage.stores(KernelSettings(store_url="memory://k")) == {"memory://k": True}
    assert DecisionsStage.stores(DecisionSettings(checkpoint_url="memory://c")) == {"memory://c": False}
    # A replay has a prefix of its own, and reads the policies that were recorded.
    assert DecisionsStage.stores(DecisionSettings(checkpoint_url="memory://c", recorded="monday")) == {}


@pytest.fixture
def foreign(tmp_path: Path, kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store whose kernels and checkpoints belong to another installation of the broker."""
    url = f"file://{tmp_path}/store"
    other = TopicNames(prefix="other.")
    require_own_stores({f"{url}/kernels": True, f"{url}/checkpoints": True}, kafka, other)
    monkeypatch.setenv("TAMIYO_STORE_URL", url)
    return url


@pytest.mark.parametrize("stage", ["kernels", "decisions"])
def test_a_worker_refuses_a_foreign_store(foreign: str, kafka: KafkaSettings, names: TopicNames, stage: str) -> None:
    worker = Worker({stage: STAGES[stage]}, WorkerSettings(), kafka, names)
    with pytest.raises(ConfigurationError, match=r"installation with topic prefix 'other\.' on cluster embedded"):
        asyncio.run(worker.run())


def test_a_learner_refuses_a_foreign_store(foreign: str, kafka: KafkaSettings, names: TopicNames) -> None:
    loop = LearnerLoop(LearnerSettings(), kafka, names)
    with pytest.raises(ConfigurationError, match=r"installation with topic prefix 'other\.' on cluster embedded"):
        loop.run()
    assert not loop.started


@pytest.mark.parametrize("command", [["policy", "list"], ["worker", "--no-supervise", "--stage", "kernels"]])
def test_a_command_on_a_foreign_store_ends_with_status_1(
    foreign: str,
    kafka: KafkaSettings,
    names: TopicNames,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)
    monkeypatch.setattr(sys, "argv", ["tamiyo", *command, "-b", kafka.bootstrap_servers])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "tamiyo: the store" in capsys.readouterr().err

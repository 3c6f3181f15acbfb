"""A registry of this machine that stops and starts."""

import os
from pathlib import Path

import pytest

from tamiyo.evaluation.common.local_registry import LocalRegistry
from tamiyo.schemas.client.registry import Registry, RegistrySettings
from tamiyo.schemas.errors import RegistryError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.streams.admin import schema_registry


@pytest.mark.skipif("REGISTRY_HOME" not in os.environ, reason="no schema registry: REGISTRY_HOME is not set")
def test_a_registry_that_was_away_has_its_url_and_its_schemas_again(tmp_path: Path) -> None:
    with LocalRegistry(os.environ["REGISTRY_HOME"], tmp_path) as local:
        registry, names = Registry(RegistrySettings(url=local.url)), TopicNames()
        ids = dict(schema_registry.register(registry, names))
        local.stop()
        with pytest.raises(RegistryError):
            list(schema_registry.problems(registry, names))
        local.start()
        assert list(schema_registry.problems(registry, names)) == []
        assert dict(schema_registry.register(registry, names)) == ids
    with pytest.raises(RegistryError):
        list(schema_registry.problems(registry, names))


def test_a_registry_that_does_not_start_is_reported_with_its_log(tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.write_text("#!/bin/sh\necho no port $1 for me; exit 3\n")
    start.chmod(0o755)
    with pytest.raises(RegistryError, match=r"no port [0-9]+ for me"):
        LocalRegistry(tmp_path, tmp_path / "data").start()

"""The secured Kafka, one for all tests of this folder."""

import os
from collections.abc import Iterator

import pytest

from tests.support.secure_broker import LockedKafka, locked_kafka


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LockedKafka]:
    """A node of Apache Kafka with TLS, SASL and ACLs."""
    home = os.environ.get("KAFKA_HOME")
    if not home:
        pytest.skip("TLS, SASL and ACLs are set up on a node of our own: KAFKA_HOME must name an unpacked Kafka")
    with locked_kafka(home, tmp_path_factory.mktemp("locked")) as kafka:
        yield kafka

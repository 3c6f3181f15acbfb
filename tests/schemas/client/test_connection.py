"""The reported reasons why a client cannot connect to a broker."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import KafkaError

from tamiyo.schemas.client.connection import Connection, explain
from tamiyo.schemas.errors import BrokerError, BrokerRefused
from tamiyo.schemas.kafka import KafkaSettings

HINT = "does TAMIYO_KAFKA_SECURITY_PROTOCOL=PLAINTEXT fit the broker's listener?"


def reset(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def read(connection: socket.socket) -> None:
    connection.recv(1000)


def respond(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@contextmanager
def listening(behave: Callable[[socket.socket], object]) -> Iterator[str]:
    """Handle every connection with `behave`, and close it."""

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                if ended.is_set():
                    return
                behave(connection)

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        address = server.getsockname()
        try:
            yield f"127.0.0.1:{address[1]}"
        finally:
            ended.set()
            socket.create_connection(address).close()
            thread.join()


@pytest.mark.parametrize("behave", [reset, read, respond, socket.socket.fileno])
def test_a_listener_that_breaks_off_may_want_another_protocol(behave: Callable[[socket.socket], object]) -> None:
    with listening(behave) as server:
        error = explain(KafkaSettings(bootstrap_servers=server), 1)
    assert HINT in str(error)


@pytest.mark.parametrize("server", ["127.0.0.1:1", "no.such.host.invalid:9092"])
def test_without_a_listener_the_protocol_is_not_mentioned(server: str) -> None:
    error = explain(KafkaSettings(bootstrap_servers=server), 1)
    assert error is not None
    assert HINT not in str(error)


def test_a_refused_connection_is_not_taken_for_a_wrong_protocol_however_often_it_is_tried() -> None:
    connection = Connection(KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    failures = [connection.probe(timeout_s) for timeout_s in (0.6, 0.05, 0.05)]  # the later ones report nothing new
    for failure in failures:
        assert failure is not None
        assert failure.reason.endswith("Connection refused")


@pytest.mark.parametrize(
    ("code", "error"), [(KafkaError._AUTHENTICATION, BrokerRefused), (KafkaError._TRANSPORT, BrokerError)]
)
def test_only_a_wrong_login_is_final(code: int, error: type[BrokerError]) -> None:
    connection = Connection(KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    connection._errors.append(KafkaError(code))
    failure = connection._explain(KafkaError(KafkaError._TIMED_OUT))
    assert type(failure.error("127.0.0.1:1")) is error
    assert failure.final is ("TAMIYO_KAFKA_SASL_PASSWORD" in failure.reason)

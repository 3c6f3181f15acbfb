"""How aiokafka clients connect: settings, credentials, and a start that explains why it failed."""

import asyncio
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from tamiyo.schemas.client.connection import explain
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.schemas.oauth import TokenSource
from tamiyo.streams.runtime.faust.decompression_limit import limit_decompression
from tamiyo.streams.runtime.faust.metadata_backoff import back_off_metadata
from tamiyo.streams.runtime.faust.session_renewal import renew_sessions


class AsyncTokens(AbstractTokenProvider):  # type: ignore[misc]
    """The tokens of OAUTHBEARER for aiokafka, which asks with every connection that it opens."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source

    async def token(self) -> str:
        """Return a valid token; a failure is one to connect, which aiokafka retries."""
        try:
            return (await asyncio.to_thread(self._source.token)).value
        except BrokerError as error:
            raise KafkaConnectionError(str(error)) from error

    def extensions(self) -> dict[str, str]:
        """Return what is sent to the broker with the token."""
        return self._source.extensions


def faust_credentials(kafka: KafkaSettings) -> Any:
    """Return Faust's credentials for the settings, or None for a plain connection."""
    context = kafka.ssl_context()
    if kafka.oauth is not None:
        return faust.OAuthCredentials(oauth_cb=AsyncTokens(kafka.oauth), ssl_context=context)
    if kafka.sasl is not None:
        mechanism, username, password = kafka.sasl
        return faust.SASLCredentials(mechanism=mechanism, username=username, password=password, ssl_context=context)
    return faust.SSLCredentials(context=context) if context is not None else None


def aiokafka_settings(kafka: KafkaSettings) -> dict[str, Any]:
    """Return the keyword arguments with which any aiokafka client connects."""
    limit_decompression()
    renew_sessions()
    config: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "security_protocol": kafka.security_protocol,
        "ssl_context": kafka.ssl_context(),
    }
    if kafka.oauth is not None:
        config.update(sasl_mechanism="OAUTHBEARER", sasl_oauth_token_provider=AsyncTokens(kafka.oauth))
    if kafka.sasl is not None:
        mechanism, username, password = kafka.sasl
        config.update(sasl_mechanism=mechanism, sasl_plain_username=username, sasl_plain_password=password)
    return config


async def start_reader(reader: AIOKafkaConsumer, kafka: KafkaSettings) -> None:
    """Start an aiokafka consumer.

    aiokafka reports only that it was "unable to bootstrap", so a failure is explained by a second connection.

    Raises:
        BrokerRefused: credentials, certificates or permissions are wrong.
        BrokerError: the broker cannot be reached, with the reason.
    """
    back_off_metadata(reader._client)
    try:
        await reader.start()
    except KafkaConnectionError as error:
        await reader.stop()
        raise await asyncio.to_thread(explain, kafka) or BrokerError(f"{kafka.bootstrap_servers}: {error}") from error

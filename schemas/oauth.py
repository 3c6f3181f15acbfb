"""Tokens for Kafka's SASL mechanism OAUTHBEARER: from a token endpoint, or from a function of the user.

One source of tokens serves all clients of a process, of librdkafka and of aiokafka alike, so that each token is asked
for once and every failure has the same explanation. The HTTP client is the standard library's, because training
environments install this too.
"""

import base64
import http.client
import importlib
import json
import logging
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydantic import SecretStr

from tamiyo.schemas.errors import BrokerError, BrokerRefused, ConfigurationError

__all__ = ["Token", "TokenEndpoint", "TokenSource", "load_provider", "parse_extensions", "token_source"]

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0  # of a request to the endpoint
RENEWED_AT = 0.8  # of a token's lifetime; librdkafka asks for the next one then too
RETRY_S = 5.0  # between two attempts to renew a token that is still valid
DEFAULT_LIFETIME_S = 300.0  # of a token whose endpoint does not say; shorter than what servers usually give
MAX_RESPONSE_BYTES = 1024 * 1024
SHOWN = 300  # characters of an endpoint's response in an error
MILLISECONDS = 1e11  # an expiry beyond it, in the year 5138, was not given in seconds
TEMPORARY = (408, 425, 429)  # and 5xx: statuses of a request that may succeed later
EXTENSION = re.compile(r"([A-Za-z]+)=([\x20-\x2b\x2d-\x7e]+)")  # RFC 7628, without the comma that separates them
LOGIN = (
    "see TAMIYO_KAFKA_OAUTH_TOKEN_URL, TAMIYO_KAFKA_OAUTH_CLIENT_ID, TAMIYO_KAFKA_OAUTH_CLIENT_SECRET and "
    "TAMIYO_KAFKA_OAUTH_SCOPE"
)

Provider = Callable[[], tuple[str, float]]
"""Returns a token, and the second since the epoch at which it expires."""
Extensions = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its lifetime."""

    value: str = field(repr=False)
    expires_at: float
    """Seconds since the epoch."""
    renew_at: float
    """Seconds since the epoch, before it expires."""


@dataclass(frozen=True, slots=True)
class TokenEndpoint:
    """A token endpoint of OAuth 2.0, asked by the grant of client credentials (RFC 6749, section 4.4)."""

    url: str
    client_id: str
    client_secret: SecretStr
    scope: str | None = None
    ca_file: str | None = None

    def __call__(self) -> tuple[str, float]:
        """Ask for a token.

        Returns:
            The token, and the second since the epoch at which it expires.

        Raises:
            BrokerRefused: The endpoint refuses the client, or what it returns is not a token.
            BrokerError: It is unavailable.
        """
        response = self._request()
        token, lifetime_s = response.get("access_token"), response.get("expires_in", DEFAULT_LIFETIME_S)
        if not isinstance(token, str) or not token:
            raise BrokerRefused(f"{self.url} returned no access_token, but {sorted(response)}: is it a token endpoint?")
        try:
            return token, time.time() + float(lifetime_s)
        except (TypeError, ValueError):
            raise BrokerRefused(f"{self.url} returned expires_in={lifetime_s!r}: expected seconds") from None

    def opener(self) -> urllib.request.OpenerDirector:
        """Return an HTTP client that follows no redirect, since the secret is for the configured host.

        Raises:
            ConfigurationError: The file of the certificate authorities cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ConfigurationError(f"TAMIYO_KAFKA_OAUTH_CA_FILE={self.ca_file} cannot be used: {error}") from error
        return urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))

    def _request(self) -> dict[str, Any]:
        form = {"grant_type": "client_credentials", **({"scope": self.scope} if self.scope else {})}
        login = base64.b64encode(f"{self.client_id}:{self.client_secret.get_secret_value()}".encode()).decode()
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked in the settings
            self.url,
            urllib.parse.urlencode(form).encode(),
            {"Authorization": f"Basic {login}", "Accept": "application/json"},
        )
        try:
            with self.opener().open(request, timeout=TIMEOUT_S) as response:
                body = response.read(MAX_RESPONSE_BYTES)
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            failed = BrokerRefused if isinstance(reason, ssl.SSLCertVerificationError) else BrokerError
            hint = "; see TAMIYO_KAFKA_OAUTH_CA_FILE" if failed is BrokerRefused else ""
            raise failed(f"the token endpoint {self.url} cannot be reached: {reason}{hint}") from None
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BrokerRefused(f"{self.url} did not return a JSON object: is it a token endpoint?")
        return found

    def _refusal(self, error: urllib.error.HTTPError) -> BrokerError:
        with error:
            text = error.read(MAX_RESPONSE_BYTES).decode("utf-8", "replace")
        # An endpoint may repeat what it was sent.
        text = " ".join(text.replace(self.client_secret.get_secret_value(), "**********").split())[:SHOWN]
        answer = f"the token endpoint {self.url} responds with status {error.code}: {text or error.reason}"
        if error.code in TEMPORARY or error.code >= 500:
            return BrokerError(answer)
        return BrokerRefused(f"{answer}; {LOGIN}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow no redirect."""


class TokenSource:
    """Keeps a token and renews it before it expires. Thread-safe."""

    def __init__(self, name: str, provider: Provider, extensions: Extensions = ()) -> None:
        """Make a source; the first token is fetched when it is needed.

        Args:
            name: The setting that the tokens come from, for messages.
            provider: Fetches a token.
            extensions: SASL extensions, sent to the broker with each token.
        """
        self.extensions = dict(extensions)
        self._name = name
        self._provider = provider
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._retry_at = 0.0
        self._warned = False

    def token(self) -> Token:
        """Return a valid token; waits while one is fetched.

        Raises:
            BrokerRefused: The settings are wrong: another attempt cannot succeed.
            BrokerError: There is no token now, and there may be one later.
        """
        with self._lock:
            now, token = time.time(), self._token
            if token is not None and now < token.renew_at:
                return token
            valid = token is not None and now < token.expires_at
            if token is not None and valid and now < self._retry_at:
                return token
            try:
                self._token = self._fetch()
            except BrokerError as error:
                if token is None or not valid:
                    raise
                self._retry_at = now + RETRY_S
                log.warning("the token for Kafka was not renewed, and expires in %.0f s: %s",
                            token.expires_at - now, error)  # fmt: skip
                return token
            return self._token

    def librdkafka(self, _config: str) -> tuple[str, float, str, dict[str, str]]:
        """Return the token as confluent-kafka's `oauth_cb` does; librdkafka retries after an error, 10 s later."""
        try:
            token = self.token()
        except BrokerError as error:
            # confluent-kafka drops the error: clients learn only that there was one.
            if not self._warned:
                log.warning("no token for Kafka: %s", error)
            self._warned = True
            raise
        self._warned = False
        return token.value, token.expires_at, "", self.extensions

    def _fetch(self) -> Token:
        asked_at = time.time()
        try:
            found = self._provider()
        except BrokerError:
            raise
        except Exception as error:
            raise BrokerError(f"{self._name} failed: {type(error).__name__}: {error}") from error
        try:
            value, expires_at = found
            expires_at = float(expires_at)
        except (TypeError, ValueError):
            raise BrokerRefused(
                f"{self._name} returned a {type(found).__name__}: expected (token, expiry in seconds since the epoch)"
            ) from None
        if not isinstance(value, str) or not value:
            raise BrokerRefused(f"{self._name} returned a token of type {type(value).__name__}: expected a text")
        if not asked_at < expires_at < MILLISECONDS:
            raise BrokerRefused(
                f"{self._name} returned a token that expires at {expires_at:.0f}: expected seconds since the epoch, "
                f"after now, which is {asked_at:.0f}"
            )
        return Token(value, expires_at, asked_at + RENEWED_AT * (expires_at - asked_at))


@lru_cache
def token_source(origin: TokenEndpoint | str, extensions: Extensions = ()) -> TokenSource:
    """Return the process's only source of these tokens.

    Args:
        origin: A token endpoint, or `module:function`.
        extensions: SASL extensions.

    Raises:
        ConfigurationError: There is no such function.
    """
    if isinstance(origin, TokenEndpoint):
        return TokenSource(f"TAMIYO_KAFKA_OAUTH_TOKEN_URL={origin.url}", origin, extensions)
    return TokenSource(f"TAMIYO_KAFKA_OAUTH_TOKEN_PROVIDER={origin}", load_provider(origin), extensions)


def load_provider(place: str) -> Provider:
    """Import the function that `module:function` names.

    Raises:
        ConfigurationError: There is no such function.
    """
    setting = f"TAMIYO_KAFKA_OAUTH_TOKEN_PROVIDER={place}"
    module, _, name = place.partition(":")
    if not module or not name:
        raise ConfigurationError(f"{setting}: expected module:function, for example mycompany.kafka:token")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does when it is imported
        raise ConfigurationError(
            f"{setting} cannot be imported: {type(error).__name__}: {error}; the module must be installed, or lie in "
            "a folder of PYTHONPATH"
        ) from error
    if not callable(found):
        raise ConfigurationError(f"{setting} is a {type(found).__name__}: expected a function")
    provider: Provider = found
    return provider


def parse_extensions(text: str) -> Extensions:
    """Return the SASL extensions in `name=value,name=value`.

    Raises:
        ConfigurationError: One is not of that form; `auth` is not allowed, since the token has that name.

    Example:
        >>> parse_extensions("logicalCluster=lkc-1,identityPoolId=pool-2")
        (('logicalCluster', 'lkc-1'), ('identityPoolId', 'pool-2'))
    """
    found = [EXTENSION.fullmatch(each.strip()) for each in text.split(",")]
    pairs = tuple((each[1], each[2]) for each in found if each is not None and each[1] != "auth")
    if len(pairs) < len(found):
        raise ConfigurationError(
            f"TAMIYO_KAFKA_OAUTH_EXTENSIONS={text}: expected name=value, several separated by commas, with letters "
            "in a name, which is not auth"
        )
    return pairs

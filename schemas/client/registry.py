"""A client of a schema registry: the settings, and the few requests of Confluent's API that Tamiyo needs.

It uses the standard library's HTTP client, because training environments install it too: confluent-kafka's own client
would add httpx, Authlib and three more packages.
"""

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from tamiyo.schemas.errors import ConfigurationError, RegistryError
from tamiyo.schemas.settings import Settings

MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
COMPATIBILITY = "BACKWARD_TRANSITIVE"
"""Every schema reads the records of all earlier ones: upgrade readers before writers, and old topics stay readable."""
MAX_RESPONSE_BYTES = 4 * 1024 * 1024  # the longest schema has 12 kB


class RegistrySettings(Settings):
    """Settings of the registry, read from `TAMIYO_REGISTRY_*`. Secrets never appear in `repr`."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_REGISTRY_")

    url: str | None = Field(
        None,
        description="URL of Confluent's API at the registry, several of one registry separated by commas; unset: no "
        "registry",
        examples=["http://registry-1:8081,http://registry-2:8081"],
    )
    username: str | None = Field(
        None, description="User or API key, for HTTP basic authentication", examples=["tamiyo"]
    )
    password: SecretStr | None = Field(None, description="That user's password, or the API key's secret")
    ssl_ca_file: str | None = Field(None, description="PEM file of the certificate authorities to trust")
    ssl_cert_file: str | None = Field(None, description="PEM file of the client's certificate")
    ssl_key_file: str | None = Field(None, description="PEM file of the client's key")
    timeout_s: float = Field(
        3.0, gt=0, le=30, description="Seconds to wait for a response; a stage is blocked meanwhile"
    )
    startup_timeout_s: float = Field(60.0, gt=0, description="Seconds to wait for an unavailable registry at startup")

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str | None) -> str | None:
        return ",".join(_checked(each.strip()) for each in url.split(",")) if url else None

    @model_validator(mode="after")
    def _both(self) -> "RegistrySettings":
        if (self.username is None) != (self.password is None):
            raise ValueError("set both TAMIYO_REGISTRY_USERNAME and TAMIYO_REGISTRY_PASSWORD, or neither")
        return self


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not parts.netloc.isascii() or " " in url:
        raise ValueError("must begin with http:// or https:// and name a host; several are separated by commas")
    if parts.port == 0:  # reading it raises ValueError for what is no port
        raise ValueError("must have a port from 1 to 65535")
    if parts.username is not None or parts.password is not None:  # every error message shows the URL
        raise ValueError("must not contain credentials: set TAMIYO_REGISTRY_USERNAME and TAMIYO_REGISTRY_PASSWORD")
    return url.rstrip("/")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow no redirect: the credentials are for the configured host."""


class Registry:
    """A registry's subjects. Thread-safe; nothing is cached. Of several URLs each is tried until one responds.

    Raises:
        RegistryError: From every method: `temporary` if the registry is unavailable or fails, else if it refuses.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        """Make a client; it connects with the first request.

        Args:
            settings: Where the registry is, and how to log in.

        Raises:
            ConfigurationError: There is no URL, or a certificate cannot be used.
        """
        if settings.url is None:
            raise ConfigurationError("expected the URL of a schema registry: set TAMIYO_REGISTRY_URL")
        self.url = settings.url
        self._urls = settings.url.split(",")
        self._preferred = 0  # the one that responded last: a dead one would cost every request its timeout
        self._timeout_s = settings.timeout_s
        self._headers = {"Content-Type": MEDIA_TYPE, "Accept": f"{MEDIA_TYPE}, application/json"}
        if settings.username is not None and settings.password is not None:
            pair = f"{settings.username}:{settings.password.get_secret_value()}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        try:
            context = ssl.create_default_context(cafile=settings.ssl_ca_file)
            if settings.ssl_cert_file:
                context.load_cert_chain(settings.ssl_cert_file, settings.ssl_key_file)
        except OSError as error:
            raise ConfigurationError(f"TAMIYO_REGISTRY_SSL_*_FILE cannot be used: {error}") from error
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))

    def find(self, subject: str, schema: str) -> int | None:
        """Return the id of `schema` under `subject`; None if it is not registered there."""
        response = self._call("POST", f"subjects/{quote(subject, safe='')}", {"schema": schema}, absent_is_none=True)
        return None if response is None else _integer(response, "id")

    def register(self, subject: str, schema: str) -> int:
        """Register `schema` under `subject` and return its id; a schema that is registered already keeps its id."""
        response = self._call("POST", f"subjects/{quote(subject, safe='')}/versions", {"schema": schema})
        return _integer(response, "id")

    def remove(self, subject: str) -> None:
        """Remove a subject with all its versions, for good, if there is one.

        A schema that another subject has too keeps its id.
        """
        path = f"subjects/{quote(subject, safe='')}"
        for each in (path, f"{path}?permanent=true"):  # a registry removes for good only what was removed before
            self._call("DELETE", each, kind=list, absent_is_none=True)

    def version_numbers(self, subject: str) -> list[int]:
        """Return the numbers of the subject's versions; empty if there is no such subject."""
        response = self._call("GET", f"subjects/{quote(subject, safe='')}/versions", kind=list, absent_is_none=True)
        return [each for each in response or [] if isinstance(each, int)]

    def schema(self, schema_id: int) -> str | None:
        """Return the schema of an id as JSON text; None if there is none."""
        response = self._call("GET", f"schemas/ids/{schema_id}", absent_is_none=True)
        return None if response is None else str(response.get("schema", ""))

    def compatibility(self, subject: str) -> str | None:
        """Return the subject's own compatibility level; None if it has none."""
        response = self._call("GET", f"config/{quote(subject, safe='')}", absent_is_none=True)
        return None if response is None else str(response.get("compatibilityLevel") or response.get("compatibility"))

    def set_compatibility(self, subject: str, level: str) -> None:
        """Set the subject's compatibility level, e.g. BACKWARD_TRANSITIVE."""
        self._call("PUT", f"config/{quote(subject, safe='')}", {"compatibility": level})

    def compatible(self, subject: str, schema: str) -> bool:
        """Return whether `schema` may become the subject's next version."""
        response = self._call("POST", f"compatibility/subjects/{quote(subject, safe='')}/versions", {"schema": schema})
        return bool(response.get("is_compatible"))

    def _call(
        self, method: str, path: str, body: object = None, *, kind: type = dict, absent_is_none: bool = False
    ) -> Any:
        first = self._preferred
        for attempt in range(len(self._urls)):
            number = (first + attempt) % len(self._urls)
            try:
                response = self._call_one(self._urls[number], method, path, body, kind, absent_is_none)
            except RegistryError as error:
                if not error.temporary or attempt + 1 == len(self._urls):
                    raise
            else:
                self._preferred = number
                return response
        raise AssertionError("there is at least one URL")

    def _call_one(self, url: str, method: str, path: str, body: object, kind: type, absent_is_none: bool) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked in the settings
            f"{url}/{path}",
            None if body is None else json.dumps(body).encode(),
            self._headers,
            method=method,
        )
        try:
            with self._opener.open(request, timeout=self._timeout_s) as reply:
                data = reply.read(MAX_RESPONSE_BYTES + 1)
            if len(data) > MAX_RESPONSE_BYTES:
                raise ValueError(f"more than {MAX_RESPONSE_BYTES} bytes")
            response = json.loads(data)
            if not isinstance(response, kind):
                raise ValueError(f"{str(response)[:200]} instead of a {kind.__name__}")
            return response
        except urllib.error.HTTPError as refusal:
            with refusal:
                if refusal.code == 404 and absent_is_none:
                    return None
                raise self._refused(url, method, path, refusal) from refusal
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            reason = getattr(error, "reason", error)
            certificate = isinstance(reason, ssl.SSLCertVerificationError)
            raise RegistryError(
                f"the schema registry at {url} gives no valid response: {reason}"
                + (" (set TAMIYO_REGISTRY_SSL_CA_FILE)" if certificate else ""),
                temporary=not certificate,
            ) from error

    @staticmethod
    def _refused(url: str, method: str, path: str, refusal: urllib.error.HTTPError) -> RegistryError:
        details = refusal.read(2_000).decode(errors="replace").strip()
        if refusal.code in (401, 403):
            advice = "check TAMIYO_REGISTRY_USERNAME and TAMIYO_REGISTRY_PASSWORD"
            return RegistryError(f"the schema registry at {url} refuses access ({refusal.code}): {advice}")
        # 408 (timeout) and 429 (too many requests) pass; any other status below 500 is an error of the request.
        temporary = refusal.code >= 500 or refusal.code in (408, 429)
        message = f"the schema registry returned {refusal.code} for {method} {url}/{path}: {details}"
        return RegistryError(message, temporary=temporary)


def _integer(response: Any, name: str) -> int:
    try:
        return int(response[name])
    except (KeyError, TypeError, ValueError):
        raise RegistryError(f"expected {name} in the schema registry's response, got {str(response)[:200]}") from None

"""How to reach a schema registry, and the few requests of Confluent's API that are needed.

The standard library's HTTP client, since a training environment gets this too: confluent-kafka's own client would bring
httpx, Authlib and three more packages.
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
from pydantic_settings import BaseSettings, SettingsConfigDict

from tamiyo.schemas.errors import ConfigurationError, RegistryError

MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
COMPATIBILITY = "BACKWARD_TRANSITIVE"
"""A new schema can read what any earlier one wrote: readers are upgraded before writers, old topics stay readable."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024  # the longest schema is 12 kB


class RegistrySettings(BaseSettings):
    """Read from `TAMIYO_REGISTRY_*`; secrets never show in `repr`. Without a URL there is no registry."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_REGISTRY_", extra="ignore")

    url: str | None = Field(None, description="Where the registry speaks Confluent's API; unset: no registry")
    username: str | None = Field(None, description="For HTTP basic authentication; an API key")
    password: SecretStr | None = Field(None, description="For HTTP basic authentication; an API secret")
    ssl_ca_file: str | None = Field(None, description="PEM file of the certificate authorities to trust")
    ssl_cert_file: str | None = Field(None, description="PEM file of the client's certificate")
    ssl_key_file: str | None = Field(None, description="PEM file of the client's key")
    timeout_s: float = Field(3.0, gt=0, le=30, description="How long an answer may take; a stage waits for it")
    startup_timeout_s: float = Field(60.0, gt=0, description="How long an unreachable registry is waited for")

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str | None) -> str | None:
        if not url:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must begin http:// or https:// and name a host")
        if parts.username is not None or parts.password is not None:  # it would stand in every error
            raise ValueError("must not hold credentials: set TAMIYO_REGISTRY_USERNAME and TAMIYO_REGISTRY_PASSWORD")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _both(self) -> "RegistrySettings":
        if (self.username is None) != (self.password is None):
            raise ValueError("TAMIYO_REGISTRY_USERNAME and TAMIYO_REGISTRY_PASSWORD go together")
        return self


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: the credentials are for the host that was named."""


class Registry:
    """A registry's subjects. Thread-safe; nothing is cached.

    Every method raises RegistryError: `temporary` where the registry does not answer or fails, else where it refuses.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        """Raise ConfigurationError where there is no URL, or a certificate cannot be used."""
        if settings.url is None:
            raise ConfigurationError("there is no schema registry: set TAMIYO_REGISTRY_URL")
        self.url = settings.url
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
        """Return the id of `schema` under `subject`, None where it is not registered."""
        answer = self._call("POST", f"subjects/{quote(subject, safe='')}", {"schema": schema}, absent_is_none=True)
        return None if answer is None else _integer(answer, "id")

    def register(self, subject: str, schema: str) -> int:
        """Register `schema` and return its id; the same schema again gets the same id."""
        answer = self._call("POST", f"subjects/{quote(subject, safe='')}/versions", {"schema": schema})
        return _integer(answer, "id")

    def version_numbers(self, subject: str) -> list[int]:
        """Return the numbers of the subject's versions; none where there is no such subject."""
        answer = self._call("GET", f"subjects/{quote(subject, safe='')}/versions", kind=list, absent_is_none=True)
        return [each for each in answer or [] if isinstance(each, int)]

    def schema(self, schema_id: int) -> str | None:
        """Return the schema under an id, as JSON, None where there is none."""
        answer = self._call("GET", f"schemas/ids/{schema_id}", absent_is_none=True)
        return None if answer is None else str(answer.get("schema", ""))

    def compatibility(self, subject: str) -> str | None:
        """Return the subject's own compatibility level, None where it has none."""
        answer = self._call("GET", f"config/{quote(subject, safe='')}", absent_is_none=True)
        return None if answer is None else str(answer.get("compatibilityLevel") or answer.get("compatibility"))

    def set_compatibility(self, subject: str, level: str) -> None:
        """Set what later versions of a subject must be compatible with."""
        self._call("PUT", f"config/{quote(subject, safe='')}", {"compatibility": level})

    def compatible(self, subject: str, schema: str) -> bool:
        """Return whether `schema` could be the subject's next version."""
        answer = self._call("POST", f"compatibility/subjects/{quote(subject, safe='')}/versions", {"schema": schema})
        return bool(answer.get("is_compatible"))

    def _call(
        self, method: str, path: str, body: object = None, *, kind: type = dict, absent_is_none: bool = False
    ) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked in the settings
            f"{self.url}/{path}",
            None if body is None else json.dumps(body).encode(),
            self._headers,
            method=method,
        )
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                data = response.read(MAX_ANSWER_BYTES + 1)
            if len(data) > MAX_ANSWER_BYTES:
                raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
            answer = json.loads(data)
            if not isinstance(answer, kind):
                raise ValueError(f"{str(answer)[:200]} instead of a {kind.__name__}")
            return answer
        except urllib.error.HTTPError as refusal:
            with refusal:
                if refusal.code == 404 and absent_is_none:
                    return None
                raise self._refused(method, path, refusal) from refusal
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            reason = getattr(error, "reason", error)
            certificate = isinstance(reason, ssl.SSLCertVerificationError)
            raise RegistryError(
                f"the schema registry at {self.url} does not answer as it should: {reason}"
                + (" (set TAMIYO_REGISTRY_SSL_CA_FILE)" if certificate else ""),
                temporary=not certificate,
            ) from error

    def _refused(self, method: str, path: str, refusal: urllib.error.HTTPError) -> RegistryError:
        said = refusal.read(2_000).decode(errors="replace").strip()
        if refusal.code in (401, 403):
            advice = "check TAMIYO_REGISTRY_USERNAME and TAMIYO_REGISTRY_PASSWORD"
            return RegistryError(f"the schema registry at {self.url} refuses us ({refusal.code}): {advice}")
        # 408 and 429: too slow, too much. Anything below 500 else is our mistake, and stays one.
        temporary = refusal.code >= 500 or refusal.code in (408, 429)
        what = f"the schema registry answers {refusal.code} to {method} {self.url}/{path}: {said}"
        return RegistryError(what, temporary=temporary)


def _integer(answer: Any, name: str) -> int:
    try:
        return int(answer[name])
    except (KeyError, TypeError, ValueError):
        raise RegistryError(f"the schema registry's answer has no {name}: {str(answer)[:200]}") from None

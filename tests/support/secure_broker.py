"""A real Kafka with TLS, SASL and ACLs, and a new certificate authority."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.streams.admin.brokers import LocalKafka
from tests.support.token_server import TokenServer

PASSWORD = "correct-horse-7391"  # also the secret of every client of OAuth
MECHANISMS = {
    "SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256,
    "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512,
}
LISTENERS = {
    "TLS": "SSL",
    "EXPIRED": "SSL",
    "SASLTLS": "SASL_SSL",
    "SASLPLAIN": "SASL_PLAINTEXT",
    "OAUTH": "SASL_PLAINTEXT",
    "REAUTH": "SASL_PLAINTEXT",
}
REAUTH_S = 4.0
"""How long a login to the listener REAUTH lasts; a fetch takes half a second of it."""


@dataclass(frozen=True, slots=True)
class LockedKafka:
    """The node, and settings of its users. The plain listener is for the super user."""

    node: LocalKafka
    folder: Path

    @property
    def admin(self) -> KafkaSettings:
        """Return settings of the super user."""
        return KafkaSettings(bootstrap_servers=self.node.bootstrap_servers)

    @property
    def ca_file(self) -> str:
        """The authority that signed the node's certificates."""
        return str(self.folder / "ca.pem")

    def user(self, name: str = "user", mechanism: str = "SCRAM-SHA-512", **changes: object) -> KafkaSettings:
        """Return settings of a user over TLS, with `changes`."""
        settings = {
            "bootstrap_servers": self.node.servers["SASLTLS"],
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": mechanism,
            "sasl_username": name,
            "sasl_password": PASSWORD,
            "ssl_ca_file": self.ca_file,
        }
        return KafkaSettings(**{**settings, **changes})  # type: ignore[arg-type]

    def tls(self, **changes: object) -> KafkaSettings:
        """Return settings of a client that authenticates by certificate, with `changes`."""
        settings = {
            "bootstrap_servers": self.node.servers["TLS"],
            "security_protocol": "SSL",
            "ssl_ca_file": self.ca_file,
            "ssl_cert_file": str(self.folder / "client.pem"),
        }
        return KafkaSettings(**{**settings, **changes})  # type: ignore[arg-type]

    def oauth(self, tokens: TokenServer, **changes: object) -> KafkaSettings:
        """Return settings of a client that gets its tokens from `tokens`, with `changes`."""
        settings = {
            "bootstrap_servers": self.node.servers["OAUTH"],
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "OAUTHBEARER",
            "oauth_token_url": tokens.url,
            "oauth_client_id": "user",
            "oauth_client_secret": PASSWORD,
        }
        return KafkaSettings(**{**settings, **changes})  # type: ignore[arg-type]

    def add_user(self, name: str) -> None:
        """Let `name` log in by SCRAM."""
        admin = AdminClient(self.admin.librdkafka())
        for mechanism in MECHANISMS.values():
            info = ScramCredentialInfo(mechanism, 4096)
            change = UserScramCredentialUpsertion(name, info, PASSWORD.encode())
            for done in admin.alter_user_scram_credentials([change]).values():
                done.result()


def write_certificate(certificate: trustme.LeafCert, path: Path) -> None:
    """Write key and chain into one PEM file, the key in PKCS #8 as Java requires."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    chain = b"".join(each.bytes() for each in certificate.cert_chain_pems)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + chain)


@contextmanager
def locked_kafka(home: str, folder: Path) -> Iterator[LockedKafka]:
    """Start a node from `home` whose certificates lie in `folder`."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "other-ca.pem"))
    yesterday = datetime.now(UTC) - timedelta(days=1)
    write_certificate(authority.issue_cert("client", common_name="client"), folder / "client.pem")
    write_certificate(authority.issue_cert("localhost"), folder / "server.pem")
    write_certificate(authority.issue_cert("localhost", not_after=yesterday), folder / "expired.pem")
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_user="{PASSWORD}";'
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.truststore.type": "PEM",
        "ssl.keystore.location": str(folder / "server.pem"),
        "ssl.truststore.location": str(folder / "ca.pem"),
        "listener.name.tls.ssl.client.auth": "required",
        "listener.name.expired.ssl.keystore.location": str(folder / "expired.pem"),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:user;User:CN=client",
    }
    for listener in ("sasltls", "saslplain"):
        properties[f"listener.name.{listener}.sasl.enabled.mechanisms"] = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"
        properties[f"listener.name.{listener}.plain.sasl.jaas.config"] = plain
        for mechanism in MECHANISMS:
            properties[f"listener.name.{listener}.{mechanism.lower()}.sasl.jaas.config"] = scram
    # The tokens' claims are checked, and their signatures are not: those are between the broker and the token's issuer.
    module = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
    login = f'{module} required unsecuredLoginStringClaim_sub="broker";'
    for listener in ("oauth", "reauth"):
        properties[f"listener.name.{listener}.sasl.enabled.mechanisms"] = "OAUTHBEARER"
        properties[f"listener.name.{listener}.oauthbearer.sasl.jaas.config"] = login
    properties["listener.name.reauth.oauthbearer.connections.max.reauth.ms"] = str(round(1000 * REAUTH_S))
    with LocalKafka(home, listeners=LISTENERS, properties=properties) as node:
        kafka = LockedKafka(node, folder)
        kafka.add_user("user")
        yield kafka

"""Every error Tamiyo raises on purpose.

    TamiyoError
    ├── ConfigurationError      a setting, flag or environment variable is wrong; the message says what to set
    ├── SchemaError             bytes or values do not fit the wire contract
    │   ├── DecodeError         bytes are not the Avro record that was expected
    │   └── RecordError         a record's values are out of range, not finite, or contradict each other
    ├── BrokerError             Kafka is unreachable, refuses, or lacks what was asked of it
    │   ├── RegistryError       the schema registry is; says whether that may pass
    │   └── BrokerRefused       credentials, certificates or permissions do not do: trying again will not help
    ├── KernelError             a kernel cannot be built, loaded or trusted
    │   ├── KernelIncompatible  shapes, dtype or version do not fit the layer
    │   └── KernelCorrupt       stored bytes do not match their checksum or their metadata
    ├── AdaptationRefused       the host's own limits forbid a decision; carries the limit that forbade it
    ├── PolicyError             a policy or checkpoint cannot be used
    │   ├── CheckpointCorrupt   stored weights do not match their header
    │   └── UpdateRejected      a learning step failed validation and was rolled back
    ├── RecordingError          a recording's files are damaged, unfinished, or of another format
    └── DatasetError            a training task's data cannot be made

Messages say what was expected, what came, and what to do about it.
"""


class TamiyoError(Exception):
    """Root of every error raised on purpose."""


class ConfigurationError(TamiyoError):
    """A setting is missing or wrong."""


class SchemaError(TamiyoError):
    """Bytes or values that do not fit the wire contract."""


class DecodeError(SchemaError):
    """Bytes that are not the record expected on this topic."""


class RecordError(SchemaError):
    """A record whose values are out of range or contradict each other."""


class BrokerError(TamiyoError):
    """Kafka is unreachable, refuses, or cannot do what was asked."""


class RegistryError(BrokerError):
    """The schema registry is unreachable, refuses, or lacks a schema."""

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary
        """Whether asking again later may help."""


class BrokerRefused(BrokerError):
    """Kafka refuses this client: its credentials, certificates or permissions do not do."""


class KernelError(TamiyoError):
    """A kernel cannot be built, loaded or trusted."""


class KernelIncompatible(KernelError):
    """A kernel whose shapes, dtype or version do not fit its layer."""


class KernelCorrupt(KernelError):
    """Stored kernel bytes that do not match their checksum or metadata."""


class AdaptationRefused(TamiyoError):
    """The host's own limits forbid this decision."""

    def __init__(self, limit: str, message: str) -> None:
        super().__init__(message)
        self.limit = limit


class PolicyError(TamiyoError):
    """A policy or checkpoint cannot be used."""


class CheckpointCorrupt(PolicyError):
    """Stored weights that do not match their header."""


class UpdateRejected(PolicyError):
    """A learning step that failed validation and was rolled back."""


class RecordingError(TamiyoError):
    """A recording that cannot be read or written."""


class DatasetError(TamiyoError):
    """A training task's data cannot be made."""

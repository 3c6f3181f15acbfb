"""The errors that Tamiyo raises.

    TamiyoError
    ├── ConfigurationError      a setting, flag or environment variable is wrong; the message names it
    ├── SchemaError             bytes or values do not fit the wire contract
    │   ├── DecodeError         bytes are not the expected Avro record
    │   └── RecordError         a record's values are out of range, not finite, or contradict each other
    ├── BrokerError             Kafka is unreachable, refuses a request, or cannot fulfil it
    │   ├── RegistryError       the same for the schema registry; `temporary` if a retry may succeed
    │   └── BrokerRefused       credentials, certificates or permissions are wrong: a retry cannot succeed
    ├── KernelError             a kernel cannot be built, loaded or trusted
    │   ├── KernelIncompatible  shapes, dtype or version do not fit the layer
    │   └── KernelCorrupt       stored bytes do not match their checksum or their metadata
    ├── AdaptationRefused       the host's own limits forbid a decision; `limit` names the one
    ├── PolicyError             a policy or checkpoint cannot be used
    │   ├── CheckpointCorrupt   stored weights do not match their header
    │   └── UpdateRejected      an update of the policy failed its checks and was rolled back
    │       └── StepTooLarge    it moved the policy too far
    ├── RecordingError          a recording's files are damaged, unfinished, or of another format
    ├── ExportError             an export's files cannot be written
    └── DatasetError            a training task's data cannot be made

Messages state what was expected, what was found, and what to do.
"""


class TamiyoError(Exception):
    """Root of all errors of Tamiyo."""


class ConfigurationError(TamiyoError):
    """A setting is missing or wrong."""


class SchemaError(TamiyoError):
    """Bytes or values that do not fit the wire contract."""


class DecodeError(SchemaError):
    """Bytes that are not the record of their topic."""


class RecordError(SchemaError):
    """A record whose values are out of range or contradict each other."""


class BrokerError(TamiyoError):
    """Kafka is unreachable, refuses a request, or cannot fulfil it."""


class RegistryError(BrokerError):
    """The schema registry is unreachable, refuses a request, or lacks a schema."""

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        """Make the error.

        Args:
            message: What failed, and what to do.
            temporary: Whether a retry may succeed.
        """
        super().__init__(message)
        self.temporary = temporary


class BrokerRefused(BrokerError):
    """Kafka refuses this client because of its credentials, certificates or permissions."""


class KernelError(TamiyoError):
    """A kernel cannot be built, loaded or trusted."""


class KernelIncompatible(KernelError):
    """A kernel whose shapes, dtype or version do not fit its layer."""


class KernelCorrupt(KernelError):
    """Stored kernel bytes that do not match their checksum or metadata."""


class AdaptationRefused(TamiyoError):
    """The host's own limits forbid this decision."""

    def __init__(self, limit: str, message: str) -> None:
        """Make the error.

        Args:
            limit: Short name of the limit, for counting.
            message: The reason in full.
        """
        super().__init__(message)
        self.limit = limit


class PolicyError(TamiyoError):
    """A policy or checkpoint cannot be used."""


class CheckpointCorrupt(PolicyError):
    """Stored weights that do not match their header."""


class UpdateRejected(PolicyError):
    """An update of the policy that failed its checks and was rolled back."""


class StepTooLarge(UpdateRejected):
    """An update that moved the policy too far: a shorter step in its direction may pass."""


class RecordingError(TamiyoError):
    """A recording that cannot be read or written."""


class ExportError(TamiyoError):
    """Files of an export that cannot be written."""


class DatasetError(TamiyoError):
    """A training task's data cannot be made."""

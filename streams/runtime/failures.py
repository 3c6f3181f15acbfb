"""What an error of a pipeline process means: the environment, its configuration, one record, or a bug."""

from aiokafka import errors
from faust.exceptions import FaustError

from tamiyo.schemas.errors import BrokerError, BrokerRefused, ConfigurationError
from tamiyo.streams.process.exit_codes import EXIT_CONFIG, EXIT_SOFTWARE, EXIT_TEMPFAIL

TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
"""Errors of Kafka about a batch that a topic does not take: whoever sends it again gets them again."""
CONFIGURATION = (
    ConfigurationError,
    BrokerRefused,
    errors.KafkaConfigurationError,
    errors.AuthenticationFailedError,
    errors.AuthenticationMethodNotSupported,
    errors.SaslAuthenticationFailed,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.SecurityDisabled,
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.TransactionalIdAuthorizationFailed,
    errors.UnsupportedVersionError,
    errors.UnsupportedForMessageFormatError,
    errors.IncompatibleBrokerVersion,
    errors.UnrecognizedBrokerVersion,
    errors.UnsupportedCodecError,
    errors.InvalidTopicError,
    errors.InvalidGroupIdError,
    errors.InvalidSessionTimeoutError,
    errors.InconsistentGroupProtocolError,
    errors.InvalidConfigurationError,
    errors.InvalidRequiredAcksError,
    errors.PolicyViolationError,
    errors.InvalidTimestampError,  # the clock of this machine is more than an hour ahead of the broker's
    *TOO_LARGE,
)
"""Errors that last until somebody corrects a setting, a permission or a topic."""


def status_of(error: BaseException) -> int:
    """Return the exit status for an error: 75 where a restart may help, 78 where settings, 70 where code is wrong."""
    if isinstance(error, CONFIGURATION):
        return EXIT_CONFIG
    # A full disk and an unresponsive store are OSErrors, and so is a TimeoutError.
    temporary = isinstance(error, BrokerError | errors.KafkaError | FaustError | OSError)
    return EXIT_TEMPFAIL if temporary else EXIT_SOFTWARE


def cause_of(error: BaseException) -> str:
    """Return what failed, in words for a log line."""
    status = status_of(error)
    if status == EXIT_CONFIG:
        return "Kafka's configuration, its permissions or a setting is wrong"
    return "Kafka or a store failed" if status == EXIT_TEMPFAIL else "a bug"

"""Opens the fsspec URL of a store of kernels or checkpoints."""

from typing import Any

import fsspec

from tamiyo.schemas.display import without_secrets
from tamiyo.schemas.errors import ConfigurationError

EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
}
"""The extra that installs the file system of a URL's scheme."""


def open_store(url: str) -> tuple[Any, str]:
    """Return the file system of a store, and the store's root on it.

    Raises:
        ConfigurationError: fsspec does not know the scheme, or its file system is not installed; the message names the
            extra that installs it.
    """
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(url.partition("://")[0])
        advice = f"install esper-tamiyo with its extra '{extra}'" if extra else str(error)
        raise ConfigurationError(f"no file system is installed for {without_secrets(url)}: {advice}") from error
    except ValueError as error:
        reason = str(error).replace(url, without_secrets(url))
        raise ConfigurationError(f"{without_secrets(url)} is not the URL of a store: {reason}") from error
    return files, root

"""Opens and checks the fsspec URL of a store of kernels or checkpoints."""

import uuid
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


def require_writable(url: str, setting: str) -> None:
    """Write, read and delete a small file, so that a store that cannot be used is found at the start.

    Args:
        url: The store, or a folder.
        setting: The variable that names it.

    Raises:
        ConfigurationError: The store cannot be used; the message has the setting and the reason.
    """
    files, root = _opened(url, setting)
    path, data = f"{root.rstrip('/')}/.probe-{uuid.uuid4().hex}", b"ok"
    try:
        files.makedirs(root, exist_ok=True)
        files.pipe_file(path, data)
        found = files.cat_file(path)
        files.rm_file(path)
    except Exception as error:  # every file system has errors of its own
        raise _refused(url, setting, f"cannot be written ({_reason(error, url)})") from error
    if found != data:
        raise _refused(url, setting, f"returned {found[:20]!r} instead of what was written")


def require_readable(url: str, setting: str) -> None:
    """List a store, which need not exist yet.

    Args:
        url: The store.
        setting: The variable that names it.

    Raises:
        ConfigurationError: The store cannot be read; the message has the setting and the reason.
    """
    files, root = _opened(url, setting)
    try:
        files.ls(root)
    except FileNotFoundError:
        return
    except Exception as error:  # every file system has errors of its own
        raise _refused(url, setting, f"cannot be read ({_reason(error, url)})") from error


def _opened(url: str, setting: str) -> tuple[Any, str]:
    try:
        return open_store(url)
    except ConfigurationError as error:
        raise ConfigurationError(f"{setting}: {error}") from error


def _reason(error: Exception, url: str) -> str:
    return f"{type(error).__name__}: {error}".replace(url, without_secrets(url))


def _refused(url: str, setting: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{setting}={without_secrets(url)} {what}; name a store that this process can use, for example "
        f"{setting}=file:///var/lib/tamiyo"
    )

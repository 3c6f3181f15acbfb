"""All settings of the program: their effective values and where these come from, and names that are no settings."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_settings import BaseSettings

from tamiyo.host._common import settings as host_settings
from tamiyo.schemas import kafka
from tamiyo.schemas.client import registry
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.settings import (
    CONFIG,
    PREFIX,
    Settings,
    config_file,
    environment_text,
    fields,
    from_file,
    is_secret,
    nearest,
    origin,
    table,
    toml_text,
    type_text,
    unknown_tables,
    variable,
)
from tamiyo.streams import settings as pipeline_settings

MODULES = (kafka, registry, host_settings, pipeline_settings)
"""The modules with settings classes."""


def classes() -> list[type[Settings]]:
    """Return the program's settings classes, in the order of their variables."""
    found = {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Settings) and value.__module__ == module.__name__
    }
    public = (cls for cls in found if not cls.__name__.startswith("_"))
    return sorted(public, key=lambda cls: str(cls.model_config["env_prefix"]))


def variables() -> dict[str, tuple[type[Settings], str]]:
    """Return every environment variable of a setting, with its class and field."""
    return {variable(cls, name): (cls, name) for cls in classes() for name in fields(cls)}


def unknown_variables() -> list[str]:
    """Return a sentence for each `TAMIYO_` variable of the environment that is no setting, with the nearest name."""
    known = {*variables(), CONFIG}
    names = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    return [f"{name} is no setting of this version{nearest(name.upper(), known, PREFIX)}" for name in names]


def check(*make: Callable[[], object]) -> None:
    """Make settings, and report what is wrong with all of them, and with the file, together.

    Args:
        *make: Each makes the settings of one class.

    Raises:
        ConfigurationError: With a line for each problem of any of them, or of the file.
    """
    problems: dict[str, None] = {}
    path = config_file()
    if path is not None:
        problems.update(dict.fromkeys(unknown_tables(path, classes())))
        make = (*(functools.partial(from_file, cls) for cls in classes()), *make)
    for each in make:
        try:
            each()
        except ConfigurationError as error:
            problems.update(dict.fromkeys(str(error).splitlines()))
    if problems:
        raise ConfigurationError("\n".join(problems))


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting with its effective value."""

    variable: str
    value: str | None
    """As the environment has it; None if it is unset. A secret is hidden."""
    source: str
    changed: bool
    """Whether the value differs from the default."""

    def as_dict(self) -> dict[str, Any]:
        """Return the setting as JSON values."""
        return asdict(self)


def effective() -> list[Setting]:
    """Return all settings of this environment and file. Raises ConfigurationError if any is wrong."""
    check(*classes())
    found = []
    for cls in classes():
        values, defaults = cls(), default_values(cls)
        for name, field in fields(cls).items():
            value = getattr(values, name)
            text = "(hidden)" if is_secret(field) and value is not None else environment_text(value)
            found.append(Setting(variable(cls, name), text or None, origin(cls, name).source, value != defaults[name]))
    return found


@dataclass(frozen=True, slots=True)
class Description:
    """A setting as the reference describes it."""

    variable: str
    table: str
    """In a file."""
    key: str
    type: str
    default: str | None
    """As the environment has it; None if it is unset."""
    meaning: str

    def as_dict(self) -> dict[str, Any]:
        """Return the description as JSON values."""
        return asdict(self)


def described(cls: type[Settings]) -> list[Description]:
    """Return the settings of a class."""
    defaults = default_values(cls)
    return [
        Description(
            variable(cls, name),
            table(cls),
            name,
            type_text(field),
            environment_text(defaults[name]) or None,
            field.description or "",
        )
        for name, field in fields(cls).items()
    ]


def toml_template() -> str:
    """Return a file with every setting at its default, as a comment."""
    parts = [f"# Settings of Tamiyo: `tamiyo --config FILE` or {CONFIG}=FILE. The environment wins over this file.\n"]
    for cls in classes():
        defaults = default_values(cls)
        lines = [f"[{table(cls)}]"]
        for name, field in fields(cls).items():
            value = defaults[name]
            shown = "" if value is None else f" {toml_text(value)}"
            lines += [f"# {field.description} ({type_text(field)})", f"# {name} ={shown}"]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def default_values(cls: type[BaseSettings]) -> dict[str, Any]:
    """Return the defaults of a settings class, whatever the environment and the file have."""
    with _without_settings():
        return {name: field.get_default(call_default_factory=True) for name, field in fields(cls).items()}


@contextmanager
def _without_settings() -> Iterator[None]:
    own = {name: os.environ.pop(name) for name in list(os.environ) if name.upper().startswith(PREFIX)}
    try:
        yield
    finally:
        os.environ.update(own)

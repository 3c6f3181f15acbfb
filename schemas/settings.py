"""Where settings come from: an argument or a flag, else the environment, else a file, else the default.

A class derives from `Settings` and names its part of the environment by `env_prefix="TAMIYO_<PART>_"`. `TAMIYO_CONFIG`
names the file (`tamiyo --config FILE` sets it): TOML with one table a part, so that `width` in `[window]` is
`TAMIYO_WINDOW_WIDTH`. An empty variable stands for the default, whatever the file has.

A wrong value raises a ConfigurationError that names the variable or the place in the file, the value, what is expected,
and an example.
"""

import json
import os
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from tamiyo.schemas.display import printable, without_secrets
from tamiyo.schemas.errors import ConfigurationError

CONFIG = "TAMIYO_CONFIG"
"""The variable that names the file."""
PREFIX = "TAMIYO_"
LARGEST = 2**31 - 1
"""Largest number of a setting that has no limit of its own: clients and operating systems count in 32 bits."""
LONGEST_S = 1_000_000.0
"""Longest time that a client of Kafka can wait, seconds: it counts milliseconds in 32 bits."""
LONGEST_TEXT = 4_096
SHOWN = 80  # characters of a wrong value


class Settings(BaseSettings):
    """Base of all settings classes."""

    model_config = SettingsConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    def __init__(self, **values: Any) -> None:
        """Read the settings.

        Args:
            **values: Settings that win over all other sources.

        Raises:
            ConfigurationError: Settings are wrong, with a line for each.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = [problem(type(self), each, values) for each in error.errors(include_url=False)]
        else:
            return
        raise ConfigurationError("\n".join(dict.fromkeys(problems)))  # without a cause, which would have its secrets

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, in order of precedence."""
        filed = {name: each for name, each in from_file(settings_cls).items() if environment(settings_cls, name) != ""}
        return init_settings, _Environment(settings_cls), InitSettingsSource(settings_cls, filed)

    @field_validator("*", mode="after")
    @classmethod
    def _usable(cls, value: Any, info: ValidationInfo) -> Any:
        own = (getattr(each, "le", None) for each in cls.model_fields[info.field_name or ""].metadata)
        largest = next((each for each in own if each is not None), LARGEST)
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, (int, float)) and abs(each) > largest:
                raise ValueError(f"expected a number up to {largest}")
            if isinstance(each, str) and (not each.isprintable() or len(each) > LONGEST_TEXT or each.isspace()):
                raise ValueError(f"expected up to {LONGEST_TEXT} printable characters")
        return value


class _Environment(EnvSettingsSource):
    """The environment. An empty variable is as good as none; a list that is no JSON is left to validation."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value, key, is_complex = super().get_field_value(field, field_name)
        return (None if value == "" or is_settings(field.annotation) else value), key, is_complex

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        try:
            return super().prepare_field_value(field_name, field, value, value_is_complex)
        except (ValueError, RecursionError):
            return value


def require(settings: Settings, field: str, sign: Literal["<", "<="], other: str, *, share: float = 1.0) -> None:
    """Check two settings of a class against each other.

    Args:
        settings: The settings.
        field: The setting that must be smaller.
        sign: How much smaller.
        other: The setting that it is compared with.
        share: By what `other` is multiplied first.

    Raises:
        ConfigurationError: They contradict each other; the message has both with their values.
    """
    found, limit = getattr(settings, field), getattr(settings, other) * share
    if not (found < limit if sign == "<" else found <= limit):
        cls = type(settings)
        of = {1.0: "", 1 / 3: "a third of ", 1000: "1000 times "}[share]
        raise ConfigurationError(
            f"{variable(cls, field)}={found} contradicts {variable(cls, other)}={getattr(settings, other)}: the first "
            f"must be {'below' if sign == '<' else 'at most'} {of}the second"
        )


def is_settings(value: Any) -> bool:
    """Return whether `value` is a class of settings."""
    return isinstance(value, type) and issubclass(value, BaseSettings) and value is not BaseSettings


def fields(cls: type[BaseSettings]) -> dict[str, FieldInfo]:
    """Return the fields of a settings class that can be set; not those that are settings classes themselves."""
    return {name: field for name, field in cls.model_fields.items() if not is_settings(field.annotation)}


def variable(cls: type[BaseSettings], field: str) -> str:
    """Return the environment variable of a field."""
    return f"{cls.model_config['env_prefix']}{field}".upper()


def table(cls: type[BaseSettings]) -> str:
    """Return the table of a settings class in a file."""
    return str(cls.model_config["env_prefix"]).removeprefix(PREFIX).strip("_").lower()


def environment(cls: type[BaseSettings], field: str) -> str | None:
    """Return the text of a field's variable, whose case does not matter; None if it is not set."""
    wanted = variable(cls, field)
    return next((text for name, text in os.environ.items() if name.upper() == wanted), None)


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return `; did you mean X?` with the name in `known` that is most like `name`, or nothing if none is like it.

    Args:
        name: The wrong name.
        known: The right ones.
        prefix: What all names begin with, so that it makes none of them like another.
    """
    found = get_close_matches(name.removeprefix(prefix), [each.removeprefix(prefix) for each in known], n=1)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


# ---- the file


def config_file() -> Path | None:
    """Return the path of the file of settings, which `TAMIYO_CONFIG` names; None if there is none."""
    named = os.environ.get(CONFIG)
    return Path(named) if named else None


def read_file(path: Path) -> dict[str, dict[str, Any]]:
    """Return a file's tables.

    Raises:
        ConfigurationError: The file cannot be read, is not TOML, or has a key outside a table.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{CONFIG}={path}: the file cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # wrong UTF-8, or wrong TOML: the message has the line
        raise ConfigurationError(f"{path}: expected TOML: {printable(str(error))}") from error
    for name, value in found.items():
        if not isinstance(value, dict):
            raise ConfigurationError(
                f"{_place(path, '', name)}: {printable(name)} stands in no table; expected tables such as [window]"
            )
    return found


def from_file(cls: type[BaseSettings]) -> dict[str, Any]:
    """Return what the file has for a settings class.

    Raises:
        ConfigurationError: As of `read_file`, or the class's table has keys that are no settings.
    """
    path = config_file()
    found = {} if path is None else read_file(path).get(table(cls), {})
    unknown = [
        f"{_place(path, table(cls), name)}: [{table(cls)}] has no setting {printable(name)}{nearest(name, fields(cls))}"
        for name in found
        if path is not None and name not in fields(cls)
    ]
    if unknown:
        raise ConfigurationError("\n".join(unknown))
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    # pydantic takes true for the number 1; the text is what the environment would have.
    return str(value).lower() if isinstance(value, bool) else value


def unknown_tables(path: Path, classes: Iterable[type[BaseSettings]]) -> list[str]:
    """Return a sentence for each table of a file that belongs to no settings class."""
    known = {table(cls) for cls in classes}
    return [
        f"{_place(path, name, '')}: there is no table [{printable(name)}]{nearest(name, known)}"
        for name in read_file(path)
        if name not in known
    ]


def _place(path: Path, table_name: str, key: str) -> str:
    """Return `FILE, line N` of a key, or of a table for an empty key; only the file if it is written otherwise."""
    inside = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if text.startswith("["):
            inside = text.strip("[] \"'")
            if inside == table_name and not key:
                return f"{path}, line {number}"
        elif key and inside == table_name and text.partition("=")[0].strip(" \"'") == key:
            return f"{path}, line {number}"
    return str(path)


# ---- values and where they come from


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from."""

    source: Literal["argument", "environment", "file", "default"]
    text: str
    """How a message names the value: `TAMIYO_WINDOW_WIDTH=-3`."""


def origin(cls: type[BaseSettings], field: str, arguments: Mapping[str, Any] | None = None) -> Origin:
    """Return where a field's value comes from.

    Args:
        cls: The settings class.
        field: Its field.
        arguments: What was given when the settings were made.
    """
    info, path, text = cls.model_fields[field], config_file(), environment(cls, field)
    if arguments is not None and field in arguments:
        return Origin("argument", f"{cls.__name__}.{field}={shown(info, arguments[field])}")
    if text:
        return Origin("environment", f"{variable(cls, field)}={shown(info, text)}")
    filed = from_file(cls)
    if path is not None and field in filed and text is None:
        place = _place(path, table(cls), field)
        return Origin("file", f"{place}: {table(cls)}.{field} = {shown(info, filed[field])}")
    return Origin("default", variable(cls, field))


def shown(field: FieldInfo, value: Any) -> str:
    """Return a value for a message: short, printable, without secrets."""
    if is_secret(field):
        return "(hidden)"
    text = without_secrets(printable(str(value)))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def is_secret(field: FieldInfo) -> bool:
    """Return whether a field's value must not be shown."""
    return SecretStr in (field.annotation, *get_args(field.annotation))


def problem(cls: type[BaseSettings], error: ErrorDetails, arguments: Mapping[str, Any]) -> str:
    """Return a sentence on one of pydantic's errors: what was found and where, what is expected, and an example."""
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{cls.__name__} has no setting {printable(name)}{nearest(name, fields(cls))}"
    field, found = cls.model_fields[name], origin(cls, name, arguments)
    if error["type"] == "value_error":
        expected = str(error["msg"]).removeprefix("Value error, ")
    else:
        expected = f"expected {type_text(field)}" + (", finite" if error["type"] == "finite_number" else "")
    example = example_text(cls, name, in_file=found.source == "file")
    return f"{found.text} is wrong: {expected} ({field.description}){example}"


def example_text(cls: type[BaseSettings], name: str, *, in_file: bool) -> str:
    """Return `, for example VARIABLE=VALUE`, or nothing for a secret."""
    field = cls.model_fields[name]
    if is_secret(field):
        return ""
    value = field.examples[0] if field.examples else field.default
    text = f"{name} = {toml_text(value)}" if in_file else f"{variable(cls, name)}={environment_text(value)}"
    return f", for example {text}"


def environment_text(value: Any) -> str:
    """Return a value as an environment variable has it; empty for None."""
    if isinstance(value, (list, tuple)):
        return toml_text(value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def toml_text(value: Any) -> str:
    """Return a value as a file of TOML has it; lists are the same in JSON."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


# ---- types for people


def type_text(field: FieldInfo) -> str:
    """Return a field's type and range for people, such as `int, >= 1`."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(constraint, name)}"
        for constraint in field.metadata
        for name, sign in signs.items()
        if getattr(constraint, name, None) is not None
    ]
    kind = annotation_text(field.annotation)
    return f"{kind}, {' and '.join(bounds)}" if bounds else kind


def annotation_text(annotation: Any) -> str:
    """Return a type annotation for people."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return annotation_text(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(annotation_text(each) for each in arguments if each is not type(None))
    if origin in (list, tuple):
        return f"{origin.__name__} of {annotation_text(arguments[0])}"
    return "secret" if annotation is SecretStr else getattr(annotation, "__name__", str(annotation))

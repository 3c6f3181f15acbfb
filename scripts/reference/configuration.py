"""The page of settings."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings
from scripts.reference.markdown import code, modules_with, page, prose, section, summary, table


def configuration() -> str:
    """Return every setting: its environment variable, type, default and meaning."""
    sections = []
    for cls in sorted(settings_classes(), key=lambda each: str(each.model_config["env_prefix"])):
        prefix = str(cls.model_config["env_prefix"])
        rows = [
            (code(f"{prefix}{name}".upper()), type_text(field), default_text(field), prose(field.description or ""))
            for name, field in cls.model_fields.items()
            if not is_settings(field.annotation)
        ]
        listed = table(("variable", "type", "default", "meaning"), rows)
        text = f"{summary(cls)}\n\n{listed}\nClass: `{cls.__module__}.{cls.__name__}`."
        sections.append(section(f"{prefix}*", text))
    introduction = (
        "Every setting is read from the environment when a process starts; a command's flag wins over its variable. "
        "Lists and tuples are written as JSON. Unknown variables that begin with `TAMIYO_` are ignored."
    )
    return page("Configuration", introduction, *sections)


def settings_classes() -> list[type[BaseSettings]]:
    """Return the program's settings classes, each once."""
    found = []
    for module in modules_with("BaseSettings"):
        for value in vars(module).values():
            if is_settings(value) and value.__module__ == module.__name__ and not value.__name__.startswith("_"):
                found.append(value)
    return found


def is_settings(value: Any) -> bool:
    """Return whether `value` is a class of settings."""
    return isinstance(value, type) and issubclass(value, BaseSettings) and value is not BaseSettings


def type_text(field: FieldInfo) -> str:
    """Return a field's type and range for people, such as `int >= 1`."""
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
        return " or ".join(code(each) for each in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(annotation_text(each) for each in arguments if each is not type(None))
    if origin in (list, tuple):
        return f"{origin.__name__} of {annotation_text(arguments[0])}"
    return "secret" if annotation is SecretStr else getattr(annotation, "__name__", str(annotation))


def default_text(field: FieldInfo) -> str:
    """Return a field's default for people."""
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if default is None or default == "":
        return "unset"
    if isinstance(default, bool):
        return code(str(default).lower())
    return code(list(default) if isinstance(default, tuple) else default)

"""The page of the command line."""

from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args, get_origin

import typer
from scripts.reference.markdown import code, modules_with, page, prose, section, table


def command_line() -> str:
    """Return every command with its arguments and options."""
    app = next(module.app for module in modules_with('name="tamiyo"') if hasattr(module, "app"))
    root: Any = typer.main.get_command(app)
    sections = [
        section(code(path), command_text(command, path), level=2 + path.count(" ") - 1)
        for path, command in walk(root, "tamiyo")
        if command is not root
    ]
    introduction = f"{prose(root.help)}\n\n{options_table(root)}\n{root.epilog or ''}"
    return page("Command line", introduction, *sections)


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield a command and all commands below it, with their full names."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, f"{path} {name}")


def command_text(command: Any, path: str) -> str:
    """Return what a command does, and its parameters."""
    arguments = "".join(
        f" {each.names[0]}" if each.required else f" [{each.names[0]}]"
        for each in map(_Parameter, command.params)
        if each.is_argument
    )
    usage = f"{path} COMMAND" if hasattr(command, "commands") else f"{path} [OPTIONS]{arguments}"
    text = prose("\n\n".join(" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")))
    return f"{text}\n\n```sh\n{usage}\n```\n\n{options_table(command)}\n{command.epilog or ''}"


def options_table(command: Any) -> str:
    """Return a command's arguments and options as a table; empty where it has none."""
    rows = [each.row() for each in map(_Parameter, command.params) if not each.hidden]
    return table(("argument or option", "type", "default", "meaning"), rows) if rows else ""


class _Parameter:
    """One parameter of a click command, as the page shows it."""

    def __init__(self, parameter: Any) -> None:
        self._of = parameter
        self.is_argument = parameter.param_type_name == "argument"
        self.names = [parameter.name.upper()] if self.is_argument else [*parameter.opts, *parameter.secondary_opts]
        self.required = parameter.required
        self.hidden = getattr(parameter, "hidden", False) or parameter.name in ("install_completion", "show_completion")

    def row(self) -> tuple[str, ...]:
        """Return names, type, default and help."""
        of = self._of
        annotation = of.type_descriptor.annotation
        repeated = get_origin(annotation) is list
        if repeated:
            (annotation,) = get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, Enum):
            kind = " or ".join(code(each.value) for each in annotation)
        else:
            kind = "flag" if getattr(of, "is_flag", False) else annotation.__name__.lower()
        bounds = [f"{sign} {bound}" for sign, bound in ((">=", of.min), ("<=", of.max)) if bound is not None]
        default = of.default.value if isinstance(of.default, Enum) else of.default
        absent = default is None or default is False or default == ""
        shown = "" if absent or self.required else code(default)
        parts = [kind, *bounds, *(["repeatable"] if repeated else [])]
        return ", ".join(code(name) for name in self.names), ", ".join(parts), shown, prose(of.help or "")

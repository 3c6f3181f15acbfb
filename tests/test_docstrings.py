"""Public definitions have a docstring; those that users call describe their parameters."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import tamiyo.host
from tests.syntax import syntax_tree

ROOT = Path(__file__).parents[1]
DOCUMENTED = ("host", "integrations", "data", "models", "streams/stages", "streams/cli")
OVERRIDDEN = {"forward", "extra_repr"}
"""Methods that torch documents."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Yield (qualified name, definition) of public classes, their public methods, and public functions."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{prefix}{node.name}.")


def modules(folder: str) -> Iterator[tuple[str, ast.Module]]:
    """Yield (path from the root, syntax tree) of every module under a folder."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), syntax_tree(path)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the names of a function's parameters, without self and cls."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


@pytest.mark.parametrize("folder", DOCUMENTED)
def test_every_public_definition_has_a_docstring(folder: str) -> None:
    """A method may leave it to the class that declares it: `make` of a blueprint to `Blueprint`."""
    found = [(file, *each) for file, module in modules(folder) for each in public_definitions(module.body)]
    documented = {name.partition(".")[2] for _, name, node in found if ast.get_docstring(node)} - {""}
    bare = [
        f"{file}:{node.lineno}: {name}"
        for file, name, node in found
        if not ast.get_docstring(node) and name.partition(".")[2] not in documented | OVERRIDDEN
    ]
    assert not bare, "without a docstring:\n" + "\n".join(bare)


def is_feature(node: Definition) -> bool:
    """Return whether a function is a feature: its decorator states unit, scale and source instead of `Args:`."""
    calls = [each for each in node.decorator_list if isinstance(each, ast.Call)]
    return any(keyword.arg == "source" for call in calls for keyword in call.keywords)


def test_public_functions_of_models_describe_their_parameters() -> None:
    bare = [
        f"{file}:{node.lineno}: {name}({', '.join(parameters(node))})"
        for file, module in modules("models")
        for name, node in public_definitions(module.body)
        if not isinstance(node, ast.ClassDef)
        and not is_feature(node)
        and "." not in name
        and parameters(node)
        and "Args:" not in (ast.get_docstring(node) or "")
    ]
    assert not bare, "without an `Args:` section:\n" + "\n".join(bare)


def test_exported_names_of_the_host_describe_their_parameters() -> None:
    exported = [(name, getattr(tamiyo.host, name)) for name in tamiyo.host.__all__]
    assert exported
    functions = [(name, each) for name, each in exported if inspect.isfunction(each)]
    functions += [
        (f"{name}.{method}", function)
        for name, each in exported
        if inspect.isclass(each)
        for method, function in vars(each).items()
        if inspect.isfunction(function) and not method.startswith("_")
    ]
    bare = [
        name
        for name, function in functions
        if set(inspect.signature(function).parameters) - {"self"} and "Args:" not in (inspect.getdoc(function) or "")
    ]
    assert not bare, "without an `Args:` section:\n" + "\n".join(bare)

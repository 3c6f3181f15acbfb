"""The map of the code."""

import ast
from collections.abc import Sequence
from pathlib import Path

from scripts.reference.markdown import PACKAGES, ROOT, code, page, prose, table


def modules() -> str:
    """Return the map of the code: packages, what they import of each other, and every module with its purpose."""
    sections = []
    for folder in (*PACKAGES, "integrations", "data", "evaluation"):
        listed: dict[str, list[tuple[str, str]]] = {}
        edges = set()
        for path in sorted((ROOT / folder).rglob("*.py")):
            package = package_of(path)
            tree = ast.parse(path.read_text(encoding="utf-8"))
            edges |= {(package, other) for other in imported_packages(tree, folder) if other not in (package, folder)}
            purpose = (ast.get_docstring(tree) or "").partition("\n\n")[0]
            if path.name != "__init__.py" or purpose:
                listed.setdefault(package, []).append((code(path.name), prose(" ".join(purpose.split()))))
        parts = [
            f"{'#' * (2 + (name != folder))} {name}\n\n{table(('module', 'purpose'), rows)}"
            for name, rows in listed.items()
        ]
        if edges:
            picture = "".join(f"  {source} --> {target}\n" for source, target in sorted(edges))
            parts.insert(1, f"```mermaid\nflowchart TD\n{picture}```\n")
        sections += parts
    introduction = (
        "Every package and module with its purpose. An arrow means *imports*; arrows to a folder's own modules, such "
        "as its settings, are left out. Folder `X` is imported as `tamiyo.X`. Between the folders, imports go one way: "
        "`schemas` <- `models` <- `streams`, `schemas` <- `host` <- `streams`, `host` <- `integrations` and "
        "`streams` <- `data`; `evaluation` may import all."
    )
    return page("Modules", introduction, *sections)


def package_of(path: Path) -> str:
    """Return the dotted name, below `tamiyo`, of the package that holds a file."""
    return ".".join(path.relative_to(ROOT).parent.parts)


def imported_packages(tree: ast.AST, folder: str) -> set[str]:
    """Return the packages of `folder` that a module imports anything from."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"tamiyo.{folder}"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith(f"tamiyo.{folder}")}
    return {nearest_package(name.split(".")[1:]) for name in found}


def nearest_package(parts: Sequence[str]) -> str:
    """Return the innermost package that a dotted name leads into."""
    while not (ROOT.joinpath(*parts)).is_dir():
        parts = parts[:-1]
    return ".".join(parts)

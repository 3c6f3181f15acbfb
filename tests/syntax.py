"""Parse Python."""

import ast
import gc
from pathlib import Path


def parsed(text: str) -> ast.Module:
    """Return the syntax tree of a text, without garbage collection meanwhile.

    What an earlier test of the process left behind may format a traceback when it is collected. That parses too, and
    CPython 3.11 cannot parse while it parses: "AST constructor recursion depth mismatch" (gh-106905).
    """
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        gc.enable()


def syntax_tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file, as `parsed` does."""
    return parsed(path.read_text(encoding="utf-8"))

"""The version of the feature catalogue, and the guard that it rises when a feature changes.

A policy reads only graphs of the version it was trained on. FEATURE_HASH covers the order of the features and the code
that computes them, without comments, docstrings and metadata; a test compares it with `feature_hash()`.
"""

import ast
import hashlib
import inspect
from collections.abc import Iterable
from types import ModuleType

from tamiyo.models.features import catalogue, edges, inputs, network, nodes, scales, series

FEATURE_VERSION = 1
"""Raise it with every change to a feature's name, position or value."""
FEATURE_HASH = "451a113b0a6debc053b83433fff3624f"
"""`feature_hash()` of this version."""

SOURCES = (catalogue, scales, series, inputs, nodes, edges, network)
METADATA = frozenset({"unit", "scale", "source"})


def feature_hash(sources: Iterable[ModuleType] = SOURCES) -> str:
    """Return the hash of the code that computes the features, 32 hex digits.

    Args:
        sources: Modules in a fixed order; by default all that a feature's value depends on.
    """
    digest = hashlib.blake2b(digest_size=16)
    for module in sources:
        digest.update(meaning(inspect.getsource(module)).encode())
    return digest.hexdigest()


def meaning(source: str) -> str:
    """Return Python source without the parts that change no value: comments, layout, docstrings and metadata.

    Args:
        source: The text of a module.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            # Docstrings of modules, classes, functions and attributes alike: expressions that are only a string.
            node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
        if isinstance(node, ast.Call):
            node.keywords = [each for each in node.keywords if each.arg not in METADATA]
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

"""Topics as tables, for notebooks and papers: `read`, `decisions`, `schema`, and the command `tamiyo export`.

It needs the extra `data`: `pip install 'esper-tamiyo[data]'`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tamiyo.data._reading import UndecodableWarning, decisions, read, schema

if find_spec("pyarrow") is None:
    raise ModuleNotFoundError("tamiyo.data needs pyarrow: pip install 'esper-tamiyo[data]'", name="pyarrow")

__all__ = ["UndecodableWarning", "decisions", "read", "schema"]


def __getattr__(name: str) -> Any:
    # `tamiyo --help` imports this package for its command; pyarrow takes longer than all the rest.
    if name in __all__:
        return getattr(import_module("tamiyo.data._reading"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

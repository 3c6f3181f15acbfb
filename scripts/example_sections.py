"""A griffe extension for the API pages: `Example:` in a docstring is a section of doctests, as `Examples:` is."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):  # type: ignore[misc]
    """Renames the heading before griffe parses the docstring; unknown headings become quoted text."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)

"""The page of features."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from scripts.reference.markdown import code, page, prose, section, table


def features() -> str:
    """Return the feature catalogue."""
    from tamiyo.models import features as catalogue

    parts: tuple[tuple[str, Sequence[Any], str], ...] = (
        ("Nodes", catalogue.NODE_FEATURES, "One row a layer."),
        ("Edges", catalogue.EDGE_FEATURES, "One row a connection between layers."),
        ("Whole network", catalogue.GLOBAL_FEATURES, "One row a graph."),
    )
    sections = []
    for title, listed, text in parts:
        names = [field.name for field in dataclasses.fields(listed[0])]
        columns = [name for name in names if name != "name" and isinstance(getattr(listed[0], name), str)]
        rows = [
            (str(index), code(feature.name), *(prose(getattr(feature, name)) for name in columns))
            for index, feature in enumerate(listed)
        ]
        headings = ("column", "name", *(name.replace("_", " ") for name in columns))
        sections.append(section(f"{title} ({len(listed)})", f"{text}\n\n{table(headings, rows)}"))
    introduction = (
        f"The numbers that the policy sees of a network, version {catalogue.FEATURE_VERSION}. Scales are fixed and "
        "never learned, so a graph means the same to every version of the policy. A value that was not measured is 0, "
        "and a column whose name ends in `_measured` or `_known` marks it. Every value is finite and within "
        f"±{catalogue.LIMIT:g}."
    )
    return page("Features", introduction, *sections)

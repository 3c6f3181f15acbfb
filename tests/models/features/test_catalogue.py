import importlib
import re

import numpy as np
import pytest

from tamiyo.models.features import EDGE_FEATURES, GLOBAL_FEATURES, NODE_FEATURES
from tamiyo.models.features.catalogue import Catalogue
from tamiyo.schemas.analysis import STATISTICS
from tamiyo.schemas.record import Record

MODULES = ("telemetry", "analysis")


def fields() -> set[str]:
    """Return Record.field for every field that a feature can come from."""
    found = set()
    for module in MODULES:
        for name, record in vars(importlib.import_module(f"tamiyo.schemas.{module}")).items():
            if isinstance(record, type) and issubclass(record, Record):
                found.update(f"{name}.{field}" for field in record.model_fields)
    found.update(f"LayerStats.{field}" for field in STATISTICS)
    return found


def test_names_are_unique_and_metadata_is_complete():
    for catalogue in (NODE_FEATURES, EDGE_FEATURES, GLOBAL_FEATURES):
        assert len({feature.name for feature in catalogue}) == len(catalogue)
        assert all(f.unit and f.scale and f.source and f.formula.endswith(".") for f in catalogue)


def test_the_order_of_columns_is_that_of_the_specification():
    assert [f.name for f in NODE_FEATURES[:5]] == ["health", "latency", "error_rate", "log_parameters", "type_linear"]
    assert [f.name for f in EDGE_FEATURES][-1] == "reversed"  # where a batch marks its reversed edges
    assert (len(NODE_FEATURES), len(EDGE_FEATURES), len(GLOBAL_FEATURES)) == (41, 8, 33)


def test_sources_are_fields_of_records():
    for feature in (*NODE_FEATURES, *EDGE_FEATURES, *GLOBAL_FEATURES):
        assert set(re.findall(r"\w+\.\w+", feature.source)) <= fields(), feature.name


def made() -> Catalogue[float]:
    catalogue = Catalogue[float]()

    @catalogue.add(unit="ms", scale="2 x", source="nowhere")
    def double(x: float) -> list[float]:
        """The input
        itself."""
        return [2 * x, float("nan")]

    @catalogue.add_one_hot(("one", "two"), source="nowhere")
    def number(x: float, member: str) -> bool:
        """1 where it is this number."""
        return x == {"one": 1, "two": 2}[member]

    return catalogue


def test_columns_follow_the_order_of_the_functions():
    catalogue = made()
    assert [feature.name for feature in catalogue.features] == ["double", "number_one", "number_two"]
    np.testing.assert_array_equal(catalogue.columns(2.0, 2), [[4.0, 0.0, 1.0], [np.nan, 0.0, 1.0]])


def test_the_docstring_is_the_formula():
    first, *flags = made().features
    assert (first.unit, first.scale, first.source, first.formula) == ("ms", "2 x", "nowhere", "The input itself.")
    assert {(flag.unit, flag.scale, flag.formula) for flag in flags} == {
        ("flag", "one-hot", "1 where it is this number.")
    }


def test_a_name_can_be_taken_once():
    catalogue = made()

    def double(x: float) -> float:
        """Another."""
        return x

    with pytest.raises(ValueError, match="two features named double"):
        catalogue.add(unit="ms", scale="x", source="nowhere")(double)


def test_a_feature_states_its_formula():
    def bare(x: float) -> float:
        return x

    with pytest.raises(ValueError, match="bare has no docstring"):
        made().add(unit="ms", scale="x", source="nowhere")(bare)

import pytest

from tamiyo.models.features.version import FEATURE_HASH, feature_hash, meaning

SOURCE = '''
"""A module."""
@feature(unit="ms", scale="x / 10", source="KernelPerformance.execution_latency_ms")
def latency(g):
    """Window mean."""
    return g.window("latency") / 10.0
'''


def test_the_version_rises_with_the_features():
    found = feature_hash()
    assert found == FEATURE_HASH, (
        "the features changed: raise FEATURE_VERSION and update FEATURE_HASH in models/features/version.py to "
        f'"{found}" (if every value stays the same, update FEATURE_HASH alone)'
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Window mean.", "The mean over the window."),
        ("A module.", "Another text."),
        ('unit="ms"', 'unit="milliseconds"'),
        ("    return", "    # a comment\n    return"),
        ("/ 10.0", "/ (10.0)"),
    ],
)
def test_words_and_layout_do_not_count(before, after):
    assert SOURCE.count(before) == 1
    assert meaning(SOURCE.replace(before, after)) == meaning(SOURCE)


@pytest.mark.parametrize(
    ("before", "after"),
    [("latency(g)", "delay(g)"), ("/ 10.0", "/ 100.0"), ('"latency"', '"health"'), ("@feature", "@other")],
)
def test_names_and_formulas_count(before, after):
    assert SOURCE.count(before) == 1
    assert meaning(SOURCE.replace(before, after)) != meaning(SOURCE)


def test_the_order_of_features_counts():
    other = SOURCE.replace("latency(g)", "delay(g)")
    assert meaning(SOURCE + other) != meaning(other + SOURCE)

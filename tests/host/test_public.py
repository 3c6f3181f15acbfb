"""The public names of the SDK."""

from importlib.metadata import version

import tamiyo.host


def test_the_public_names_are_there() -> None:
    assert set(tamiyo.host.__all__) >= {"attach", "Handle", "HostSettings", "export", "Blueprint", "register"}
    assert all(hasattr(tamiyo.host, name) for name in tamiyo.host.__all__)
    assert callable(tamiyo.host.attach)
    assert tamiyo.host.__version__ == version("esper-tamiyo")

"""Settings of a host."""

import pytest

from tamiyo.host import HostSettings
from tamiyo.schemas.errors import ConfigurationError


def test_they_are_read_from_the_environment_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_HOST_SAMPLE_INTERVAL", "7")
    monkeypatch.setenv("TAMIYO_HOST_PROTECTED_LAYERS", '["head"]')
    monkeypatch.setenv("TAMIYO_STORE_URL", "memory://somewhere/")
    found = HostSettings()
    assert (found.sample_interval, found.protected_layers) == (7, ["head"])
    assert found.store_url == "memory://somewhere/kernels"


def test_the_store_is_the_installations() -> None:
    from tamiyo.streams.settings import StoreSettings

    assert HostSettings().store_url == StoreSettings().kernels


@pytest.mark.parametrize("wrong", [{"sample_interval": 0}, {"overhead_budget": 0}, {"learning_rate_factor": 1.0}])
def test_invalid_values_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"HostSettings.{next(iter(wrong))}=.* is wrong: expected"):
        HostSettings(**wrong)  # type: ignore[arg-type]

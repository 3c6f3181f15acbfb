"""Where settings come from, and how wrong ones are reported."""

import os
from pathlib import Path

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.settings import CONFIG, Settings, nearest, origin, require


class Sample(Settings):
    """Settings of every kind."""

    model_config = SettingsConfigDict(env_prefix="TAMIYO_SAMPLE_")

    count: int = Field(3, ge=1, description="How many")
    share: float = Field(0.5, ge=0, description="A share")
    name: str | None = Field(None, description="A name", examples=["anna"])
    names: list[str] = Field([], description="Names", examples=[["a"]])
    enabled: bool = True
    password: SecretStr | None = Field(None, min_length=8, description="A secret")
    bytes: int = Field(0, le=2**40, description="With a limit of its own")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of settings, named by the environment."""
    path = tmp_path / "tamiyo.toml"
    monkeypatch.setenv(CONFIG, str(path))
    path.write_text('# ours\n[sample]\ncount = 7\nnames = ["x"]\npassword = "long enough"\n')
    return path


def test_an_argument_wins_over_the_environment_over_the_file_over_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (Sample().count, Sample().share, Sample().names) == (7, 0.5, ["x"])
    assert [origin(Sample, name).source for name in ("count", "share", "names")] == ["file", "default", "file"]
    monkeypatch.setenv("tamiyo_sample_COUNT", "8")
    assert Sample().count == 8
    assert origin(Sample, "count").source == "environment"
    assert Sample(count=9).count == 9


def test_an_empty_variable_is_the_default_whatever_the_file_has(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_SAMPLE_COUNT", "")
    monkeypatch.setenv("TAMIYO_SAMPLE_PASSWORD", "")
    assert (Sample().count, Sample().password) == (3, None)
    assert origin(Sample, "count").source == "default"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("COUNT", "-3", "COUNT=-3 is wrong: expected int, >= 1 (How many), for example TAMIYO_SAMPLE_COUNT=3"),
        ("COUNT", "many", "COUNT=many is wrong: expected int"),
        ("COUNT", str(2**31), "expected a number up to 2147483647"),
        ("SHARE", "nan", "SHARE=nan is wrong: expected float, >= 0, finite"),
        ("SHARE", "1e400", "SHARE=1e400 is wrong: expected float, >= 0, finite"),
        ("NAME", " ", "NAME=  is wrong: expected up to 4096 printable characters (A name)"),
        ("NAME", "a\x1b[2J", r"NAME=a\x1b[2J is wrong: expected up to 4096 printable"),
        ("NAMES", "a,b", 'NAMES=a,b is wrong: expected list of str (Names), for example TAMIYO_SAMPLE_NAMES=["a"]'),
        ("NAMES", "[" * 100_000, "NAMES=[[["),
        ("NAMES", '["\\u0007"]', "NAMES="),
        ("ENABLED", "maybe", "ENABLED=maybe is wrong: expected bool"),
        ("BYTES", str(2**40 + 1), "expected int, <= 1099511627776"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_named_with_its_value_what_is_expected_and_an_example(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(f"TAMIYO_SAMPLE_{name}", value)
    with pytest.raises(ConfigurationError) as error:
        Sample()
    assert words in str(error.value)
    assert str(error.value).startswith("TAMIYO_SAMPLE_")
    assert len(str(error.value)) < 400


def test_all_wrong_settings_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_SAMPLE_COUNT", "0")
    monkeypatch.setenv("TAMIYO_SAMPLE_SHARE", "x")
    with pytest.raises(ConfigurationError) as error:
        Sample()
    assert [line.split("=")[0] for line in str(error.value).splitlines()] == [
        "TAMIYO_SAMPLE_COUNT",
        "TAMIYO_SAMPLE_SHARE",
    ]


def test_a_wrong_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_SAMPLE_PASSWORD", "hunter2")
    with pytest.raises(ConfigurationError) as error:
        Sample()
    assert "hunter2" not in str(error.value)
    assert "TAMIYO_SAMPLE_PASSWORD=(hidden) is wrong" in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": 0}, "Sample.count=0 is wrong: expected int, >= 1"),
        ({"cuont": 1}, "Sample has no setting cuont; did you mean count?"),
    ],
)
def test_a_wrong_argument_is_named_by_its_class(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Sample(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[sample]\n\ncount = -3\n", "line 3: sample.count = -3 is wrong: expected int, >= 1 (How many)"),
        ("[sample]\ncount = true\n", "line 2: sample.count = true is wrong: expected int"),
        ("[sample]\nshare = nan\n", "line 2: sample.share = nan is wrong: expected float, >= 0, finite"),
        ("[sample]\nname = 5\n", 'line 2: sample.name = 5 is wrong: expected str (A name), for example name = "anna"'),
        ("[sample]\nnames = 'x'\n", 'sample.names = x is wrong: expected list of str (Names), for example'),
        ("[sample]\n# c\ncuont = 1\n", "line 3: [sample] has no setting cuont; did you mean count?"),
        ("count = 1\n", "line 1: count stands in no table; expected tables such as [window]"),
        ("[sample\n", "expected TOML: Expected ']' at the end of a table declaration (at line 1"),
        ("[sample]\ncount = 1\ncount = 2\n", "(at line 3"),
        ("x = " + "[" * 5000, "expected TOML"),
        ("[sample]\npassword = 'short'\n", "sample.password = (hidden) is wrong"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_explained_with_the_line(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError) as error:
        Sample()
    assert words in str(error.value)
    assert str(file) in str(error.value)


def test_a_file_that_is_absent_unreadable_or_no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="expected TOML: 'utf-8' codec can't decode"):
        Sample()
    file.unlink()
    with pytest.raises(ConfigurationError, match=r"TAMIYO_CONFIG=.* the file cannot be read: No such file"):
        Sample()
    file.mkdir()
    with pytest.raises(ConfigurationError, match="the file cannot be read: Is a directory"):
        Sample()


@pytest.mark.parametrize(("least", "allowed"), [(3, True), (4, False)])
def test_settings_are_compared_with_each_other(least: int, allowed: bool) -> None:
    settings = Sample(count=3, bytes=least)
    if allowed:
        require(settings, "bytes", "<=", "count")
        return
    with pytest.raises(
        ConfigurationError, match="SAMPLE_BYTES=4 contradicts TAMIYO_SAMPLE_COUNT=3: the first must be at"
    ):
        require(settings, "bytes", "<=", "count")


def test_no_name_is_proposed_that_is_not_like_the_wrong_one() -> None:
    assert nearest("TAMIYO_WINDOW_WIDHT", ["TAMIYO_WINDOW_WIDTH", "TAMIYO_STORE_URL"]).endswith("TAMIYO_WINDOW_WIDTH?")
    assert nearest("zzz", ["TAMIYO_WINDOW_WIDTH"]) == ""


def test_nothing_is_read_before_an_object_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TAMIYO_SAMPLE_COUNT", "5")
    assert Sample.model_fields["count"].default == 3

"""All settings of the program: none takes a value that would end a process later."""

import math
from pathlib import Path
from typing import Any

import pytest
import typer
from scripts.reference.markdown import modules_with

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.settings import CONFIG, LARGEST, Settings, fields, is_secret, variable
from tamiyo.streams.admin import configuration
from tamiyo.streams.admin.configuration import check, classes, effective, toml_template, unknown_variables, variables
from tamiyo.streams.cli import app
from tamiyo.streams.settings import WindowSettings, WorkerSettings

HOSTILE = (
    " ", "nan", "inf", "-inf", "1e400", "-1e400", "-1", "-0.5", "1e308", "1e18", str(2**31), str(2**63), str(2**70),
    "9" * 5000, "1_000", "0x10", "٣", "true", "null", "{}", "[", "[" * 100_000, "[1e999]", "[NaN, 1, 2, 3]",
    '["\\u0000"]', '["\\ud800"]', "\x1b[2J", "a\u202eb", "ünï", "\udcff", "x" * 5000, "a\nb", "http://", "://", "..",
)  # fmt: skip


HELP = ("for example", "needs", "does not use", "contradicts", "set both")  # what a message helps with


def settings_of_the_program() -> list[tuple[type[Settings], str]]:
    """Return each setting: its class and its field."""
    return [(cls, name) for cls in classes() for name in fields(cls)]


@pytest.mark.parametrize(
    ("cls", "name"), settings_of_the_program(), ids=[variable(*each) for each in settings_of_the_program()]
)
def test_a_hostile_value_is_refused_by_name_or_usable(
    monkeypatch: pytest.MonkeyPatch, cls: type[Settings], name: str
) -> None:
    for value in HOSTILE:
        monkeypatch.setenv(variable(cls, name), value)
        found, message = outcome(cls, name)
        if message is not None:
            assert variable(cls, name) in message, value
            assert message.replace("\n", "").isprintable()
            assert is_secret(cls.model_fields[name]) or any(each in message for each in HELP), message
        for each in found if isinstance(found, (list, tuple)) else [found]:
            assert not isinstance(each, (int, float)) or (math.isfinite(each) and abs(each) <= 2**53)
            assert not isinstance(each, str) or each.isprintable()


def outcome(cls: type[Settings], name: str) -> tuple[object, str | None]:
    """Return the value of a setting, or the message of its error."""
    try:
        return getattr(cls(), name), None
    except ConfigurationError as error:
        return None, str(error)


def test_an_empty_variable_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables():
        monkeypatch.setenv(name, "")
    assert [each.variable for each in effective() if each.changed] == []


@pytest.mark.parametrize(
    "values",
    [
        {"TAMIYO_WORKER_HEARTBEAT_INTERVAL_S": "3"},
        {"TAMIYO_WORKER_SESSION_TIMEOUT_S": "21"},
        {"TAMIYO_WORKER_FETCH_WAIT_MS": "20000"},
        {"TAMIYO_SUPERVISOR_FIRST_BACKOFF_S": "31"},
        {"TAMIYO_INTAKE_DEVIATION_MINIMUM": "65"},
        {"TAMIYO_DECISION_RECORDED_VERSION": "1"},
        {"TAMIYO_LEARNER_MINIMUM_BATCH": "129"},
        {"TAMIYO_LEARNER_MINIMUM_LEARNING_RATE": "1"},
        {"TAMIYO_LEARNER_TARGET_KL": "1"},
        {"TAMIYO_LEARNER_GATE_SAMPLE": "2000"},
        {"TAMIYO_LEARNER_GATE_MIN_RUNS": "65"},
        {"TAMIYO_REWARD_SPAN_STEPS": "[4, 3, 2, 1]"},
        {"TAMIYO_REGISTRY_USERNAME": "me"},
        {"TAMIYO_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT"},
        {"TAMIYO_KAFKA_SSL_CA_FILE": "/absent"},
        {"TAMIYO_KAFKA_SSL_CA_FILE": "/absent", "TAMIYO_KAFKA_SECURITY_PROTOCOL": "SSL"},
        {"TAMIYO_KAFKA_BOOTSTRAP_SERVERS": "kafka"},
        {"TAMIYO_KAFKA_BOOTSTRAP_SERVERS": "a:1,,b:2"},
        {"TAMIYO_KAFKA_BOOTSTRAP_SERVERS": "SSL://kafka:9092"},
        {"TAMIYO_KAFKA_BOOTSTRAP_SERVERS": "kafka:99999"},
    ],
    ids=lambda values: " ".join(values),
)
def test_settings_that_contradict_each_other_are_named(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as error:
        check(*classes())
    assert next(iter(values)) in str(error.value)


def test_problems_of_all_classes_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_WINDOW_WIDTH", "-3")
    monkeypatch.setenv("TAMIYO_WATCHDOG_LOOP_S", "soon")
    with pytest.raises(ConfigurationError) as error:
        check(WorkerSettings, WindowSettings, WindowSettings)
    assert [line.split("=")[0] for line in str(error.value).splitlines()] == [
        "TAMIYO_WATCHDOG_LOOP_S",
        "TAMIYO_WINDOW_WIDTH",
    ]


def test_every_settings_class_is_known() -> None:
    found = {
        value
        for module in modules_with("SettingsConfigDict(")
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Settings) and value is not Settings
    }
    assert {cls for cls in found if not cls.__name__.startswith("_")} == set(classes())


def test_every_variable_of_a_flag_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(command: Any) -> set[str]:
        own = {each.envvar for each in command.params if isinstance(getattr(each, "envvar", None), str)}
        return own.union(*(walk(each) for each in getattr(command, "commands", {}).values()))

    named = walk(typer.main.get_command(app))
    assert CONFIG in named
    for name in named - {CONFIG}:
        monkeypatch.setenv(name, "x")
    assert unknown_variables() == []


def test_unknown_variables_are_reported_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_WINDOW_WIDHT", "5")
    monkeypatch.setenv("TAMIYO_ZZZ", "5")
    monkeypatch.setenv("TAMIYO_WINDOW_WIDTH", "5")
    monkeypatch.setenv("tamiyo_store_url", "file:///x")
    monkeypatch.setenv("TAMIYO_WORKER_WATCHDOG", "{}")
    monkeypatch.setenv("TAMIYOX", "5")
    assert [each.partition("; did")[0] for each in unknown_variables()] == [
        "TAMIYO_WINDOW_WIDHT is no setting of this version",
        "TAMIYO_WORKER_WATCHDOG is no setting of this version",
        "TAMIYO_ZZZ is no setting of this version",
    ]
    assert unknown_variables()[0].endswith("; did you mean TAMIYO_WINDOW_WIDTH?")
    monkeypatch.setenv("TAMIYO_WORKER_WATCHDOG", '{"loop_s": 1}')
    assert WorkerSettings().watchdog.loop_s == 30


def test_effective_values_have_their_origin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "tamiyo.toml"
    file.write_text('[window]\nwidth = 20\n[kafka]\nsasl_password = "secret"\nsasl_username = "me"\n'
                    'sasl_mechanism = "PLAIN"\nsecurity_protocol = "SASL_PLAINTEXT"\n')  # fmt: skip
    monkeypatch.setenv(CONFIG, str(file))
    monkeypatch.setenv("TAMIYO_WINDOW_GRACE", "0")
    monkeypatch.setenv("TAMIYO_STORE_URL", "file:///a?key=b")
    found = {each.variable: each for each in effective()}
    assert set(found) == set(variables())
    width, grace, delay = (found[f"TAMIYO_WINDOW_{name}"] for name in ("WIDTH", "GRACE", "DELAY"))
    assert (width.value, width.source, width.changed) == ("20", "file", True)
    assert (grace.value, grace.source, grace.changed) == ("0", "environment", False)
    assert (delay.value, delay.source, delay.changed) == ("0", "default", False)
    assert found["TAMIYO_KAFKA_SASL_PASSWORD"].value == "(hidden)"
    assert "secret" not in str(found)


def test_an_unknown_table_of_the_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "tamiyo.toml"
    file.write_text("[window]\nwidth = 20\n[windows]\n[worker.watchdog]\nloop_s = 3\n")
    monkeypatch.setenv(CONFIG, str(file))
    with pytest.raises(ConfigurationError) as error:
        check(*classes())
    assert str(error.value).splitlines() == [
        f"{file}, line 3: there is no table [windows]; did you mean window?",
        f"{file}: [worker] has no setting watchdog",
    ]


def test_the_template_is_a_file_of_all_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAMIYO_WINDOW_WIDTH", "7")
    template = toml_template()
    monkeypatch.delenv("TAMIYO_WINDOW_WIDTH")
    file = tmp_path / "tamiyo.toml"
    lines = [
        line.removeprefix("# ") if line.startswith("# ") and " = " in line else line for line in template.split("\n")
    ]
    file.write_text("\n".join(line for line in lines if line.startswith("[") or _is_setting(line)))
    monkeypatch.setenv(CONFIG, str(file))
    assert {each.source for each in effective()} == {"file", "default"}
    assert [each.variable for each in effective() if each.changed] == []
    assert len([line for line in lines if _is_setting(line)]) > 100


def _is_setting(line: str) -> bool:
    key = line.partition(" = ")[0]
    return key.replace("_", "").isalnum() and any(key in fields(cls) for cls in classes()) and " = " in line


def test_defaults_do_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_STORE_URL", "")
    monkeypatch.setenv("TAMIYO_WORKER_HTTP_PORT", "many")
    found = {each.variable: each.default for cls in classes() for each in configuration.described(cls)}
    assert found["TAMIYO_LEARNER_HTTP_PORT"] == "0"
    assert found["TAMIYO_KERNEL_STORE_URL"] == "file://./tamiyo-store/kernels"
    assert LARGEST == 2147483647

"""`tamiyo control` on the embedded broker: what it asks, prints and publishes."""

import io
import json
import sys
from typing import Any

import pytest

from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CONTROL, TOPOLOGY
from tamiyo.streams import cli
from tamiyo.streams.admin.topics import Topics
from tests.support.factories import make_topology
from tests.support.kafka_log import KafkaLog


class Terminal:
    """The command line of an installation in which run-1 has started."""

    def __init__(self, log: KafkaLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.log = log
        self._patch = monkeypatch
        self._output = capsys
        log.publish(TOPOLOGY, [make_topology(2, run_id="run-1")])

    def run(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """Run `tamiyo control`; return its standard output and standard error."""
        self._output.readouterr()
        self._patch.setattr(sys, "argv", ["tamiyo", "control", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = self._output.readouterr()
        assert int(ended.value.code or 0) == status, captured
        return captured.out, captured.err

    def published(self) -> list[Any]:
        """The messages of the control topic."""
        return self.log.read(CONTROL.name)


@pytest.fixture
def terminal(
    kafka: KafkaSettings,
    names: TopicNames,
    kafka_log: KafkaLog,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Terminal:
    monkeypatch.setenv("TAMIYO_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)
    Topics(kafka, names, (CONTROL, TOPOLOGY)).touch()
    return Terminal(kafka_log, monkeypatch, capsys)


LAYER = make_topology(2).layers[0].layer_id


def test_alone_it_prints_help_and_publishes_nothing(terminal: Terminal) -> None:
    out, err = terminal.run(status=2)
    assert "pause" in out + err
    assert "Examples:" in out + err
    assert terminal.published() == []


def test_what_is_in_force_for_a_run_combines_its_orders(terminal: Terminal) -> None:
    assert terminal.run("show") == ("no orders: everything is allowed\n", "")
    assert terminal.run("show", "run-1")[0] == "run-1: no order\n  in force: everything allowed\n"
    terminal.run("pause", "--all", "--yes", "--reason", "audit")
    out, err = terminal.run("protect", "run-1", "--layer", LAYER)
    assert err == ""
    assert out.startswith(f"run-1: protected {LAYER} (given by ")
    assert out.endswith(f"  in force: paused; protected {LAYER}\n")
    (everyone, own) = json.loads(terminal.run("show", "--json")[0])
    assert everyone["run_id"] == "*"
    assert everyone["order"]["reason"] == "audit"
    assert own["order"]["protected_layers"] == [LAYER]
    assert not own["order"]["paused"]
    assert own["effective"] == {"paused": True, "dry_run": False, "protected_layers": [LAYER], "reason": "audit"}
    assert [each["run_id"] for each in json.loads(terminal.run("show", "--all", "--json")[0])] == ["*"]


def test_an_order_for_all_runs_is_confirmed(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    for addressee in ("--all", "*"):
        for command in (["pause"], ["resume"], ["dry-run"], ["protect", "--layer", "x"], ["clear"]):
            _, err = terminal.run(*command, addressee, status=1)
            assert "needs a confirmation, and there is no terminal to ask at: add --yes" in err
    assert terminal.published() == []
    for answer, count in (("n", 0), ("y", 1)):
        screen = io.StringIO(f"{answer}\n")
        monkeypatch.setattr(screen, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", screen)
        _, err = terminal.run("pause", "--all", status=1 - count)
        assert len(terminal.published()) == count
        assert ("Aborted" in err) is (count == 0)


def test_an_order_for_all_runs_names_the_orders_that_stay(terminal: Terminal) -> None:
    terminal.run("pause", "run-1")
    out, _ = terminal.run("resume", "--all", "--yes")
    assert out.startswith("nothing to change: all runs: no order\n  run-1: paused (given")


def test_each_command_changes_one_thing(terminal: Terminal) -> None:
    def order(*arguments: str) -> dict[str, Any]:
        found = json.loads(terminal.run(*arguments, "--json")[0])
        assert found["changed"]
        assert found["run_id"] == "run-1"
        kept: dict[str, Any] = {
            name: found["order"][name] for name in ("paused", "dry_run", "protected_layers", "reason")
        }
        return kept

    expected: dict[str, Any] = {"paused": True, "dry_run": False, "protected_layers": [], "reason": "r"}
    assert order("pause", "run-1", "--reason", "r") == expected
    assert order("dry-run", "run-1") == (expected := expected | {"dry_run": True})
    assert order("protect", "run-1", "--layer", LAYER) == (expected := expected | {"protected_layers": [LAYER]})
    assert order("resume", "run-1") == (expected := expected | {"paused": False})
    assert order("dry-run", "run-1", "--end") == (expected := expected | {"dry_run": False})
    assert order("protect", "run-1", "--remove", LAYER) == expected | {"protected_layers": [], "reason": ""}
    found = json.loads(terminal.run("clear", "run-1", "--json")[0])
    assert found["order"] is None
    assert found["before"]["protected_layers"] == []
    assert not json.loads(terminal.run("clear", "run-1", "--json")[0])["changed"]
    assert [each.value is None for each in terminal.published()] == [False] * 6 + [True]


def test_unknown_runs_and_layers_get_a_warning_and_the_order_all_the_same(terminal: Terminal) -> None:
    out, err = terminal.run("pause", "run-2", "--json")
    assert "warning: no run 'run-2' has published its topology yet (did you mean 'run-1'?)" in err
    assert json.loads(out)["warnings"] == [
        "no run 'run-2' has published its topology yet (did you mean 'run-1'?); the order waits for it"
    ]
    _, err = terminal.run("protect", "run-1", "--layer", "nowhere", "--remove", "never")
    assert "warning: run 'run-1' does not have a layer 'nowhere'" in err
    assert "warning: layer 'never' was not protected by this order" in err
    assert "no known run has a layer 'nowhere'" in terminal.run("protect", "--all", "--layer", "nowhere", "-y")[1]
    assert len(terminal.published()) == 3


def test_a_topology_topic_that_cannot_be_read_is_a_warning(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    from tamiyo.schemas.errors import BrokerError
    from tamiyo.streams.admin import control

    def forbidden(*_: object, **__: object) -> None:
        raise BrokerError("not authorised")

    monkeypatch.setattr(control, "known_runs", forbidden)
    assert "warning: runs and layers were not checked: not authorised" in terminal.run("pause", "run-1")[1]
    assert len(terminal.published()) == 1


def test_an_order_undone_by_another_operator_ends_with_status_1(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tamiyo.streams.admin import control

    publish = control.publish_order

    def overruled(addressee: str, order: ControlCommand, *more: Any) -> tuple[int, int]:
        place = publish(addressee, order, *more)
        undone = ControlCommand(run_id=addressee, time_ms=order.time_ms + 1, issued_by="bob\x1b[2J")
        terminal.log.publish(CONTROL, [undone])
        return place

    monkeypatch.setattr(control, "publish_order", overruled)
    out, err = terminal.run("pause", "run-1", status=1)
    assert "warning: bob\\x1b[2J changed this order at the same time" in err
    assert "has undone the change" in err
    assert out.startswith("run-1: everything allowed (given by bob\\x1b[2J at ")

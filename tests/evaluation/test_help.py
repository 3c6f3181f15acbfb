"""Every evaluation program explains itself with an example."""

import runpy

import pytest

PROGRAMS = (
    "bench", "bench.aiokafka_peer", "bench.faust_peer", "bench.quix_peer", "faults", "hostile", "outage", "overload",
    "replay", "scale", "soak", "soak.plot", "soak.report",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # another test may have imported the program
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_has_an_example(program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", [program, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"tamiyo.evaluation.{program}", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    assert "Example" in capsys.readouterr().out

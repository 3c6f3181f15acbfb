"""The scale program: its loads, what it derives from the measurements, and how an unfinished report is continued."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tamiyo.evaluation.bench.chain import messages
from tamiyo.evaluation.common.simulated_runs import Load
from tamiyo.evaluation.common.stage_bench import Bench, stage_inputs
from tamiyo.evaluation.scale import __main__ as scale
from tamiyo.evaluation.scale.cells import CHAIN, FULL, QUICK, STEPS_PER_WINDOW, cells, load_of, steps_of
from tamiyo.evaluation.scale.costs import line, memory, unit_costs
from tamiyo.evaluation.scale.flow import plan_cores
from tamiyo.evaluation.scale.plot import draw
from tamiyo.evaluation.scale.results import summary
from tamiyo.schemas.topics import BY_NAME
from tamiyo.streams.admin.plan import Demand, UnitCosts, size
from tamiyo.streams.settings import WindowSettings

STAGES = (*CHAIN, "rewards")


def test_the_cells_cover_the_range_of_the_claim() -> None:
    found = list(cells(FULL, cores=2))
    assert {cell.load.runs for cell in found} >= {1, 10, 100, 1000}
    assert {cell.load.layers for cell in found} >= {1, 2000}
    assert [len(cell.workers) for cell in found if cell.pinned] == [1, 2]
    assert len({cell.name for cell in found}) == len({cell.load.name for cell in found}) == len(found)
    assert [len(cell.workers) for cell in cells(QUICK, cores=1) if cell.pinned] == [1]


@pytest.mark.parametrize("cell", list(cells(FULL, cores=2)), ids=lambda cell: cell.name)
def test_every_load_leaves_one_window_for_the_last_step(cell: Any) -> None:
    load, width = cell.load, WindowSettings().width
    assert load.interval * STEPS_PER_WINDOW == width
    windows = load.windows(width) // load.runs
    assert windows == (load.frames - 2) // STEPS_PER_WINDOW + 1 >= 2
    # The last step but one completes all windows but the last.
    assert (load.frames - 2) * load.interval == (windows - 1) * width


@pytest.mark.parametrize("windows", [1, 3])
def test_open_runs_have_one_window_less(tmp_path: Path, windows: int) -> None:
    load = Load(runs=2, layers=2, frames=steps_of(windows), interval=25)
    inputs = stage_inputs(load, Bench(load, f"file://{tmp_path}"))
    assert len(inputs["graphs"].messages) == load.runs * (windows + 1)
    last = list(messages(load))[load.runs + 3 * load.runs * (load.frames - 1) :]
    assert len(last) == 3 * load.runs


def test_a_load_has_the_signals_that_were_wanted_unless_it_has_few_layers() -> None:
    load = load_of("load", runs=4, layers=50, signals=80_000)
    assert load.layer_signals == pytest.approx(80_000, rel=0.05)
    assert load_of("load", runs=4, layers=1, signals=80_000).layer_signals == pytest.approx(4_000, rel=0.05)


def test_workers_get_the_first_cores_and_others_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {4, 5, 6, 7})
    assert plan_cores(2) == ([4, 5], [6, 7])
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert plan_cores(2) == ([0, 1], [0, 1])


def test_a_line_is_found_again() -> None:
    layers = (1, 10, 100, 2000)
    assert line(layers, [7 + 3 * each for each in layers]) == {"fixed": pytest.approx(7), "layer": pytest.approx(3)}
    # No line fits: every point counts by its relative error, so the smallest is not sacrificed to the largest.
    bent = line((1, 10, 1000), [100.0, 130.0, 20_000.0])
    assert 50 < bent["fixed"] + bent["layer"] < 100  # 25 with equal absolute errors
    falling = line((1, 100), [10.0, 5.0])
    assert falling["layer"] == 0
    assert falling["fixed"] > 0


def cell(runs: int, layers: int, workers: list[list[str]], *, pinned: bool = False, factor: float = 1.0) -> Any:
    """Return a measurement of a machine whose costs are exact lines."""
    steps, windows = runs * 10, runs * 5
    per_worker = [(100 + 2 * layers) * steps * factor / 1e6 / (len(workers) if pinned else 1) for _ in workers]
    held = 300e6 + runs * (50_000 + 1_000 * layers)
    return {
        "runs": runs,
        "layers": layers,
        "steps": steps,
        "windows": windows,
        "layer_signals": 2 * layers * steps,
        "workers": workers,
        "cores": list(range(len(workers))) if pinned else [],
        "rounds": [
            {
                "wall_s": sum(per_worker) / (len(workers) if pinned else 1),
                "cpu_s": per_worker,
                "broker_cpu_s": (10 + layers) * steps / 1e6,
                "rss_bytes": [[300e6, held] for _ in workers],
                "topics": {name: [steps, (400 + 30 * layers) * steps] for name in BY_NAME},
            }
        ],
    }


@pytest.fixture
def measured() -> dict[str, Any]:
    alone = [[stage] for stage in STAGES]
    found = {f"{runs} runs": cell(runs, 20, [list(CHAIN)]) for runs in (1, 10, 100)}
    found["2 runs"] = cell(20, 200, [list(CHAIN)])
    found |= {f"{layers} layers": cell(4, layers, alone) for layers in (1, 10, 100)}
    found |= {f"{count} workers": cell(32, 50, [list(CHAIN)] * count, pinned=True) for count in (1, 2)}
    return found


def test_unit_costs_are_those_of_the_machine(measured: dict[str, Any]) -> None:
    found = unit_costs(measured, {"20": 1.0, "200": 10.0})
    assert found["processor_us"]["intake"] == {"per": "step", "fixed": pytest.approx(100), "layer": pytest.approx(2)}
    assert found["processor_us"]["rewards"] == {"per": "window", "fixed": pytest.approx(200), "layer": pytest.approx(4)}
    assert found["broker_us"] == {"per": "step", "fixed": pytest.approx(10), "layer": pytest.approx(1)}
    assert found["learner_us"] == {"per": "window", "fixed": pytest.approx(0, abs=1), "layer": pytest.approx(50)}
    assert found["topic_bytes"]["tamiyo.health.signals"]["layer"] == pytest.approx(30)
    assert found["topic_bytes"]["tamiyo.model.topology"] == {
        "per": "run", "fixed": pytest.approx(4_000), "layer": pytest.approx(300),
    }  # fmt: skip
    assert found["memory_bytes"] == {
        "worker": pytest.approx(300e6), "run": pytest.approx(50_000, rel=0.01), "layer": pytest.approx(1_000, rel=0.01),
    }  # fmt: skip
    costs = UnitCosts.model_validate({**found, "measured": {}})
    assert size(Demand(runs=100, layers=10, interval_s=1.0), costs).stage_cores["intake"] == pytest.approx(0.012)


def test_memory_is_fitted_over_runs_and_layers() -> None:
    found = memory([cell(runs, layers, [list(CHAIN)]) for runs, layers in ((1, 20), (1000, 20), (200, 200))])
    assert found == {"worker": pytest.approx(300e6), "run": pytest.approx(50_000), "layer": pytest.approx(1_000)}


def test_the_summary_shows_flatness_and_the_second_worker(measured: dict[str, Any]) -> None:
    found = summary(measured)
    assert list(found["runs"]) == ["1", "10", "100"]
    assert found["runs"]["10"] == {"signal_us": 3.5, "growth_bytes": 700_000}
    assert found["runs_flatness"] == 1.0
    assert found["layers"]["100"] == {"signal_us": 7.5, "step_us": 1500.0}
    assert found["two_workers"] == {"wall": 2.0, "processor": 2.0}
    measured["100 runs"] = cell(100, 20, [list(CHAIN)], factor=1.5)
    assert summary(measured)["runs_flatness"] == 1.5


def test_a_summary_of_a_part_leaves_out_what_is_missing(measured: dict[str, Any]) -> None:
    found = summary({name: each for name, each in measured.items() if name.endswith("layers")})
    assert found["runs"] == {}
    assert "two_workers" not in found


def test_an_unfinished_report_is_continued(tmp_path: Path) -> None:
    report, home = tmp_path / "scale.json", tmp_path
    empty = scale.started(report, True, {}, home)
    assert (empty["cells"], empty["complete"]) == ({}, False)
    scale.save(report, {**empty, "cells": {"1 run": 1}})
    assert scale.started(report, True, {}, home)["cells"] == {"1 run": 1}
    assert scale.started(report, False, {}, home)["cells"] == {}  # of other sizes
    scale.save(report, {**empty, "cells": {"1 run": 1}, "complete": True})
    assert scale.started(report, True, {}, home)["cells"] == {}
    assert [path.name for path in tmp_path.iterdir()] == ["scale.json"]


def test_measured_cells_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[str, Any]
) -> None:
    wanted = [each.name for each in cells(QUICK, cores=len(plan_cores(2)[0]))]
    done: list[str] = []

    def measure(_where: Any, each: Any) -> Any:
        done.append(each.name)
        return measured["1 runs"]

    monkeypatch.setattr(scale, "measure", measure)
    monkeypatch.setattr(scale, "broker", lambda kind: nullcontext(None))
    monkeypatch.setattr(scale, "learner_ms", lambda layers: 1.0)
    result = {"cells": {wanted[0]: measured["1 runs"]}, "learner_ms": {"4": 2.0}}
    report = tmp_path / "scale.json"
    scale.measure_all(QUICK, result, report, scale.Console(quiet=True))
    assert done == wanted[1:]
    written = json.loads(report.read_text())
    assert list(written["cells"]) == wanted
    assert written["learner_ms"] == {"4": 2.0, "8": 1.0}


def test_the_figure_depends_on_the_report_alone(tmp_path: Path, measured: dict[str, Any]) -> None:
    report = {"cells": measured, "summary": summary(measured)}
    for name in ("one.svg", "two.svg"):
        draw(report, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    draw(
        {"cells": measured, "summary": summary({**measured, "10 runs": cell(10, 20, [list(CHAIN)], factor=9)})},
        tmp_path / "two.svg",
    )
    assert (tmp_path / "one.svg").read_bytes() != (tmp_path / "two.svg").read_bytes()

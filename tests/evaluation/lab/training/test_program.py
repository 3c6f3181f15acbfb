"""`make train-policy`: measures, fits, writes a policy that a learner can start from, goes on where it stopped."""

import pytest
from typer.testing import CliRunner

from tamiyo.evaluation.lab.hosts import lab_task
from tamiyo.evaluation.lab.training import __main__ as program
from tamiyo.evaluation.lab.training.lookahead import LookaheadJob
from tamiyo.evaluation.lab.training.plan import first_round, further_round, later_round
from tamiyo.host.blueprints import names
from tamiyo.models.builtin import initial_policy
from tamiyo.models.checkpoint import load

runner = CliRunner()


@pytest.fixture
def short(monkeypatch):
    """Two rounds of two short runs, and a fit of two epochs."""
    monkeypatch.setattr(
        program, "first_round", lambda passes: [LookaheadJob("digits", "random:0.3", n, steps=300) for n in (1, 2)]
    )
    monkeypatch.setattr(
        program,
        "later_round",
        lambda number, passes, policy: [LookaheadJob("digits", policy, 3, steps=300, points=8)],
    )
    monkeypatch.setattr(program, "FitSettings", lambda **fields: settings(**fields))


def settings(**fields):
    from tamiyo.evaluation.lab.training.fit import FitSettings

    return FitSettings(hidden=8, layers=1, heads=2, epochs=2, actor_epochs=2, **fields)


def test_it_trains_and_goes_on_where_it_stopped(short, tmp_path):
    folder, output = tmp_path / "runs", tmp_path / "policy.safetensors"
    arguments = ["--folder", str(folder), "--output", str(output), "--workers", "1", "--passes", "1"]
    found = runner.invoke(program.app, [*arguments, "--rounds", "2"])
    assert found.exit_code == 0, found.output
    policy = initial_policy(str(output), tuple(names()))
    assert policy.config.heuristic_weight == 0.0
    runs = sorted(folder.glob("*.parquet"))
    assert len(runs) == 3
    before = {path: path.stat().st_mtime_ns for path in runs}
    first = output.read_bytes()
    runs[0].unlink()
    again = runner.invoke(program.app, [*arguments, "--rounds", "2"])
    assert again.exit_code == 0, again.output
    assert output.read_bytes() == first  # the run was made again to the bit
    assert {path: path.stat().st_mtime_ns for path in runs[1:]} == {path: before[path] for path in runs[1:]}


def test_it_reports_why_it_cannot_train(short, monkeypatch, tmp_path):
    monkeypatch.setattr(program, "first_round", lambda passes: [LookaheadJob("nowhere", "heuristic", 1)])
    found = runner.invoke(program.app, ["--folder", str(tmp_path), "--rounds", "1", "--workers", "1"])
    assert found.exit_code == 1
    assert "there is no task 'nowhere'" in found.output.replace("\n", "")
    assert "measured anything" in found.output


def test_the_plan_has_other_runs_in_every_pass_and_round():
    jobs = [
        *first_round(12),
        *later_round(1, 12, "heuristic"),
        *later_round(2, 12, "heuristic"),
        *further_round(14, "builtin"),
    ]
    assert len({job.name for job in jobs}) == len(jobs)
    tasks = {job.task for job in jobs}
    assert {"mnist1d", "digits", "mnist5k", "chars", "resnet"} <= tasks
    assert not tasks & {"charconv", "mixer"}  # held out
    networks = {type(lab_task(job.task).make_network()).__name__ for job in jobs if "-" in job.task}
    assert networks == {"Sequential", "TextPerceptron", "TextConvolutions", "Encoder", "ResidualPerceptron", "ResNet"}


def test_a_policy_learns_more(short, monkeypatch, tmp_path):
    jobs = [
        LookaheadJob("varied-1", "builtin", 1, steps=300, points=8, tries=2),
        LookaheadJob("digits", "builtin", 2, steps=300, points=12, tries=0),
    ]
    monkeypatch.setattr(program, "further_round", lambda passes, teacher: jobs)
    output = tmp_path / "policy.safetensors"
    arguments = ["--folder", str(tmp_path / "runs"), "--output", str(output), "--workers", "1"]
    found = runner.invoke(program.app, [*arguments, "--teacher", "builtin"])
    assert found.exit_code == 0, found.output
    policy, header, _ = load(output.read_bytes(), blueprints=tuple(names()))
    assert policy.config.hidden == initial_policy("builtin", tuple(names())).config.hidden
    assert header.metrics["charts/lessons"] > 0
    assert header.metrics["charts/actions"] > 0


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [("heuristic", "no learned policy"), ("learned:/nowhere", "cannot be read"), ("nobody", "there is no baseline")],
)
def test_only_a_learned_policy_can_teach(tmp_path, teacher, reason):
    found = runner.invoke(program.app, ["--folder", str(tmp_path / "runs"), "--teacher", teacher])
    assert found.exit_code == 1
    assert reason in found.output.replace("\n", "")
    assert not (tmp_path / "runs").exists()

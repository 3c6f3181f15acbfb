import json

import pytest

from tamiyo.evaluation.evidence import figures, policy
from tamiyo.evaluation.evidence.policy import PAIRS, POLICY, SEEDS, against, judged_decisions, judged_learning, report
from tamiyo.evaluation.evidence.reward import read, save


def pair_rows():
    """The policy gains .3 on digits and nothing on mixer; the heuristic .1 on both, each with a little noise."""
    rows = []
    for task, gains in (("digits", {POLICY: 0.3, "heuristic": 0.1}), ("mixer", {POLICY: 0.0, "heuristic": 0.1})):
        for name, gain in gains.items():
            for seed in range(10):
                value = gain + 0.001 * (seed % 3) * (1 if name == POLICY else -1)
                rows.append(
                    {
                        "task": task, "policy": name, "seed": seed, "equal_compute": value, "equal_steps": 2 * value,
                        "cost": 0.05, "adaptations": 2, "slower": 1.5,
                    }
                )  # fmt: skip
    return rows


def decision_rows(gains):
    return [
        {"task": "digits", "seed": 1, "type": "load_kernel", "blueprint": "x", "step": 50, "gain": g, "cost": 0.02}
        for g in gains
    ]


def curve(seed, rewards, no_op=0.1):
    return [{"seed": seed, "experiences": 50 * i, "reward": r, "no_op": no_op} for i, r in enumerate(rewards)]


def test_differences_are_of_log_losses_by_pairs() -> None:
    found = against(pair_rows(), "heuristic")
    digits, mixer = found["digits"], found["mixer"]
    assert digits["difference"] == pytest.approx(-0.2, abs=0.01)  # a higher gain is a lower loss
    assert digits["low"] < digits["difference"] < digits["high"] < 0
    assert (digits["n"], digits["held_out"], mixer["held_out"]) == (10, False, True)
    assert mixer["low"] > 0
    assert against(pair_rows(), "never")["digits"]["difference"] == pytest.approx(-0.3, abs=0.01)
    assert against(pair_rows(), "never", "equal_steps")["digits"]["difference"] == pytest.approx(-0.6, abs=0.01)


def test_only_seeds_of_both_count() -> None:
    rows = [row for row in pair_rows() if not (row["policy"] == "heuristic" and row["seed"] > 3)]
    assert against(rows, "heuristic")["digits"]["n"] == 4
    assert against(rows, "nobody") == {}


def test_decisions_are_judged_by_their_twins() -> None:
    found = judged_decisions(decision_rows([0.3, 0.01, -0.1, 0.001]))
    assert found["executed"] == 4
    assert found["beat_twin"] == 0.75
    assert found["beat_twin_and_costs"] == 0.25
    assert found["unnecessary"] == 0.25
    assert found["late"] == 0.0
    assert judged_decisions(decision_rows([0.3, 0.0]))["late"] == 0.5
    assert found["by_task"]["digits"]["mean_gain"] == pytest.approx(0.05275)
    assert judged_decisions([])["executed"] == 0


def test_learners_are_judged_by_their_curves() -> None:
    rising = curve(0, [0.1, 0.2, 0.3, 0.6, 0.58, 0.6])
    falling_back = curve(1, [0.1, 0.6, 0.2, 0.2, 0.6, 0.6])
    collapsed = curve(2, [0.1, 0.05, 0.0, 0.0, 0.0, 0.0], no_op=0.95)
    found = judged_learning([*rising, *falling_back, *collapsed])
    assert (found["seeds"], found["collapsed"], found["improved"], found["improved_after_100"]) == (3, 1, 2, 2)
    assert judged_learning(rising)["experiences_to_converge"] == 150
    assert judged_learning(falling_back)["experiences_to_converge"] == 200
    assert judged_learning([])["experiences_to_converge"] is None


def test_the_report_is_json_and_the_page_shows_it(tmp_path) -> None:
    found = report(pair_rows(), decision_rows([0.1]), curve(0, [0.1, 0.5, 0.6]))
    assert json.loads(json.dumps(found)) == found
    assert set(found["policy"]) == {"never", "heuristic"}
    text = "\n".join(policy.lines(found))
    assert "| heuristic | **-0.202" in text
    assert "mixer (held out)" in text
    figures.draw_policy(found["policy"], curve(0, [0.1, 0.5]), tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {figures.POLICY, figures.LEARNERS}


def test_the_suite_pairs_every_policy_with_never_adapting_on_seeds_of_its_own(tmp_path) -> None:
    jobs = policy.pair_jobs()
    assert len({job.name for job in jobs}) == len(jobs)
    made = {(job.task, job.policy, job.seed) for job in jobs}
    assert all((task, "never", seed) in made for task, _, seed in made)
    for task, (main, rules) in SEEDS.items():
        assert sum(job.task == task and job.policy == POLICY for job in jobs) == main
        assert sum(job.task == task and job.policy == "plateau" for job in jobs) == rules
    assert not {job.seed for job in policy.twin_jobs()} & {job.seed for job in jobs}
    save(pair_rows(), tmp_path / PAIRS)
    assert read(tmp_path / PAIRS) == pair_rows()


def test_only_runs_without_a_committed_row_are_missing() -> None:
    jobs = policy.pair_jobs()
    made = [{"task": job.task, "policy": job.policy, "seed": job.seed} for job in jobs if job.policy != "never"]
    assert policy.missing_jobs(made, 20) == []
    lacks = [row for row in made if (row["task"], row["policy"], row["seed"]) != ("mixer", "static", policy.SEED + 1)]
    missing = policy.missing_jobs(lacks, 20)
    assert [(job.task, job.policy, job.seed) for job in missing] == [
        ("mixer", "never", policy.SEED + 1),
        ("mixer", "static", policy.SEED + 1),
    ]
    assert policy.missing_jobs(lacks, 1) == []
    assert policy.missing_jobs([], 3) == policy.pair_jobs(3)
    assert {job.seed for job in policy.pair_jobs(3)} == set(range(policy.SEED, policy.SEED + 3))


def test_the_rows_of_a_package_that_is_missing_here_are_kept(monkeypatch) -> None:
    rows = [{"task": "digits", "policy": name, "seed": policy.SEED} for name in ("gromo", "plateau")]
    for installed in (False, True):
        monkeypatch.setattr(policy, "_has_gromo", lambda installed=installed: installed)
        assert [row["policy"] for row in policy.not_repeatable(rows)] == ([] if installed else ["gromo"])
        made = {(job.task, job.seed) for job in policy.pair_jobs() if job.policy == "gromo"}
        assert made == ({("digits", policy.SEED + index) for index in range(20)} if installed else set())


def test_new_pairs_join_the_committed_ones_which_stay(tmp_path, monkeypatch) -> None:
    def row(task, name, seed, value):
        return {"task": task, "policy": name, "seed": policy.SEED + seed, "equal_compute": value}

    committed = [row("digits", "plateau", 0, 0.1), row("mnist1d", "builtin", 1, 0.2)]
    new = [row("digits", "plateau", 0, 9.0), row("digits", "static", 0, 0.3), row("mnist1d", "builtin", 0, 0.4)]
    monkeypatch.setattr(policy, "measure_pairs", lambda folder: new)
    assert policy.with_new_pairs(committed, tmp_path) == [
        row("mnist1d", "builtin", 0, 0.4),
        row("digits", "static", 0, 0.3),
        row("digits", "plateau", 0, 0.1),
        row("mnist1d", "builtin", 1, 0.2),
    ]


def test_static_networks_have_their_rows_on_the_page() -> None:
    rows = pair_rows() + [
        {**row, "policy": "static", "equal_compute": 0.0, "equal_steps": 0.0}
        for row in pair_rows()
        if (row["policy"], row["task"]) == (POLICY, "digits")
    ]
    found = report(rows, [], [])
    assert set(found["policy"]["static"]["digits"]) == {"n", "difference", "low", "high", "held_out"}
    text = "\n".join(policy.lines(found))
    assert text.count("| static | **-0.30") == 1
    assert text.count("| static | **-0.60") == 1
    assert "| static_wider |" not in text


def test_two_pairs_have_no_interval() -> None:
    rows = [row for row in pair_rows() if row["seed"] < 2]
    found = against(rows, "heuristic")["digits"]
    assert (found["low"], found["high"]) == (None, None)
    shown = report(rows, [], [])
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert "| heuristic | -0.2" in "\n".join(policy.lines(shown))

"""The alert rules: cases in which each fires and does not, run by promtool, and a runbook for each."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tamiyo.streams.stages.registry import STAGES
from tests.deploy.support import ROOT, expression_problems, load_yaml

ALERTS = "deploy/prometheus/alerts.yml"
CASES = "tests/deploy/alerts_test.yml"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: install Debian's package prometheus"
)


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    return [rule for group in load_yaml(ALERTS)["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    return [each for test in load_yaml(CASES)["tests"] for each in test["alert_rule_test"]]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def run_cases(folder: Path, alerts: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run the cases against rules whose annotations are left out."""
    for group in alerts["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    (folder / "alerts.yml").write_text(yaml.safe_dump(alerts))
    shutil.copy(ROOT / CASES, folder)
    return promtool("test", "rules", folder / Path(CASES).name)


def test_every_alert_uses_existing_series_and_advises(rules: list[dict[str, Any]]) -> None:
    assert rules
    for rule in rules:
        assert expression_problems(rule["expr"]) == [], rule["alert"]
        assert rule["alert"].startswith("Tamiyo")
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(
    rules: list[dict[str, Any]], cases: list[dict[str, Any]]
) -> None:
    names = [rule["alert"] for rule in rules]
    assert len(set(names)) == len(names)
    assert {each["alertname"] for each in cases if each.get("exp_alerts")} == set(names)
    assert {each["alertname"] for each in cases if not each.get("exp_alerts")} == set(names)


def test_each_stage_is_expected_by_itself(rules: list[dict[str, Any]]) -> None:
    (rule,) = [rule for rule in rules if rule["alert"] == "TamiyoStageMissing"]
    found = re.findall(r'tamiyo_stage_partitions{stage="(\w+)"}, "stage", "(\w+)"', rule["expr"])
    assert found == [(stage, stage) for stage in STAGES]


def test_every_series_of_the_cases_exists() -> None:
    series = {each["series"] for test in load_yaml(CASES)["tests"] for each in test["input_series"]}
    assert {name: found for name in series if (found := expression_problems(name))} == {}


@needs_promtool
def test_rules_and_templates_are_valid() -> None:
    done = promtool("check", "rules", ROOT / ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_cases_hold(tmp_path: Path) -> None:
    done = run_cases(tmp_path, load_yaml(ALERTS))
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_a_case_fails_with_the_rule_that_misses_it(tmp_path: Path) -> None:
    alerts = load_yaml(ALERTS)
    (rule,) = [each for group in alerts["groups"] for each in group["rules"] if each["alert"] == "TamiyoRestarting"]
    rule["expr"] = rule["expr"].replace("> 2", "> 3")
    done = run_cases(tmp_path, alerts)
    assert done.returncode != 0
    assert "TamiyoRestarting" in done.stdout + done.stderr


def test_every_alert_links_its_chapter_of_the_runbook(rules: list[dict[str, Any]]) -> None:
    pages = {}
    for rule in rules:
        path, _, heading = rule["annotations"]["runbook_url"].partition("#")
        text = pages.setdefault(path, (ROOT / path).read_text(encoding="utf-8"))
        chapters = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
        (chapter,) = [each for each in chapters if each.partition("\n")[0] == rule["alert"]]
        assert heading == rule["alert"].lower()  # as the generator of the site makes it from the heading
        for part in ("**Means.**", "**Look at.**", "**Do.**"):
            assert part in chapter, f"{rule['alert']}: {part}"

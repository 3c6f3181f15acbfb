"""Prometheus and Grafana: the program exports every series and label that they use."""

import json
import re
from typing import Any

import pytest

from tests.deploy.support import ROOT, expression_problems, load_yaml, metrics

DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    (path,) = DASHBOARDS
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def test_wrong_expressions_are_found() -> None:
    assert expression_problems("rate(tamiyo_nonsense_total[5m])")
    assert expression_problems('rate(tamiyo_records_received_total{colour="red"}[5m])')
    assert expression_problems("sum by (colour) (tamiyo_stage_open_records)")
    assert expression_problems("sum(tamiyo_stage_open_records")
    assert expression_problems("vector(1)")
    assert expression_problems("tamiyo_policy_version and on (colour) tamiyo_stage_open_records")
    assert expression_problems('tamiyo_stage_open_records{stage="nonsense"}')
    assert expression_problems('sum by (stage) (rate(tamiyo_records_received_total{stage="intake"}[5m]))') == []


def test_every_panel_shows_series_that_exist(dashboard: dict[str, Any]) -> None:
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(panels) > 10
    problems = {
        panel["title"]: found
        for panel in panels
        for target in panel["targets"]
        if (found := expression_problems(target["expr"]))
    }
    assert problems == {}


def test_every_panel_is_of_the_chosen_installation_and_run(dashboard: dict[str, Any]) -> None:
    series = [
        (panel["title"], *found)
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        for found in re.findall(r"\b(tamiyo_\w+)({[^}]*})?", target["expr"])
    ]
    assert series
    for title, name, matchers in series:
        assert 'prefix=~"$prefix"' in matchers, f"{title}: {name}"
        assert ('run=~"$run"' in matchers) == name.startswith("tamiyo_host_"), f"{title}: {name}"


def test_variables_are_labels_that_exist(dashboard: dict[str, Any]) -> None:
    variables = {each["name"]: each["query"]["query"] for each in dashboard["templating"]["list"]}
    assert variables.keys() == {"prefix", "run"}
    for name, query in variables.items():
        values = re.fullmatch(r"label_values\((\w+)({.*})?, (\w+)\)", query)
        assert values is not None, query
        assert values[3] == name
        assert expression_problems(f"{values[1]}{values[2] or ''}") == []
        assert name == "prefix" or name in metrics()[values[1]]
    # An installation without a prefix has no such label.
    assert all(each["allValue"] == ".*" and each["includeAll"] for each in dashboard["templating"]["list"])


def test_decisions_and_releases_are_annotations(dashboard: dict[str, Any]) -> None:
    found = dashboard["annotations"]["list"]
    assert {each["name"]: expression_problems(each["expr"]) for each in found} == {each["name"]: [] for each in found}
    assert sum("tamiyo_host_decisions_total" in each["expr"] for each in found) == 2
    for each in found:
        labels = {label for group in re.findall(r"by \(([^)]*)\)", each["expr"]) for label in group.split(", ")}
        assert set(re.findall(r"{{(\w+)}}", each["titleFormat"])) <= labels


def test_shedding_lag_and_training_runs_are_shown(dashboard: dict[str, Any]) -> None:
    shown = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", []))
    for name in ("tamiyo_layer_signals_shed_total", "tamiyo_stage_lag_records", "tamiyo_host_overhead_ratio"):
        assert name in shown
    assert "Training runs" in [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]


def test_legends_use_labels_that_the_expression_keeps(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            kept = re.findall(r"by \(([^)]*)\)", target["expr"])
            if not kept:
                continue
            labels = {label.strip() for group in kept for label in group.split(",")}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels, panel["title"]


def test_panels_have_their_own_ids_and_places(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


def test_the_data_source_is_the_one_that_is_provisioned(dashboard: dict[str, Any]) -> None:
    (source,) = load_yaml("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    used = {panel["datasource"]["uid"] for panel in dashboard["panels"] if "datasource" in panel}
    assert used == {source["uid"]}
    services = load_yaml("docker-compose.yml")["services"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert f"127.0.0.1:{port}:{port}" in services[host]["ports"]


def test_the_dashboard_is_where_grafana_reads_it() -> None:
    (provider,) = load_yaml("deploy/grafana/provisioning/dashboards/tamiyo.yml")["providers"]
    grafana = load_yaml("docker-compose.yml")["services"]["grafana"]
    path = provider["options"]["path"]
    assert f"./deploy/grafana/dashboards:{path}:ro" in grafana["volumes"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{path}/{DASHBOARDS[0].name}"


def test_prometheus_scrapes_every_process() -> None:
    config = load_yaml("deploy/prometheus/prometheus.yml")
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "tamiyo"]
    (discovery,) = job["dns_sd_configs"]
    services = load_yaml("docker-compose.yml")["services"]
    lasting = [
        name
        for name, service in services.items()
        if service["image"].startswith("esper-tamiyo") and service["restart"] == "unless-stopped"
    ]
    assert sorted(discovery["names"]) == sorted(lasting)
    assert {services[name]["environment"]["TAMIYO_WORKER_HTTP_PORT"] for name in lasting} == {str(discovery["port"])}


def test_prometheus_scrapes_the_training_runs() -> None:
    jobs = {job["job_name"]: job for job in load_yaml("deploy/prometheus/prometheus.yml")["scrape_configs"]}
    (discovery,) = jobs["tamiyo-host"]["dns_sd_configs"]
    (name,) = discovery["names"]
    assert load_yaml("docker-compose.yml")["services"][name]["command"][-2:] == ["--http-port", str(discovery["port"])]


def test_the_rules_file_is_where_prometheus_reads_it() -> None:
    (path,) = load_yaml("deploy/prometheus/prometheus.yml")["rule_files"]
    volumes = load_yaml("docker-compose.yml")["services"]["prometheus"]["volumes"]
    (folder,) = [volume.split(":") for volume in volumes if volume.startswith("./deploy")]
    assert (ROOT / path.replace(folder[1], folder[0])).is_file()

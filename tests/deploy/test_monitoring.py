"""Prometheus and Grafana: the program exports every series and label that they use."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tamiyo.streams.watch import PORT
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
    queries = [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
    variables = {each["name"]: each["query"]["query"] for each in queries}
    assert variables.keys() == {"prefix", "run"}
    for name, query in variables.items():
        values = re.fullmatch(r"label_values\((\w+)({.*})?, (\w+)\)", query)
        assert values is not None, query
        assert values[3] == name
        assert expression_problems(f"{values[1]}{values[2] or ''}") == []
        assert name == "prefix" or name in metrics()[values[1]]
    # An installation without a prefix has no such label.
    assert all(each["allValue"] == ".*" and each["includeAll"] for each in queries)


def test_decisions_and_releases_are_annotations(dashboard: dict[str, Any]) -> None:
    found = dashboard["annotations"]["list"]
    assert {each["name"]: expression_problems(each["expr"]) for each in found} == {each["name"]: [] for each in found}
    assert sum("tamiyo_host_decisions_total" in each["expr"] for each in found) == 2
    for each in found:
        labels = {label for group in re.findall(r"by \(([^)]*)\)", each["expr"]) for label in group.split(", ")}
        assert set(re.findall(r"{{(\w+)}}", each["titleFormat"])) <= labels


def test_annotations_name_the_run_that_they_are_about(dashboard: dict[str, Any]) -> None:
    for each in dashboard["annotations"]["list"]:
        if "tamiyo_host_" in each["expr"]:
            assert "{{run}}" in each["titleFormat"], each["name"]
            assert each["tagKeys"] == "run"
    expressions = " ".join(each["expr"] for each in dashboard["annotations"]["list"])
    for name in ("tamiyo_learner_policy_version", "tamiyo_learner_rollbacks_total"):
        assert name in expressions


def links(dashboard: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], set[str]]]:
    """Yield every link with where it is and the labels of the series that it is at."""
    for link in dashboard["links"]:
        yield "the dashboard", link, set()
    for panel in dashboard["panels"]:
        for link in panel.get("links", []):
            yield panel["title"], link, set()
        if "fieldConfig" not in panel:
            continue
        kept = [set(re.findall(r"\bby \(([^)]*)\)", target["expr"])) for target in panel["targets"]]
        labels = {label for groups in kept for group in groups for label in group.split(", ")}
        for link in panel["fieldConfig"]["defaults"].get("links", []):
            yield panel["title"], link, labels
        for override in panel["fieldConfig"].get("overrides", []):
            for each in override["properties"]:
                for link in each["value"] if each["id"] == "links" else ():
                    assert override["matcher"] == {"id": "byName", "options": "run"}, panel["title"]
                    yield panel["title"], link, labels


def link_problems(link: dict[str, Any], labels: set[str]) -> list[str]:
    """Return what is wrong with a link to the page of `tamiyo watch`."""
    problems = []
    base, mark, route = link["url"].partition("/#/")
    if base != "${watch_url:raw}" or not mark:
        problems.append(f"{link['url']} does not lead to a route of the page")
    if not re.fullmatch(r"|policy|installation|run/\$\{[^}]*:percentencode\}", route):
        problems.append(f"the page has no route {route}, or an id in it is not encoded")
    for name in re.findall(r"\$\{([^}:]*)", link["title"] + link["url"]):
        label = name.removeprefix("__field.labels.")
        if name not in ("watch_url", "__value.text") and (label == name or label not in labels):
            problems.append(f"there is no {name}")
    return problems if link["targetBlank"] else [*problems, "the link would replace the dashboard"]


def test_links_lead_to_the_page_of_a_run(dashboard: dict[str, Any]) -> None:
    found = list(links(dashboard))
    assert {where: problems for where, link, labels in found if (problems := link_problems(link, labels))} == {}
    linked = {where for where, link, _ in found if "/#/run/" in link["url"]}
    with_run = {
        panel["title"]
        for panel in dashboard["panels"]
        if any("by (run" in target["expr"] for target in panel.get("targets", []))
    }
    assert linked == with_run
    assert len(linked) > 5
    assert "the dashboard" in {where for where, *_ in found}


def test_wrong_links_are_found() -> None:
    good = {"title": "", "url": "${watch_url:raw}/#/run/${__field.labels.run:percentencode}", "targetBlank": True}
    assert link_problems(good, {"run"}) == []
    assert link_problems(good, {"stage"})
    for change in (
        {"url": "${watch_url:raw}/#/run/${__field.labels.run}"},
        {"url": "${watch_url:raw}/#/runs/"},
        {"url": "${watch_url:raw}/run/a"},
        {"url": "http://127.0.0.1:8470/#/"},
        {"url": "${watch:raw}/#/"},
        {"title": "${nothing}"},
        {"targetBlank": False},
    ):
        assert link_problems({**good, **change}, {"run"}), change


def test_the_address_of_the_page_is_where_it_is_served_by_default(dashboard: dict[str, Any]) -> None:
    (variable,) = [each for each in dashboard["templating"]["list"] if each["name"] == "watch_url"]
    url = f"http://127.0.0.1:{PORT}"
    assert (variable["type"], variable["query"]) == ("textbox", url)
    assert variable["current"] == {"text": url, "value": url}
    assert variable["options"] == [{"text": url, "value": url, "selected": True}]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing: install Debian's package prometheus")
def test_expressions_are_promql(dashboard: dict[str, Any], tmp_path: Path) -> None:
    expressions = [each["expr"] for each in dashboard["annotations"]["list"]]
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    replaced = [
        each.replace("$__rate_interval", "1m").replace("$prefix", ".*").replace("$run", ".*") for each in expressions
    ]
    assert not [each for each in replaced if "$" in each]
    rules = [{"record": f"expression{number}", "expr": each} for number, each in enumerate(replaced)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = subprocess.run(
        ["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


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

"""The page of Prometheus metrics."""

import dataclasses
import types
from collections.abc import Sequence
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from scripts.reference.markdown import code, modules_with, page, prose, section, table


def metrics() -> str:
    """Return the Prometheus metrics of every process, the stages, the learner and the training process."""
    from tamiyo.host import HandleStats

    groups: dict[str, list[tuple[str, ...]]] = {"Every process": [], "Stages": [], "Learner": []}
    collector: Any = None
    for module in modules_with("prometheus_client"):
        collector = getattr(module, "HostCollector", collector)
        for value in vars(module).values():
            if isinstance(value, MetricWrapperBase):
                (family,) = value.describe()
                part = family.name.split("_")[1]
                groups[PARTS.get(part, "Stages")].append(metric_row(family, value._labelnames))
    zeros: Any = {field.name: 0 for field in dataclasses.fields(HandleStats)} | {"run_id": ""}
    families = collector(types.SimpleNamespace(stats=HandleStats(**zeros))).collect()
    groups["Training process"] = [
        metric_row(each, sorted({label for sample in each.samples for label in sample.labels})) for each in families
    ]
    introduction = (
        "In Prometheus format at `/metrics` of every worker and learner, and of a training process started by "
        "`tamiyo train --http-port` or within `tamiyo.streams.process.host_metrics.served`. Units are seconds, bytes "
        "and plain counts. If `TAMIYO_TOPIC_PREFIX` is set, every metric has it as the label `prefix`."
    )
    sections = [section(title, table(HEADINGS, rows)) for title, rows in groups.items()]
    return page("Metrics", introduction, *sections)


PARTS = {"build": "Every process", "learner": "Learner"}
HEADINGS = ("metric", "kind", "labels", "meaning")


def metric_row(family: Any, labels: Sequence[str]) -> tuple[str, ...]:
    """Return one metric as a row."""
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return code(name), family.type, ", ".join(code(label) for label in labels), prose(family.documentation)

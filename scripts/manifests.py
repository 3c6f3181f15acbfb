"""Write the Kubernetes manifests that follow from other files: alerts and Kafka's users.

`python -m scripts.manifests` writes them; tests/deploy/test_kubernetes.py fails when they are out of date.
"""

from pathlib import Path
from textwrap import indent

import yaml

from tamiyo.schemas.kafka import TopicNames
from tamiyo.streams.admin.acls import ROLES, grants, kafka_user

ROOT = Path(__file__).parents[1]
COMPONENTS = ROOT / "deploy" / "kubernetes" / "components"
NOTE = "# Written by python -m scripts.manifests from {}: change that, and run it again.\n"
RULES = """apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tamiyo
spec:
"""


def prometheus_rule() -> str:
    """Return the alerts of Prometheus as a resource of the Prometheus operator."""
    source = "deploy/prometheus/alerts.yml"
    text = (ROOT / source).read_text(encoding="utf-8")
    return NOTE.format(source) + RULES + indent(text[text.index("groups:") :], "  ")


def kafka_users() -> str:
    """Return a KafkaUser for each role of an installation without a topic prefix, for Strimzi's cluster `kafka`."""
    users = [kafka_user(f"tamiyo-{role}", "kafka", grants(role, TopicNames(prefix=""))) for role in ROLES]
    return NOTE.format("streams/admin/acls.py") + yaml.safe_dump_all(users, sort_keys=False, width=160)


MANIFESTS = {"monitoring/prometheusrule.yaml": prometheus_rule, "strimzi/users.yaml": kafka_users}

if __name__ == "__main__":
    for name, make in MANIFESTS.items():
        (COMPONENTS / name).write_text(make(), encoding="utf-8")

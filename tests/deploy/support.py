"""The program's commands, settings and metrics, read from its code, to check the deployment files against."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer
import yaml
from prometheus_client import REGISTRY

from tamiyo.host import HandleStats
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.settings import variable
from tamiyo.streams.admin.configuration import variables
from tamiyo.streams.process.host_metrics import HostCollector
from tamiyo.streams.process.stop_times import EXIT_S
from tamiyo.streams.settings import SupervisorSettings, WorkerSettings
from tamiyo.streams.stages.registry import STAGES

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "models", "streams", "host")
# A version with at least a minor: `4`, `latest` or no tag at all may be another image tomorrow.
PINNED = re.compile(r"^[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?[a-z0-9.-]*$")


def load_yaml(path: str) -> Any:
    """Return the one document in a file of the repository."""
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def modules_with(text: str) -> list[str]:
    """Name the program's modules whose source holds `text`."""
    return [
        ".".join(("tamiyo", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if text in path.read_text(encoding="utf-8") and path.stem != "__main__"
    ]


def environment_problems(environment: Mapping[str, str]) -> list[str]:
    """Return the `TAMIYO_` variables that no settings class reads, or whose value it refuses."""
    problems = []
    for name, value in environment.items():
        if not name.startswith("TAMIYO_"):
            continue
        if name not in variables():
            problems.append(f"{name} is read by no settings class")
            continue
        cls, field = variables()[name]
        try:
            cls(**{field: value})
        except ConfigurationError as error:
            problems.append(str(error))
    return problems


def command_problem(arguments: Sequence[str]) -> str | None:
    """Return why `tamiyo` would refuse these arguments, without running anything."""
    command: Any = typer.main.get_command(import_module("tamiyo.streams.cli").app)
    context, rest = None, list(arguments)
    try:
        while True:
            context = command.make_context(command.name or "tamiyo", list(rest), parent=context)
            if not hasattr(command, "resolve_command"):
                break
            rest = [*context._protected_args, *context.args]
            _, command, rest = command.resolve_command(context, rest)
    except Exception as error:  # click's own tree of errors, wherever this typer keeps it
        return f"tamiyo {' '.join(arguments)}: {type(error).__name__}: {error}"
    unknown = [stage for stage in stages_of(arguments) if stage not in STAGES]
    return f"there are no stages {unknown}" if unknown else None


def stop_seconds(arguments: Sequence[str], environment: Mapping[str, str]) -> float:
    """Return the seconds that a container of this command may take to stop; the platform must wait longer.

    A supervisor kills its process after its own timeout, and a worker ends itself after its own.
    """
    alone = "--no-supervise" in arguments or environment.get("TAMIYO_SUPERVISOR_ENABLED", "true").lower() == "false"
    cls, name = (WorkerSettings, "shutdown_timeout_s") if alone else (SupervisorSettings, "stop_timeout_s")
    return float(environment.get(variable(cls, name), cls.model_fields[name].default)) + EXIT_S


def stages_of(arguments: Sequence[str]) -> list[str]:
    """Return the stages that a `worker` command names."""
    return [value for flag, value in pairwise(arguments) if flag == "--stage"]


@cache
def metrics() -> dict[str, set[str]]:
    """Return every series the program exports, with its labels: `_total`, `_bucket`, `_sum` and so on included."""
    for module in modules_with("prometheus_client import"):
        import_module(module)
    found = {name: set(getattr(each, "_labelnames", ())) for name, each in REGISTRY._names_to_collectors.items()}
    zeros: dict[str, Any] = {field.name: 0 for field in fields(HandleStats)} | {"run_id": "run"}
    host: Any = SimpleNamespace(stats=HandleStats(**zeros))
    for family in HostCollector(host).collect():
        for sample in family.samples:
            found[sample.name] = set(sample.labels)
    return found


# Labels that Prometheus adds (the scrape's own, a histogram's), and the one that every metric has.
OTHER_LABELS = {"job", "instance", "service", "namespace", "le", "prefix"}


def expression_problems(expression: str) -> list[str]:
    """Return the series and labels of a PromQL expression that the program does not export."""
    problems = []
    if expression.count("(") != expression.count(")") or expression.count("{") != expression.count("}"):
        problems.append(f"unbalanced: {expression}")
    names = set(re.findall(r"\btamiyo_\w+", expression))
    problems += [f"{name} is not exported" for name in names if name not in metrics()]
    if not names and not re.search(r"\bup\b|\bprocess_start_time_seconds\b", expression):
        problems.append(f"names no series: {expression}")
    known = OTHER_LABELS.union(*(metrics().get(name, set()) for name in names))
    used = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    for group in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression):
        used += [label.strip() for label in group.split(",")]
    problems += [f"there is no stage {name}" for name in re.findall(r'stage="(\w+)"', expression) if name not in STAGES]
    problems += [f"no series of {expression} has the label {label}" for label in used if label not in known]
    return problems

"""Merges documents as the contract of the page states: by key, and by appending to series."""

import copy
from typing import Any

Document = dict[str, Any]
SERIES = ("step", "time_ms", "train_loss", "validation_loss", "validation_accuracy", "parameters")
HEAT = ("step", "health", "gradient_norm", "growth_score")


def merged(state: Document | None, document: Document) -> Document:
    """Return the state after a document."""
    if state is None or document["whole"]:
        return copy.deepcopy(document)
    new = {**copy.deepcopy(state), **{name: document[name] for name in ("revision", "source", "now_ms", "whole")}}
    if document["view"] == "fleet":
        new["runs"] = _by("run_id", state["runs"], document["runs"])
        new["runs"] = [row for row in new["runs"] if row["run_id"] not in document["removed"]]
    elif document["view"] == "run":
        new["run"] = document["run"]
        new["series"] = _appended(state["series"], document["series"], SERIES)
        new["heat"] = state["heat"] if document["heat"] is None else document["heat"]
        if document["heat"] is not None and state["heat"] is not None:
            new["heat"] = {**document["heat"], **_appended(state["heat"], document["heat"], HEAT)}
        for name, key in (("decisions", "decision_id"), ("projections", "decision_id"), ("kernels", "kernel_id")):
            new[name] = _by(key, state[name], document[name])
        for name in ("topology", "layers"):
            new[name] = state[name] if document[name] is None else document[name]
        new["errors"] = [*state["errors"], *document["errors"]][-200:]
    elif document["view"] == "policy":
        versions = {policy["name"]: policy["versions"] for policy in state["policies"]}
        for policy in document["policies"]:
            policy["versions"] = _by("version", versions.get(policy["name"], []), policy["versions"])
        new["policies"] = document["policies"]
    else:
        return copy.deepcopy(document)
    return new


def comparable(document: Document) -> Document:
    """Return a document without what differs between a whole and a merged one that show the same."""
    plain = {name: value for name, value in copy.deepcopy(document).items() if name not in ("whole", "revision")}
    for name, key in (("runs", "run_id"), ("decisions", "decision_id"), ("kernels", "kernel_id")):
        if name in plain:
            plain[name] = sorted(plain[name], key=lambda row: row[key])
    for name in ("series", "heat"):
        if plain.get(name) is not None:
            plain[name].pop("replace")
    for policy in plain.get("policies", []):
        policy["versions"].sort(key=lambda row: row["version"])
    plain.pop("removed", None)
    plain["projections"] = sorted(plain.get("projections", []), key=lambda line: str(line["decision_id"]))
    return plain


def _by(key: str, old: list[Document], new: list[Document]) -> list[Document]:
    return list({row[key]: row for row in [*old, *new]}.values())


def _appended(old: Document, new: Document, names: tuple[str, ...]) -> Document:
    if new["replace"]:
        return new
    return {**new, **{name: [*old[name], *new[name]] for name in names}}

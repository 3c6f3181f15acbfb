"""When a view last changed, at no cost."""

from tamiyo.streams.watch.history import History


def changed_at(history: History, view: str, run_id: str = "", decision_id: str = "") -> int:
    """Return the revision of the last change that a view shows, apart from the facts of the source.

    Args:
        history: The installation's history.
        view: fleet, run, decision, policy or installation.
        run_id: The run of the views run and decision; 0 is returned where it is not known.
        decision_id: The decision of the view decision.
    """
    if view == "fleet":
        return max(history.fleet_revision, history.removed[-1][0] if history.removed else 0)
    if view == "policy":
        return history.policies.revision
    if view == "installation":
        return history.revision
    found = history.runs.get(run_id)
    if found is None or view == "run":
        return found.revision if found is not None else 0
    decision = found.decisions.get(decision_id)
    return decision.revision if decision is not None else 0

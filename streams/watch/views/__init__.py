"""Views: JSON documents made of a history, for the page and the terminal.

Each function returns the whole document, or only what changed after a revision. `at_ms` makes it as of a past time.
"""

from tamiyo.streams.watch.views.changes import changed_at
from tamiyo.streams.watch.views.decision_view import decision
from tamiyo.streams.watch.views.document import Document, UnknownIdError
from tamiyo.streams.watch.views.fleet_view import fleet
from tamiyo.streams.watch.views.installation_view import installation
from tamiyo.streams.watch.views.policy_view import policy
from tamiyo.streams.watch.views.run_view import run

__all__ = ["Document", "UnknownIdError", "changed_at", "decision", "fleet", "installation", "policy", "run"]

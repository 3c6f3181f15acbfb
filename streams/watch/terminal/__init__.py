"""Renders the views with rich, for `tamiyo runs` and `tamiyo inspect`.

Pure functions from the documents of `tamiyo.streams.watch.views` to what rich prints. They show every text of a
document escaped, take every number for null, and every field for missing.
"""

from tamiyo.streams.watch.terminal.canvas import Canvas
from tamiyo.streams.watch.terminal.decision import render_decision
from tamiyo.streams.watch.terminal.fleet import SORTS, render_fleet, selected
from tamiyo.streams.watch.terminal.run import render_run, shown_decisions

__all__ = ["SORTS", "Canvas", "render_decision", "render_fleet", "render_run", "selected", "shown_decisions"]

"""The account: the frames sent against the records published for them."""

import pytest

from tamiyo.evaluation.common.account import Ledger
from tamiyo.schemas.identity import decision_id, graph_id, window_id

WINDOW = window_id("run", "step", 50, 0)
GRAPH = graph_id(WINDOW, "topology")


def sent(final: bool = True) -> Ledger:
    ledger = Ledger(50)
    ledger.began("run")
    for step in (0, 10, 20, 30, 40):
        ledger.stepped("run", step, 100 + step, final and step == 40)
    return ledger


def test_a_clean_account() -> None:
    ledger = sent()
    ledger.graph(GRAPH, WINDOW)
    ledger.decision(decision_id(GRAPH), "run", 40, b"content", 140.05)
    ledger.decision(decision_id(GRAPH), "run", 40, b"content", 150)
    ledger.graph(GRAPH, WINDOW)

    account = ledger.verdict()

    assert account.clean
    assert (account.windows_expected, account.graphs, account.decisions, account.repeated) == (1, 1, 1, 1)
    assert ledger.latencies() == pytest.approx([50])  # from the frame that completed the window, step 40 at 140 s
    assert ledger.latencies() == []


def test_a_decision_may_be_read_before_its_graph() -> None:
    ledger = sent()
    ledger.decision(decision_id(GRAPH), "run", 40, b"content", 140)
    assert ledger.verdict().decisions_unexpected == 1
    ledger.graph(GRAPH, WINDOW)
    assert ledger.verdict().clean


def test_every_failure_is_counted() -> None:
    ledger = sent()
    assert ledger.verdict().windows_missing == 1
    ledger.graph(GRAPH, WINDOW)
    assert ledger.verdict().graphs_unanswered == 1
    ledger.graph("another", WINDOW)
    ledger.graph("strange", "a window without frames")
    ledger.decision(decision_id(GRAPH), "run", 40, b"one", 1)
    ledger.decision(decision_id(GRAPH), "run", 40, b"another", 1)
    ledger.counts["dead"] += 2
    account = ledger.verdict()
    assert not account.clean
    assert (account.graphs_conflicting, account.decisions_conflicting, account.windows_unexpected) == (1, 1, 1)
    assert account.dead == 2


def test_a_window_is_expected_once_it_is_complete() -> None:
    ledger = sent(final=False)
    assert (ledger.verdict().windows_expected, ledger.verdict().windows_open) == (0, 1)
    ledger.stepped("run", 50, 160, False)
    assert (ledger.verdict().windows_expected, ledger.verdict().windows_open) == (1, 1)
    ledger.ended("run", 160)
    ledger.forget(161)
    assert ledger.verdict().windows_expected == 1
    ledger.forget(10_000)  # by now idleness has closed the last one
    assert (ledger.verdict().windows_expected, ledger.verdict().windows_open) == (2, 0)

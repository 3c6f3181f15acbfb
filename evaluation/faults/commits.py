"""Commits never pass what is unanswered: at every moment that was sampled, and at the end."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from tamiyo.evaluation.faults.ledger import Entry, Evidence, Held, Sample
from tamiyo.evaluation.faults.signals import Cut, signal_id
from tamiyo.schemas.adaptation import DecisionType
from tamiyo.schemas.identity import kernel_id
from tamiyo.schemas.topics import DECISIONS, GRAPHS, KERNELS, REWARDS, SIGNALS, TELEMETRY, WINDOWS
from tamiyo.streams.stages.registry import STAGES

MISSING = 2**62


class _Needs:
    """For each input partition of a group, which end each output must have reached before an offset is committed."""

    def __init__(self) -> None:
        self._needs: dict[Held, list[tuple[int, str, int]]] = defaultdict(list)

    def add(self, stage: str, topic: str, partition: int, offset: int, output: str, answer: int | None) -> None:
        """The input at `offset` is answered by the message at `answer` of `output`; None: by nothing that is there."""
        end = MISSING if answer is None else answer + 1
        self._needs[STAGES[stage].group, topic, partition].append((offset, output, end))

    def unmet(self, sample: Sample) -> Iterator[tuple[Held, int, str, int]]:
        """Yield what was committed too early: the place, the commit, and the first input that had no answer."""
        for held, needs in self._needs.items():
            committed = sample.committed.get(held, 0)
            for offset, output, end in needs:
                if offset < committed and end > sample.ends.get((output, held[2]), 0):
                    yield held, committed, output, offset
                    break


def commits(evidence: Evidence, cuts: Mapping[int, Cut]) -> Iterator[tuple[str, str, str]]:
    """Yield a violation for every commit that passed an input whose answer was not there yet."""
    needs = _needs(evidence, cuts)
    ends = evidence.ends()
    told: set[tuple[Held, int]] = set()
    for sample in [*evidence.ledger.samples, Sample(evidence.committed, ends)]:
        for held, committed, output, offset in needs.unmet(sample):
            if (held, offset) not in told:
                told.add((held, offset))
                group, topic, partition = held
                yield (
                    "a commit passed an unanswered message",
                    f"{topic}:{partition}:{offset}",
                    f"{group} had committed {committed}, and {output} did not hold the answer",
                )
    for (group, topic, partition), committed in evidence.committed.items():
        if committed > ends.get((topic, partition), 0):
            yield "a commit is beyond the end", f"{topic}:{partition}", f"{group} has committed {committed}"


def _needs(evidence: Evidence, cuts: Mapping[int, Cut]) -> _Needs:
    needs = _Needs()
    signals = evidence.first(SIGNALS, "signal_id")
    for topic in TELEMETRY:
        for entry in evidence.records(topic):
            message, answer = entry.message, signals.get(signal_id(topic.name, entry.record))
            offset = answer.message.offset if answer else None
            needs.add("intake", topic.name, message.partition, message.offset, SIGNALS.name, offset)
    windows = evidence.first(WINDOWS, "window_id")
    for cut in cuts.values():
        for window in cut.windows:
            told = windows.get(window.window_id)
            for signal in window.inside:
                message = signals[signal.signal_id].message
                offset = told.message.offset if told else None
                needs.add("windows", SIGNALS.name, message.partition, message.offset, WINDOWS.name, offset)
    graphs = {e.record.window_id: e for e in reversed(evidence.records(GRAPHS))}
    for name, entry in windows.items():
        _answered(needs, "graphs", entry, GRAPHS.name, graphs.get(name))
    decided = {e.record.graph_id: e for e in reversed(evidence.records(DECISIONS))}
    for name, entry in evidence.first(GRAPHS, "graph_id").items():
        _answered(needs, "decisions", entry, DECISIONS.name, decided.get(name))
    kernels = evidence.first(KERNELS, "kernel_id")
    analyses = {e.record.decision_id: e for e in reversed(evidence.records(REWARDS)) if e.record.complete}
    for name, entry in evidence.first(DECISIONS, "decision_id").items():
        if entry.record.type == DecisionType.LOAD_KERNEL and not entry.record.dry_run:
            _answered(needs, "kernels", entry, KERNELS.name, kernels.get(kernel_id(name)))
        _answered(needs, "rewards", entry, REWARDS.name, analyses.get(name))
    return needs


def _answered(needs: _Needs, stage: str, entry: Entry, output: str, answer: Entry | None) -> None:
    message = entry.message
    needs.add(
        stage, message.topic, message.partition, message.offset, output, answer.message.offset if answer else None
    )

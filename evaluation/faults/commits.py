"""No group commits an offset before the output of that input is published: at every sampled moment and at the end."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from tamiyo.evaluation.faults.ledger import Entry, Evidence, Held, Sample
from tamiyo.evaluation.faults.signals import ExpectedWindows, found_id
from tamiyo.schemas.adaptation import DecisionType
from tamiyo.schemas.identity import kernel_id
from tamiyo.schemas.topics import DECISIONS, GRAPHS, KERNELS, REWARDS, SIGNALS, TELEMETRY, WINDOWS
from tamiyo.streams.stages.registry import STAGES

MISSING = 2**62


class _Needs:
    """For each input partition of a group: the end that an output must have reached before an offset is committed."""

    def __init__(self) -> None:
        self._needs: dict[Held, list[tuple[int, str, int]]] = defaultdict(list)

    def add(self, stage: str, topic: str, partition: int, offset: int, output: str, result: int | None) -> None:
        """Record that the input at `offset` led to the message at `result` of `output`; None: to no message."""
        end = MISSING if result is None else result + 1
        self._needs[STAGES[stage].group, topic, partition].append((offset, output, end))

    def unmet(self, sample: Sample) -> Iterator[tuple[Held, int, str, int]]:
        """Yield early commits: the place, the committed offset, the output and the first input without its output."""
        for held, needs in self._needs.items():
            committed = sample.committed.get(held, 0)
            for offset, output, end in needs:
                if offset < committed and end > sample.ends.get((output, held[2]), 0):
                    yield held, committed, output, offset
                    break


def commits(evidence: Evidence, expected: Mapping[int, ExpectedWindows]) -> Iterator[tuple[str, str, str]]:
    """Yield a violation for every commit that passed an input before its output was published."""
    needs = _needs(evidence, expected)
    ends = evidence.ends()
    reported: set[tuple[Held, int]] = set()
    for sample in [*evidence.ledger.samples, Sample(evidence.committed, ends)]:
        for held, committed, output, offset in needs.unmet(sample):
            if (held, offset) not in reported:
                reported.add((held, offset))
                group, topic, partition = held
                yield (
                    "a commit passed an input without an output",
                    f"{topic}:{partition}:{offset}",
                    f"{group} had committed {committed} before {output} contained the output",
                )
    for (group, topic, partition), committed in evidence.committed.items():
        if committed > ends.get((topic, partition), 0):
            yield "a commit is beyond the end", f"{topic}:{partition}", f"{group} has committed {committed}"


def _needs(evidence: Evidence, expected: Mapping[int, ExpectedWindows]) -> _Needs:
    needs = _Needs()
    signals = evidence.first(SIGNALS, "signal_id")
    for topic in TELEMETRY:
        for entry in evidence.records(topic):
            name = found_id(entry, signals, upgraded=evidence.ledger.upgraded)
            message, signal = entry.message, signals.get(name)
            offset = signal.message.offset if signal else None
            needs.add("intake", topic.name, message.partition, message.offset, SIGNALS.name, offset)
    windows, too_large = evidence.first(WINDOWS, "window_id"), evidence.too_large(WINDOWS)
    for partition in expected.values():
        for window in partition.windows:
            published = windows.get(window.window_id)
            dead = too_large.get(window.window_id) if published is None else None
            output = dead or (published.message if published else None)
            published_to = SIGNALS.dead_letters if dead else WINDOWS.name
            for member in window.members:
                message = signals[member.signal_id].message
                offset = output.offset if output else None
                needs.add("windows", SIGNALS.name, message.partition, message.offset, published_to, offset)
    graphs = {e.record.window_id: e for e in reversed(evidence.records(GRAPHS))}
    for name, entry in windows.items():
        _add_output(needs, "graphs", entry, GRAPHS.name, graphs.get(name))
    decided = {e.record.graph_id: e for e in reversed(evidence.records(DECISIONS))}
    for name, entry in evidence.first(GRAPHS, "graph_id").items():
        _add_output(needs, "decisions", entry, DECISIONS.name, decided.get(name))
    kernels = evidence.first(KERNELS, "kernel_id")
    analyses = {e.record.decision_id: e for e in reversed(evidence.records(REWARDS)) if e.record.complete}
    for name, entry in evidence.first(DECISIONS, "decision_id").items():
        if entry.record.type == DecisionType.LOAD_KERNEL and not entry.record.dry_run:
            _add_output(needs, "kernels", entry, KERNELS.name, kernels.get(kernel_id(name)))
        _add_output(needs, "rewards", entry, REWARDS.name, analyses.get(name))
    return needs


def _add_output(needs: _Needs, stage: str, entry: Entry, output: str, result: Entry | None) -> None:
    message = entry.message
    needs.add(
        stage, message.topic, message.partition, message.offset, output, result.message.offset if result else None
    )

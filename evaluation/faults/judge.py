"""The judge of a fault run: checks the laws of design section 7 on the records of the topics.

Every check is a function of the evidence alone and yields violations: a kind, a place, and what is wrong. The first
record under an id counts, as for every reader; a repeat is allowed if it has the same content.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tamiyo.evaluation.faults.commits import commits
from tamiyo.evaluation.faults.graphs import graphs
from tamiyo.evaluation.faults.ledger import Entry, Evidence
from tamiyo.evaluation.faults.signals import (
    ExpectedWindows,
    differs,
    expected_windows,
    found_id,
    frame_metrics,
    is_close,
    statistics_bytes,
)
from tamiyo.schemas.adaptation import DecisionType, KernelStatus
from tamiyo.schemas.identity import decision_id, kernel_id
from tamiyo.schemas.kafka import MAX_MESSAGE_BYTES
from tamiyo.schemas.topics import (
    BY_NAME,
    CHECKPOINTS,
    DECISIONS,
    EXPERIENCE,
    GRAPHS,
    KERNELS,
    OUTCOMES,
    REWARDS,
    SIGNALS,
    TELEMETRY,
    WINDOWS,
    Topic,
)
from tamiyo.streams.admin.topic_tail import to_json_values
from tamiyo.streams.headers import OUTPUT_HEADER, SOURCE_HEADER
from tamiyo.streams.stages.registry import STAGES

IDENTITIES: dict[Topic, Callable[[Any], str]] = {
    SIGNALS: lambda record: record.signal_id,
    WINDOWS: lambda record: record.window_id,
    GRAPHS: lambda record: record.graph_id,
    DECISIONS: lambda record: record.decision_id,
    KERNELS: lambda record: record.kernel_id,
    OUTCOMES: lambda record: record.decision_id,
    REWARDS: lambda record: record.analysis_id,
    EXPERIENCE: lambda record: f"{record.experience_id}:{record.revision}",
}
MAY_DIFFER = {SIGNALS: {"priority"}, KERNELS: {"compile_time_ms"}}
"""Fields measured anew each time, which no later stage reads: how unusual a signal was among those read since the last
restart (it only decides what is shed), and how long a compilation took."""


Found = Iterator[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken law."""

    kind: str
    where: str
    what: str

    def to_dict(self) -> dict[str, str]:
        """Return it as JSON-able values."""
        return asdict(self)


def judge(
    evidence: Evidence,
    *,
    width: int,
    stages: Collection[str] = tuple(STAGES),
    max_bytes: int = MAX_MESSAGE_BYTES,
) -> list[Violation]:
    """Return all violations of a run.

    Args:
        evidence: What the run left.
        width: Of its windows, steps.
        stages: Those that took part.
        max_bytes: The largest output that they publish.
    """
    expected = {n: expected_windows(entries, width) for n, entries in evidence.by_partition(SIGNALS).items()}
    by_stage: dict[str, Callable[[Evidence], Found]] = {
        "intake": signals,
        "windows": lambda each: windows(each, expected, max_bytes),
        "graphs": graphs,
        "decisions": decisions,
        "kernels": kernels,
        "rewards": rewards,
    }
    checks = [kept, repeats, partitions, dead_letters, *(check for stage, check in by_stage.items() if stage in stages)]
    found = [Violation(*each) for check in (*checks, executed, learned) for each in check(evidence)]
    found += [Violation(*each) for each in commits(evidence, expected)]
    return found + [Violation("a bug ended a process", "", words) for words in evidence.ledger.crashes]


def kept(evidence: Evidence) -> Found:
    """Every acknowledged message is at its offset."""
    present = {each.place: each.value for topic in TELEMETRY for each in evidence.messages.get(topic.name, ())}
    for sent in evidence.ledger.sent:
        place = f"{sent.topic}:{sent.partition}:{sent.offset}"
        if BY_NAME[sent.topic] in TELEMETRY and present.get(place) != sent.value:
            yield "the broker lost a message", place, "it was acknowledged when it was sent"


def repeats(evidence: Evidence) -> Found:
    """No id has two contents."""
    for topic, identify in IDENTITIES.items():
        first: dict[str, Entry] = {}
        for entry in evidence.records(topic):
            name = identify(entry.record)
            before = first.setdefault(name, entry)
            one, other = to_json_values(before.record), to_json_values(entry.record)
            fields = [key for key in one if one[key] != other[key] and key not in MAY_DIFFER.get(topic, ())]
            if fields:
                yield "two contents under one id", entry.place, f"{name} is also at {before.place}; differs {fields}"


def partitions(evidence: Evidence) -> Found:
    """A run is on one partition number of all topics, and a key of a compacted topic is alive on one."""
    places: dict[str, Entry] = {}
    for topic in BY_NAME.values():
        for entry in evidence.records(topic) if topic.cleanup == "delete" else ():
            first = places.setdefault(entry.record.run_id, entry)
            if first.message.partition != entry.message.partition:
                yield "a run is on two partitions", entry.place, f"{entry.record.run_id} is also at {first.place}"
    for topic in BY_NAME.values():
        newest = {(each.key, each.partition): each for each in evidence.messages.get(topic.name, ())}
        alive = [each for each in newest.values() if each.value is not None] if topic.cleanup == "compact" else []
        for key, count in Counter(each.key for each in alive).items():
            if count > 1:
                found = [each.place for each in alive if each.key == key]
                yield "a key is alive on two partitions", found[-1], f"{key!r} is also at {found[0]}"


def signals(evidence: Evidence) -> Found:
    """Every valid frame has its signal with its metrics, and every signal has its frame."""
    published = evidence.first(SIGNALS, "signal_id")
    expected: dict[str, Entry] = {}
    for topic in TELEMETRY:
        for entry in evidence.records(topic):
            expected.setdefault(found_id(entry, published, upgraded=evidence.ledger.upgraded), entry)
    for name in published.keys() - expected.keys():
        yield "a signal without a frame", published[name].place, f"no frame has signal id {name}"
    for name, entry in expected.items():
        if name not in published:
            yield "a frame was lost", entry.place, f"there is no signal {name}"
            continue
        signal = published[name].record
        layers, metrics, model = frame_metrics(entry.record)
        found = signal.lists()["metrics"]
        copied = [(each.run_id, each.step, each.time_ms, each.final) for each in (signal, entry.record)]
        wrong = signal.layer_id != layers or signal.model_metrics != model or found.keys() != metrics.keys()
        wrong = wrong or copied[0] != copied[1]
        if wrong or not all(_columns(metrics[key], found[key]) for key in metrics):
            yield "a signal is wrong", published[name].place, f"it differs from frame {entry.place}"
        if published[name].message.partition != entry.message.partition:
            yield "a signal is wrong", published[name].place, f"its frame is on partition {entry.message.partition}"


def _columns(expected: Sequence[float | None], published: Sequence[float | None]) -> bool:
    return len(expected) == len(published) and all(map(is_close, expected, published))


def windows(evidence: Evidence, by_partition: Mapping[int, ExpectedWindows], max_bytes: int) -> Found:
    """The windows are those that the log of signals fills, and exactly the late signals are on the late topic.

    For a window whose statistics alone are more than a message holds there is a dead letter, the signal that closed it;
    for no other.
    """
    published = evidence.first(WINDOWS, "window_id")
    too_large = evidence.too_large(WINDOWS)
    expected = {each.window_id: each for found in by_partition.values() for each in found.windows}
    for name in published.keys() - expected.keys():
        yield "a window without signals", published[name].place, f"no signals fill window {name}"
    for name, window in expected.items():
        where = f"{window.run_id} {window.start}..{window.end}"
        if name not in published and name not in too_large:
            yield "a window is missing", where, f"the signals that fill {name} are present"
        elif name not in published and statistics_bytes(window) <= max_bytes:
            yield "small enough, but a dead letter", too_large[name].place, f"window {where}"
        elif name not in published:
            letter, closing = too_large[name], window.closed_by.message
            if (letter.header(SOURCE_HEADER), letter.value) != (closing.place, closing.value):
                yield "a dead letter is wrong", letter.place, f"{closing.place} closed the window {where}"
        elif wrong := differs(window, published[name].record):
            yield "a window is wrong", published[name].place, f"{where}: {wrong}"
    for name in too_large.keys() - (expected.keys() - published.keys()):
        yield "a dead letter for nothing", too_large[name].place, f"window {name} is not missing"
    late = {name for found in by_partition.values() for name in found.late}
    by_bytes = {entry.message.value: entry.record.signal_id for entry in evidence.records(SIGNALS)}
    rejected = [(by_bytes.get(each.value), each) for each in evidence.messages.get(SIGNALS.late, ())]
    for signal, message in rejected:
        if signal not in late:
            place = message.header("tamiyo-source") or message.place
            yield "in time, but rejected as late", place, f"signal {signal}"
    for name in late - {signal for signal, _ in rejected}:
        yield "a late signal was lost", SIGNALS.late, f"signal {name} is in no window and not on the late topic"
    for found in by_partition.values():
        for name, entry in found.late.items():
            if entry.record.source in entry.record.companions:
                yield "a source fell behind itself", entry.place, f"signal {name} of {entry.record.source} is late"
        for run_id in found.unfinished:
            yield "a run did not end", run_id, "its last frames were sent, but their signals are missing"


def decisions(evidence: Evidence) -> Found:
    """Every graph has a decision, exactly one id, and every decision its graph."""
    graphs = evidence.first(GRAPHS, "graph_id")
    ids: dict[str, set[str]] = defaultdict(set)
    for entry in evidence.records(DECISIONS):
        decision = entry.record
        ids[decision.graph_id].add(decision.decision_id)
        graph = graphs.get(decision.graph_id)
        if graph is None:
            yield "a decision without a graph", entry.place, f"there is no graph {decision.graph_id}"
        elif (decision.run_id, decision.step, decision.layers) != (
            graph.record.run_id, graph.record.step, graph.record.layer_id,
        ):  # fmt: skip
            yield "a decision is wrong", entry.place, f"it does not belong to graph {decision.graph_id}"
    for name, graph in graphs.items():
        if not ids[name]:
            yield "a decision is missing", graph.place, f"graph {name} has none"
        elif ids[name] != {decision_id(name)}:
            yield "several decision ids", graph.place, f"graph {name}: {sorted(ids[name])}, not {decision_id(name)}"


def kernels(evidence: Evidence) -> Found:
    """Every decision to load a kernel has its kernel, or the reason of the failure."""
    published = evidence.first(KERNELS, "kernel_id")
    for entry in evidence.first(DECISIONS, "decision_id").values():
        decision = entry.record
        if decision.type != DecisionType.LOAD_KERNEL or decision.dry_run:
            continue
        kernel = published.get(kernel_id(decision.decision_id))
        if kernel is None:
            yield "a kernel is missing", entry.place, "there is no record of the kernel that it requests"
            continue
        compiled = kernel.record.status == KernelStatus.COMPILED
        if compiled and evidence.kernels.get(kernel.record.kernel_id) != kernel.record.checksum:
            yield "a kernel is wrong", kernel.place, "the file in the store differs from the announced checksum"


def executed(evidence: Evidence) -> Found:
    """No decision is executed twice, and no two decisions on one graph are executed."""
    for what in ("decision_id", "graph_id"):
        for name, times in Counter(getattr(each, what) for each in evidence.ledger.executions).items():
            if times > 1:
                yield "executed twice", name, f"{times} executions of one {what}"


def rewards(evidence: Evidence) -> Found:
    """Every decision of a run that has ended has its complete analysis and, if that has weight, its experience."""
    complete = {e.record.decision_id: e for e in evidence.records(REWARDS) if e.record.complete}
    taught = {e.record.experience_id for e in evidence.records(EXPERIENCE) if e.record.complete}
    for name, entry in evidence.first(DECISIONS, "decision_id").items():
        if name not in complete:
            yield "a reward is missing", entry.place, f"no complete analysis of decision {name}"
        elif complete[name].record.confidence > 0 and name not in taught:
            yield "an experience is missing", entry.place, f"decision {name} has a reward but no complete experience"


def learned(evidence: Evidence) -> Found:
    """Each checkpoint counts every experience before its offsets once, and announcements match the store.

    Of two learners one may announce an older version after the other's, but the newest is announced again.
    """
    stored = {each.version: each for each in evidence.checkpoints}
    topic = evidence.records(EXPERIENCE)
    before = (0, 0)
    for version, each in sorted(stored.items()):
        ids = {
            e.record.experience_id for e in topic if e.message.offset < each.offsets.get(str(e.message.partition), 0)
        }
        if each.experiences != len(ids):
            yield (
                "experiences were miscounted",
                f"version {version}",
                f"{each.experiences} counted, but {len(ids)} different ones before offsets {dict(each.offsets)}",
            )
        if (each.experiences, each.updates) < before:
            yield "learning went backwards", f"version {version}", f"{(each.experiences, each.updates)} after {before}"
        before = (each.experiences, each.updates)
    for entry in evidence.records(CHECKPOINTS):
        file = stored.get(entry.record.version)
        if file is None or file.checksum != entry.record.checksum:
            yield "a policy differs from its announcement", entry.place, f"version {entry.record.version} in the store"
    announced = [each.record.version for each in evidence.records(CHECKPOINTS)]
    if stored and announced and announced[-1] != max(stored):
        yield (
            "the newest policy was not announced last",
            f"version {max(stored)}",
            f"the topic ends with version {announced[-1]}",
        )


def dead_letters(evidence: Evidence) -> Found:
    """The dead letters are exactly the messages that were made invalid, and those of windows that are too large."""
    refused = {(each.topic, each.value) for each in evidence.ledger.sent if not each.valid}
    found = set()
    for message in evidence.dead_letters():
        key = (message.topic.removesuffix(".dlq"), message.value)
        if key in refused:
            found.add(key)
        elif message.header(OUTPUT_HEADER) != WINDOWS.name:  # those of windows are checked with the windows
            reason = message.header("tamiyo-reason")
            yield "valid, but a dead letter", message.place, f"{message.header(SOURCE_HEADER)}: {reason}"
    for topic, value in refused - found:
        digest = hashlib.sha256(value or b"").hexdigest()[:12]
        yield "an invalid message was lost", topic, f"its bytes (SHA-256 {digest}) are not among the dead letters"

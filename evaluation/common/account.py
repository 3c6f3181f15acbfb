"""What was sent, what came of it, and how long that took: each window one graph, each graph one decision.

Computed from what was published and from the identities that the contracts define, without any stage's code.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from tamiyo.schemas.identity import decision_id, window_id
from tamiyo.streams.settings import WindowSettings

FORGOTTEN_S = 900.0  # after the end of a run, nothing of it is awaited that would be timed


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, in numbers; all 0 is what should be."""

    windows_expected: int
    windows_missing: int
    """Final by what was sent, but without a graph."""
    windows_open: int
    """Begun, but not final by what was sent: of runs that go on or fell silent."""
    windows_unexpected: int
    graphs: int
    graphs_unanswered: int
    graphs_conflicting: int
    """Windows with more than one graph."""
    decisions: int
    decisions_unexpected: int
    """For a graph that is not there."""
    decisions_conflicting: int
    """Different contents under one id."""
    repeated: int
    """The same record again under its id, which is allowed."""
    late: int
    """Signals of sources that the watermark waits for, which can not be late."""
    late_sporadic: int
    """Errors and cache frames that came after their window; allowed, and kept on the late topic."""
    dead: int

    @property
    def clean(self) -> bool:
        """Return whether nothing was lost and nothing was said twice in different words."""
        wrong = (self.windows_missing, self.windows_unexpected, self.graphs_unanswered, self.graphs_conflicting)
        return not any((*wrong, self.decisions_unexpected, self.decisions_conflicting, self.late, self.dead))

    def to_dict(self) -> dict[str, int | bool]:
        """Return everything as JSON-able values."""
        return {**asdict(self), "clean": self.clean}


@dataclass
class _Run:
    windows: set[int] = field(default_factory=set)
    """Starts of the windows that hold something."""
    completed: dict[int, float] = field(default_factory=dict)
    """By window start, when the frame that completed it was published."""
    ended_s: float | None = None


class Ledger:
    """Both sides of the account. Not safe for threads: one writes and reads it."""

    def __init__(self, width: int | None = None) -> None:
        self._width = width or WindowSettings().width
        self._runs: dict[str, _Run] = {}
        self._windows: dict[str, str] = {}
        """Window id to graph id."""
        self._unanswered: set[str] = set()
        """Decision ids that are awaited."""
        self._decisions: dict[str, bytes] = {}
        """Decision id to a digest of its content."""
        self._expected: set[str] = set()
        self._latencies: list[float] = []
        self.counts: Counter[str] = Counter()
        """What is wrong, by name; late and dead are counted from outside."""

    # What was sent

    def began(self, run_id: str) -> None:
        """Take note of a new run."""
        self._runs[run_id] = _Run()

    def stepped(self, run_id: str, step: int, time_s: float, final: bool) -> None:
        """Take note of a sampled step; it completes the windows that end at or before it, a final one its own."""
        run = self._runs[run_id]
        start = step // self._width * self._width
        run.windows.add(start)
        done = {each for each in run.windows if final or each < start} - run.completed.keys()
        run.completed.update(dict.fromkeys(done, time_s))
        self._expected |= {self._window(run_id, each) for each in done}

    def ended(self, run_id: str, time_s: float) -> None:
        """Take note that nothing more will come; without a final frame the last window closes by idleness."""
        self._runs[run_id].ended_s = time_s

    def forget(self, now_s: float) -> None:
        """Let go of runs that ended long ago; their windows stay in the account."""
        for run_id, run in list(self._runs.items()):
            if run.ended_s is not None and now_s - run.ended_s > FORGOTTEN_S:
                # Abandoned: its last window was closed by idleness long ago.
                self._expected |= {self._window(run_id, each) for each in run.windows}
                del self._runs[run_id]

    def _window(self, run_id: str, start: int) -> str:
        return window_id(run_id, "step", self._width, start)

    # What came of it

    def graph(self, graph_id: str, window: str) -> None:
        """Take note of a graph."""
        known = self._windows.setdefault(window, graph_id)
        if known != graph_id:
            self.counts["graphs_conflicting"] += 1
            return
        name = decision_id(graph_id)
        if name not in self._decisions:
            self._unanswered.add(name)

    def decision(self, name: str, run_id: str, step: int, content: bytes, time_s: float) -> None:
        """Take note of a decision delivered at `time_s`."""
        digest = hashlib.blake2b(content, digest_size=16).digest()
        known = self._decisions.get(name)
        if known is not None:
            self.counts["repeated" if known == digest else "decisions_conflicting"] += 1
            return
        self._decisions[name] = digest
        self._unanswered.discard(name)
        run = self._runs.get(run_id)
        completed = run.completed.get(step // self._width * self._width) if run is not None else None
        if completed is not None:  # not of a window that closed by idleness
            self._latencies.append(1000 * (time_s - completed))

    def latencies(self) -> Sequence[float]:
        """Return the times from a window's completion to its decision since the last call, ms."""
        taken, self._latencies = self._latencies, []
        return taken

    def verdict(self) -> Verdict:
        """Return how the account stands; windows are missing only if everything has drained."""
        graphs = {decision_id(graph) for graph in self._windows.values()}
        idle = {self._window(name, start) for name, run in self._runs.items() for start in run.windows}
        return Verdict(
            windows_expected=len(self._expected),
            windows_missing=len(self._expected - self._windows.keys()),
            windows_open=len(idle - self._expected - self._windows.keys()),
            windows_unexpected=len(self._windows.keys() - self._expected - idle),
            graphs=len(self._windows),
            graphs_unanswered=len(self._unanswered),
            graphs_conflicting=self.counts["graphs_conflicting"],
            decisions=len(self._decisions),
            decisions_unexpected=len(self._decisions.keys() - graphs),
            decisions_conflicting=self.counts["decisions_conflicting"],
            repeated=self.counts["repeated"],
            late=self.counts["late"],
            late_sporadic=self.counts["late_sporadic"],
            dead=self.counts["dead"],
        )

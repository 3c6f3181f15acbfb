"""The account of an installation: every window has one graph, every graph one decision, and how long each took.

It is computed from the published records and the identities that the contracts define, without any stage's code.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from tamiyo.schemas.identity import decision_id, window_id
from tamiyo.streams.settings import WindowSettings

FORGOTTEN_S = 900.0  # after the end of a run no decision on it is expected whose latency would count


@dataclass(frozen=True, slots=True)
class Verdict:
    """The differences between the records sent and the records published; without a failure they are 0."""

    windows_expected: int
    windows_missing: int
    """Windows completed by the frames sent, but without a graph."""
    windows_open: int
    """Windows begun, but not completed by the frames sent: their runs go on or were abandoned."""
    windows_unexpected: int
    graphs: int
    graphs_unanswered: int
    graphs_conflicting: int
    """Windows with more than one graph."""
    decisions: int
    decisions_unexpected: int
    """Decisions on a graph that does not exist."""
    decisions_conflicting: int
    """Different contents under one decision id."""
    repeated: int
    """The same record again under its id; allowed."""
    late: int
    """Late signals of sources that the watermark waits for; these must never be late."""
    late_sporadic: int
    """Errors and cache frames that arrived after their window was final; allowed, and kept on the late topic."""
    dead: int

    @property
    def clean(self) -> bool:
        """Return whether nothing is lost and no record has two contents."""
        wrong = (self.windows_missing, self.windows_unexpected, self.graphs_unanswered, self.graphs_conflicting)
        return not any((*wrong, self.decisions_unexpected, self.decisions_conflicting, self.late, self.dead))

    def to_dict(self) -> dict[str, int | bool]:
        """Return everything as JSON-able values."""
        return {**asdict(self), "clean": self.clean}


@dataclass
class _Run:
    windows: set[int] = field(default_factory=set)
    """Starts of the windows that contain a frame."""
    completed: dict[int, float] = field(default_factory=dict)
    """Window start to the time at which the frame that completed it was published, s."""
    ended_s: float | None = None


class Ledger:
    """The frames sent and the records published for them. Not safe for threads: one thread writes and reads it."""

    def __init__(self, width: int | None = None) -> None:
        self._width = width or WindowSettings().width
        self._runs: dict[str, _Run] = {}
        self._windows: dict[str, str] = {}
        """Window id to graph id."""
        self._unanswered: set[str] = set()
        """Ids of the decisions still expected."""
        self._decisions: dict[str, bytes] = {}
        """Decision id to a digest of its content."""
        self._expected: set[str] = set()
        self._latencies: list[float] = []
        self.counts: Counter[str] = Counter()
        """Failures by name; the reader counts `late`, `late_sporadic` and `dead`."""

    # Frames sent

    def began(self, run_id: str) -> None:
        """Record the begin of a run."""
        self._runs[run_id] = _Run()

    def stepped(self, run_id: str, step: int, time_s: float, final: bool) -> None:
        """Record a sampled step: it completes the windows that end at or before it, a final step its own window too."""
        run = self._runs[run_id]
        start = step // self._width * self._width
        run.windows.add(start)
        done = {each for each in run.windows if final or each < start} - run.completed.keys()
        run.completed.update(dict.fromkeys(done, time_s))
        self._expected |= {self._window(run_id, each) for each in done}

    def ended(self, run_id: str, time_s: float) -> None:
        """Record the end of a run; without a final frame its last window closes by idleness."""
        self._runs[run_id].ended_s = time_s

    def forget(self, now_s: float) -> None:
        """Drop the state of runs that ended long ago; their windows stay in the account."""
        for run_id, run in list(self._runs.items()):
            if run.ended_s is not None and now_s - run.ended_s > FORGOTTEN_S:
                # An abandoned run's last window was closed by idleness long ago.
                self._expected |= {self._window(run_id, each) for each in run.windows}
                del self._runs[run_id]

    def _window(self, run_id: str, start: int) -> str:
        return window_id(run_id, "step", self._width, start)

    # Records published

    def graph(self, graph_id: str, window: str) -> None:
        """Record a graph."""
        known = self._windows.setdefault(window, graph_id)
        if known != graph_id:
            self.counts["graphs_conflicting"] += 1
            return
        name = decision_id(graph_id)
        if name not in self._decisions:
            self._unanswered.add(name)

    def decision(self, name: str, run_id: str, step: int, content: bytes, time_s: float) -> None:
        """Record a decision delivered at `time_s`, in seconds since the epoch."""
        digest = hashlib.blake2b(content, digest_size=16).digest()
        known = self._decisions.get(name)
        if known is not None:
            self.counts["repeated" if known == digest else "decisions_conflicting"] += 1
            return
        self._decisions[name] = digest
        self._unanswered.discard(name)
        run = self._runs.get(run_id)
        completed = run.completed.get(step // self._width * self._width) if run is not None else None
        if completed is not None:  # a window that closed by idleness has no latency
            self._latencies.append(1000 * (time_s - completed))

    def latencies(self) -> Sequence[float]:
        """Return the latencies from window completion to decision since the last call, ms."""
        taken, self._latencies = self._latencies, []
        return taken

    def verdict(self) -> Verdict:
        """Return the current differences; missing windows count as lost only once everything has drained."""
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

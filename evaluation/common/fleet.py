"""The processes of one installation: start them, make them fail, restart them when they end.

Every process has its own working directory, a log file that continues over restarts, and a port that serves /metrics
and /readyz. A watcher restarts processes that end unrequested, as a supervisor would, and records each exit.
"""

import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tamiyo.schemas.errors import BrokerError
from tamiyo.streams.admin.brokers import free_ports
from tamiyo.streams.process.children import Children

POLL_S = 0.2
RESTART_DELAY_S = 1.0  # as a supervisor waits before it restarts a process
READY_S = 120.0  # a process imports torch and joins its groups, on a machine that may be busy
LEARNER = "learner"


def worker_arguments(stages: Sequence[str], port: int) -> list[str]:
    """Return the arguments of a worker without a supervisor: the fleet is its supervisor."""
    named = [word for stage in stages for word in ("--stage", stage)]
    return ["worker", "--no-supervise", "--http-port", str(port), *named]


def learner_arguments(port: int) -> list[str]:
    """Return the arguments of a learner without a supervisor."""
    return ["learner", "--no-supervise", "--http-port", str(port)]


@dataclass(frozen=True, slots=True)
class End:
    """One exit of a process."""

    name: str
    time: float
    """Seconds since the epoch."""
    code: int
    """Exit status; minus the signal's number if a signal ended it."""
    meant: bool
    """Whether the fleet killed or stopped it."""
    last_words: str
    """The end of its log."""


@dataclass(slots=True)
class _Member:
    arguments: Sequence[str]
    environment: Mapping[str, str]
    port: int
    wanted: bool = False
    """Whether to restart it when it ends."""
    meant: bool = False
    """Whether the fleet causes its next exit."""
    down_since: float | None = None
    delay_s: float = RESTART_DELAY_S
    paused: bool = False


@dataclass(slots=True)
class Fleet:
    """Workers and learners by name. A context manager: all processes end with the block.

    `environment` applies to every process; `folder` receives `NAME/` (working directory) and `NAME.log`.
    """

    folder: Path
    environment: Mapping[str, str]
    clock: Callable[[], float] = time.monotonic
    ends: list[End] = field(default_factory=list)
    """Every exit so far, in order."""
    restarts: Counter[str] = field(default_factory=Counter)
    """Restarts of each process."""
    _members: dict[str, _Member] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _over: threading.Event = field(default_factory=threading.Event)
    _children: Children = field(init=False)
    _watcher: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._children = Children(self.folder, self.environment)
        self._watcher = threading.Thread(target=self._watch, name="fleet", daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watcher.join()
        for name in self.names:
            self.resume(name)
        self._children.stop()

    # Members

    def add_worker(self, name: str, stages: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        """Start a worker with `stages` (none: all) and restart it whenever it ends."""
        port = free_ports(1)[0]
        self.add(name, worker_arguments(stages, port), port, environment)

    def add_learner(self, name: str = LEARNER, environment: Mapping[str, str] | None = None) -> None:
        """Start a learner and restart it whenever it ends."""
        port = free_ports(1)[0]
        self.add(name, learner_arguments(port), port, environment)

    def add(self, name: str, arguments: Sequence[str], port: int, environment: Mapping[str, str] | None = None) -> None:
        """Start `tamiyo ARGUMENTS`, which serves `port`, and restart it whenever it ends."""
        with self._lock:
            self._members[name] = _Member(arguments, dict(environment or {}), port)
            self.folder_of(name).mkdir(parents=True, exist_ok=True)
            self.start(name)

    def start_all(self, workers: Mapping[str, Sequence[str]]) -> None:
        """Start workers with their stages (none: all) and a learner, and wait until all are ready."""
        for name, stages in workers.items():
            self.add_worker(name, stages)
        self.add_learner()
        self.wait_ready()

    @property
    def names(self) -> list[str]:
        """Return the names of all members, running or not."""
        with self._lock:
            return list(self._members)

    def folder_of(self, name: str) -> Path:
        """Return a process's own working directory."""
        return self.folder / name

    def port(self, name: str) -> int:
        """Return the port of a process's /metrics and /readyz; it stays the same over restarts."""
        return self._members[name].port

    def pid(self, name: str) -> int | None:
        """Return a process's id; None while it is down."""
        with self._lock:
            return self._children.pid(name) if self.alive(name) else None

    # State

    def alive(self, name: str) -> bool:
        """Return whether a process runs, frozen or not."""
        with self._lock:
            return name in self._children.names() and self._children.exit_code(name) is None

    def ready(self, name: str) -> bool:
        """Return whether a process reports itself ready."""
        if self._members[name].paused or not self.alive(name):
            return False
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port(name)}/readyz", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, names: Sequence[str] | None = None, timeout_s: float = READY_S) -> None:
        """Wait until all of `names` (default: all members) are ready; raise BrokerError with a log's end on timeout."""
        deadline = self.clock() + timeout_s
        waiting = list(self.names if names is None else names)
        while waiting := [name for name in waiting if not self.ready(name)]:
            if self.clock() > deadline:
                raise BrokerError(
                    f"{waiting[0]} was not ready within {timeout_s:.0f} s:\n{self._children.log_end(waiting[0])}"
                )
            time.sleep(POLL_S)

    def last_words(self, name: str) -> str:
        """Return the end of a process's log."""
        return self._children.log_end(name)

    # Actions

    def start(self, name: str) -> None:
        """Start a process that is down; from now on restart it whenever it ends."""
        with self._lock:
            member = self._members[name]
            member.wanted, member.down_since, member.delay_s = True, None, RESTART_DELAY_S
            if not self.alive(name):
                self._launch(name)

    def kill(self, name: str, number: int = signal.SIGKILL, *, restart_after_s: float | None = RESTART_DELAY_S) -> None:
        """Send a terminating signal and wait for the exit; with `restart_after_s` None it stays down until `start`."""
        with self._lock:
            member = self._members[name]
            member.wanted = restart_after_s is not None
            member.delay_s = RESTART_DELAY_S if restart_after_s is None else restart_after_s
            member.meant = True
            if not self.alive(name):
                return
            self._children.signal(name, number)
        if number != signal.SIGKILL:
            self.resume(name)  # a frozen process handles no other signal
        try:
            self._children.wait(name, self._children.stop_wait_s)
        except subprocess.TimeoutExpired:
            self._children.signal(name, signal.SIGKILL)
            self._children.wait(name)
        self._note_end(name)

    def stop(self, name: str) -> None:
        """Stop a process with SIGTERM, as an operator does; it stays down until `start`."""
        self.kill(name, signal.SIGTERM, restart_after_s=None)

    def restart(self, name: str) -> None:
        """Stop a process with SIGTERM and start it again."""
        self.stop(name)
        self.restarts[name] += 1
        self.start(name)

    def pause(self, name: str) -> None:
        """Freeze a process with SIGSTOP: it keeps its connections and does nothing."""
        with self._lock:
            if self.alive(name):
                self._members[name].paused = True
                self._children.signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Continue a frozen process."""
        with self._lock:
            self._members[name].paused = False
            if self.alive(name):
                self._children.signal(name, signal.SIGCONT)

    # The watcher

    def _watch(self) -> None:
        while not self._over.wait(POLL_S):
            for name in self.names:
                with self._lock:
                    if not self.alive(name):
                        self._note_end(name)
                        self._start_again(name)

    def _note_end(self, name: str) -> None:
        with self._lock:
            member = self._members[name]
            code = self._children.exit_code(name)
            if member.down_since is None and code is not None:
                self.ends.append(End(name, time.time(), code, member.meant, self._children.log_end(name)))
                member.down_since, member.meant, member.paused = self.clock(), False, False

    def _start_again(self, name: str) -> None:
        member = self._members[name]
        if member.wanted and member.down_since is not None and self.clock() - member.down_since >= member.delay_s:
            member.down_since, member.delay_s = None, RESTART_DELAY_S
            self.restarts[name] += 1
            self._launch(name)

    def _launch(self, name: str) -> None:
        member = self._members[name]
        self._children.start(
            name, member.arguments, environment=member.environment, folder=self.folder_of(name).absolute()
        )

    def running(self) -> Iterator[tuple[str, int]]:
        """Yield name and process id of all running processes."""
        for name in self.names:
            pid = self.pid(name)
            if pid is not None:
                yield name, pid

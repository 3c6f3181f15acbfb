"""What others make of the same telemetry on the same broker: Quix Streams, a plain aiokafka loop, Faust as it comes."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

from tamiyo.evaluation.bench import quix_peer
from tamiyo.evaluation.bench.chain import messages, result, rounds
from tamiyo.evaluation.bench.kafka import PARTITIONS, Broker, Counter, Message, running
from tamiyo.evaluation.common.measure import Result
from tamiyo.evaluation.common.simulated_runs import Load
from tamiyo.schemas.topics import TOPOLOGY
from tamiyo.streams.settings import WindowSettings


@dataclass(frozen=True)
class Peer:
    """Another program for the part of the chain from telemetry to windows."""

    name: str
    package: str
    """Without it, the peer is not measured."""
    module: str
    sources: tuple[str, ...]
    """Topics of its own, so that it reads nothing that was published for others."""
    target: str
    make: Callable[[Load], Iterator[Message]]
    expected: Callable[[Load], int]
    """Its outputs for a load."""
    identify: Callable[[bytes], str]
    keeps_files: bool = False

    @property
    def installed(self) -> bool:
        """Return whether its package is installed."""
        return self.package in sys.modules or find_spec(self.package) is not None


def signal_messages(load: Load) -> Iterator[Message]:
    """Yield the content of the layer frames, one signal a message, in the same order and on the same partitions."""
    for together in zip(*(quix_peer.signals(load, run) for run in range(load.runs)), strict=True):
        for run, (key, signal) in enumerate(together):
            yield Message("bench.quix.signals", run % PARTITIONS, key, quix_peer.encode(signal), signal["time_ms"])


def _frame_peer(name: str, package: str, module: str) -> Peer:
    """Return a peer that reads the frames themselves."""
    prefix = f"bench.{package}."

    def make(load: Load) -> Iterator[Message]:
        frames = (each for each in messages(load) if each.topic != TOPOLOGY.name)
        return (replace(each, topic=prefix + each.topic) for each in frames)

    sources = sorted({each.topic for each in make(Load(runs=1, layers=1, frames=1))})
    return Peer(
        name=name,
        package=package,
        module=module,
        sources=tuple(sources),
        target=f"{prefix}windows",
        make=make,
        expected=lambda load: load.windows(WindowSettings().width),
        identify=lambda value: f"{hash(value)}",  # no window is published twice, and none has the bytes of another
    )


def _signal_windows(load: Load) -> int:
    # Its windows close when a later signal of the same key arrives, so it does not compute the last one of every key.
    return 2 * load.layers * (load.windows(WindowSettings().width) - load.runs)


QUIX = Peer(
    name="Quix Streams",
    package="quixstreams",
    module="tamiyo.evaluation.bench.quix_peer",
    sources=("bench.quix.signals",),
    target="bench.quix.windows",
    make=signal_messages,
    expected=_signal_windows,
    identify=bytes.decode,
    keeps_files=True,
)
AIOKAFKA = _frame_peer("aiokafka loop", "aiokafka", "tamiyo.evaluation.bench.aiokafka_peer")
FAUST = _frame_peer("Faust, stock agent", "faust", "tamiyo.evaluation.bench.faust_peer")
PEERS = (QUIX, AIOKAFKA, FAUST)


def peer(where: Broker, each: Peer, load: Load, *, repeats: int) -> Result:
    """Measure a peer on the same content, from telemetry to windows."""
    load = replace(load, name=each.package)
    where.add_topics([*each.sources, each.target])
    arguments = ["--bootstrap-servers", where.bootstrap_servers, "--target", each.target]
    arguments += ["--width", str(WindowSettings().width)]
    for source in each.sources:
        arguments += ["--source", source]
    with tempfile.TemporaryDirectory(prefix="tamiyo-bench-") as state:
        if each.keeps_files:
            arguments += ["--state", state]
        counter = Counter(where, each.target)
        with running(each.name, each.module, arguments, {"OMP_NUM_THREADS": "1"}) as process:
            # The peers report no readiness: the warm-up round waits for it.
            spent = rounds(process, counter, load, repeats, each.make, each.expected, each.identify, where)
        counter.close()
    return result(f"{each.name}, telemetry to window", load, spent, {"processes": 1, "broker": where.kind})


def ratio(mine: Result, other: Result, name: str) -> Result:
    """Return how many times more layer-signals `mine` processes per processor second: lowest, median, highest.

    Args:
        mine: Our throughput.
        other: A peer's throughput.
        name: The peer's name.
    """
    values = (mine.minimum / other.maximum, mine.median / other.median, mine.maximum / other.minimum)
    extra = {"ours": mine.median, "peer": other.median}
    return Result("peers", f"ours / {name}, a core", "ratio", values, "higher", extra)

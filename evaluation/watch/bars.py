"""What is measured: a recording that is read, and an installation that is followed while 100 runs stream."""

import random
import threading
import time
from pathlib import Path
from typing import Any

from tamiyo.evaluation.common.measure import percentile
from tamiyo.evaluation.common.simulated_runs import EPOCH_MS, TOPICS, Load, frames, topology
from tamiyo.evaluation.watch.browser import Browsing, first_paint, following
from tamiyo.evaluation.watch.installation_log import copies, run_log
from tamiyo.evaluation.watch.made_recording import make_recording
from tamiyo.evaluation.watch.served import Served, served
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import ModelPerformance
from tamiyo.schemas.topics import MODEL_PERFORMANCE, TOPOLOGY
from tamiyo.streams.admin.brokers import EmbeddedBroker
from tamiyo.streams.admin.topics import Topics

LAYERS, FRAMES = 8, 150
PROBE = "probe"
FIRST_PROBE = 1_000
"""Step after which a run's frames are the probes."""
PROBE_S = (0.05, 0.15)  # between two events whose latency is measured
READ_TIMEOUT_S = 300.0
BROWSER_S = 25.0  # that a browser needs to start and to count frames


def recording_bars(folder: Path, records: int) -> dict[str, Any]:
    """Measure how soon a recording shows something, and how long it takes to read it whole.

    Args:
        folder: A recording, made here where there is none.
        records: About how many records it has.
    """
    if not folder.exists():
        log = run_log(LAYERS, FRAMES)
        make_recording(folder, copies(log, max(1, round(records / len(log)))))
    with served(str(folder)) as server:
        painted = Browsing(first_paint(server.url)).start().result()
    shown: list[float] = []
    with served(str(folder)) as server:
        began = time.time()
        # The address is printed once the server listens: what a browser sees begins here.

        def take(document: dict[str, Any], came: float) -> None:
            if document["runs"] and not shown:
                shown.append(came - began)

        ended = server.follow("fleet", take)
        while (source := server.document("policy")["source"])["reading"]:
            if time.time() - began > READ_TIMEOUT_S:
                raise RuntimeError(f"the recording was not read within {READ_TIMEOUT_S:.0f} s")
            time.sleep(0.05)
        whole_s = time.time() - began
        ended.set()
        run_id = server.document("fleet")["runs"][0]["run_id"]
        middle = (source["from_ms"] + source["to_ms"]) // 2
        return {
            "records": source["records"],
            "undecodable": source["undecodable"],
            "browser": painted,
            "first_content_s": round(shown[0], 3),
            "whole_s": round(whole_s, 2),
            "cpu_s": round(server.cpu_s(), 2),
            "rss_mib": round(server.rss_mib()),
            "fleet_ms": _milliseconds(server, "fleet"),
            "run_ms": _milliseconds(server, f"run?run={run_id}"),
            "slider_fleet_ms": _milliseconds(server, f"fleet?at={middle}"),
            "slider_run_ms": _milliseconds(server, f"run?run={run_id}&at={middle}"),
        }


def live_bars(runs: int, streaming: int, seconds: float) -> dict[str, Any]:
    """Measure latency, processor time and memory while an installation is followed.

    Args:
        runs: Runs of the installation.
        streaming: Those of them that train now, with a frame of three records a second each.
        seconds: How long it is measured.
    """
    with EmbeddedBroker() as broker:
        kafka, names = KafkaSettings(bootstrap_servers=broker.bootstrap_servers), TopicNames(prefix="")
        Topics(kafka, names).create()
        publisher = _Publisher(kafka, runs, streaming)
        publisher.attach()
        with served("--topics", "-b", kafka.bootstrap_servers) as server:
            while server.document("policy")["source"]["reading"]:
                time.sleep(0.05)
            latencies = _Latencies()
            documents = {"fleet": 0}

            def count(document: dict[str, Any], came: float) -> None:
                documents["fleet"] += 1

            ends = [server.follow(f"run?run={PROBE}", latencies.take), server.follow("fleet", count)]
            publisher.start()
            time.sleep(3)  # both streams have had their whole document
            browsing = Browsing(following(server.url, PROBE, max(0.0, seconds - BROWSER_S))).start()
            cpu, began, memory = server.cpu_s(), time.monotonic(), [server.rss_mib()]
            published, documents["fleet"] = publisher.published, 0
            while (left := began + seconds - time.monotonic()) > 0:
                latencies.sent(publisher.probe())
                time.sleep(min(left, random.uniform(*PROBE_S)))
                if time.monotonic() - began > len(memory) * seconds / 20:
                    memory.append(server.rss_mib())
            spent, sent = server.cpu_s() - cpu, dict(documents)
            published = publisher.published - published
            time.sleep(1)
            browser = browsing.result()
            publisher.stop()
            for end in ends:
                end.set()
            if browser is not None:
                browser["event_to_page_ms"] = latencies.of(browser.pop("noted"))
            return {
                "runs": runs,
                "streaming": streaming,
                "seconds": seconds,
                "records_per_second": round(published / seconds, 1),
                "fleet_events_per_second": round(sent["fleet"] / seconds, 1),
                "cpu_share_of_a_core": round(spent / seconds, 3),
                "rss_mib": [round(each, 1) for each in memory],
                # Of the last quarter: a run's frames of layers fill up until there are 400 of them.
                "rss_growth_mib_per_hour": round(_slope(memory[3 * len(memory) // 4 :], seconds / 20) * 3_600, 1),
                "event_to_stream_ms": latencies.summary(),
                "browser": browser,
            }


class _Publisher:
    """Publishes simulated runs, at a frame a second each, in a thread of its own."""

    def __init__(self, kafka: KafkaSettings, runs: int, streaming: int) -> None:
        self._producer = AwaitedProducer(kafka)
        self._runs = [f"run-{number:04d}" for number in range(runs)]
        self._streaming = streaming
        self._template = list(frames(Load(runs=1, layers=LAYERS, frames=400), 0))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._stream, daemon=True)
        self._step = 0
        self.published = 0

    def attach(self) -> None:
        """Publish every run's topology and a few frames."""
        network = topology(PROBE, LAYERS)
        for run_id in [PROBE, *self._runs]:
            self._publish(TOPOLOGY.name, network.model_copy(update={"run_id": run_id}))
            for frame in self._template[:15]:
                self._publish(TOPICS[type(frame)].name, frame.model_copy(update={"run_id": run_id, "final": False}))
        self._producer.flush()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def probe(self) -> tuple[int, float]:
        """Publish an event; return its step, and when it was on the topic."""
        self._step += 1
        step = FIRST_PROBE + self._step
        frame = ModelPerformance(run_id=PROBE, step=step, time_ms=time.time_ns() // 1_000_000, train_loss=0.5)
        self._publish(MODEL_PERFORMANCE.name, frame)
        self._producer.flush()
        return step, time.time()

    def _stream(self) -> None:
        began, turn = time.monotonic(), 0
        while not self._stopping.is_set():
            place = 15 + 3 * (turn % 380)
            step = 10 * (5 + turn)
            for number, run_id in enumerate(self._runs[: self._streaming]):
                for frame in self._template[place : place + 3]:
                    changes = {"run_id": run_id, "step": step, "time_ms": EPOCH_MS + step, "final": False}
                    self._publish(TOPICS[type(frame)].name, frame.model_copy(update=changes))
                    self.published += 1
                due = began + turn + (number + 1) / self._streaming  # evenly over the second
                if self._stopping.wait(max(0.0, due - time.monotonic())):
                    return
            turn += 1

    def _publish(self, topic: str, record: Any) -> None:
        self._producer.produce(topic, encode(record), record.run_id)


class _Latencies:
    """From when an event is on its topic to when its stream has it."""

    def __init__(self) -> None:
        self._sent: dict[int, float] = {}
        self._came: dict[int, float] = {}
        self._newest = FIRST_PROBE

    def sent(self, event: tuple[int, float]) -> None:
        self._sent[event[0]] = event[1]

    def take(self, document: dict[str, Any], came: float) -> None:
        # Not by the curve, whose points stand for several events once the run is long.
        newest = document["run"]["step"]
        self._came.update(dict.fromkeys(range(self._newest + 1, newest + 1), came))
        self._newest = max(self._newest, newest)

    def summary(self) -> dict[str, Any]:
        return {**self.of(self._came), "missing": len(self._sent.keys() - self._came.keys())}

    def of(self, came: dict[int, float]) -> dict[str, Any]:
        """Return the latencies of the events whose arrival is known; a page draws only the newest of several."""
        found = [1000 * (came[step] - sent) for step, sent in self._sent.items() if step in came]
        if not found:
            return {"events": 0}
        return {
            "events": len(found),
            "p50": round(percentile(found, 0.5), 1),
            "p95": round(percentile(found, 0.95), 1),
            "maximum": round(max(found), 1),
        }


def _milliseconds(server: Served, path: str) -> float:
    """Return how long a view takes, the best of five."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        server.document(path)
        times.append(time.perf_counter() - began)
    return round(1000 * min(times), 1)


def _slope(values: list[float], every_s: float) -> float:
    """Return the least-squares change a second."""
    count = len(values)
    if count < 2:
        return 0.0
    middle, mean = (count - 1) / 2, sum(values) / count
    over = sum((place - middle) * (value - mean) for place, value in enumerate(values))
    return over / sum((place - middle) ** 2 for place in range(count)) / every_s

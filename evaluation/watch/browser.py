"""What a browser makes of the page: Chromium without a screen, on this machine's processor."""

import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tamiyo.evaluation.common.measure import percentile

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-precise-memory-info",
]  # fmt: skip
FRAMES_S = 10.0  # for which frames are counted
HEAPS = 20  # measurements of the heap
CONTENT_S = 30.0
# Times of the frames that the page draws, in ms.
COUNT_FRAMES = """
(seconds) => new Promise((done) => {
  const times = [];
  const frame = (now) => {
    times.push(now);
    now - times[0] < 1000 * seconds ? requestAnimationFrame(frame) : done(times);
  };
  requestAnimationFrame(frame);
})
"""
# The step that the page of a run shows, at every frame: when it was first seen, in ms since the epoch.
NOTE_STEPS = """
() => {
  window.noted = {};
  const note = () => {
    const fact = [...document.querySelectorAll("dl > *")].find((each) => each.textContent.startsWith("Step"));
    const step = Number((fact?.textContent ?? "").replace(/[^0-9/]/g, "").split("/")[0]);
    if (step && !(step in window.noted)) window.noted[step] = performance.timeOrigin + performance.now();
    requestAnimationFrame(note);
  };
  note();
}
"""


def chromium() -> str | None:
    """Return the program: CHROMIUM, else what is installed; None without one or without Playwright."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return None
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Browsing:
    """A browser in a thread of its own, which opens a page while the caller measures other things."""

    visit: Callable[[Any], dict[str, Any]]
    """Called with a tab; returns what it has measured."""
    _found: list[dict[str, Any]] = field(default_factory=list)
    _error: list[BaseException] = field(default_factory=list)
    _thread: threading.Thread | None = None

    def start(self) -> "Browsing":
        """Begin; does nothing without a browser."""
        program = chromium()
        if program is not None:
            self._thread = threading.Thread(target=self._run, args=(program,), daemon=True)
            self._thread.start()
        return self

    def result(self) -> dict[str, Any] | None:
        """Wait for what was measured; None without a browser."""
        if self._thread is None:
            return None
        self._thread.join()
        if self._error:
            raise self._error[0]
        return self._found[0]

    def _run(self, program: str) -> None:
        from playwright.sync_api import sync_playwright

        try:
            with sync_playwright() as playwright:
                running = playwright.chromium.launch(executable_path=program, args=FLAGS)
                self._found.append(self.visit(running.new_page(viewport={"width": 1280, "height": 900})))
                running.close()
        except BaseException as error:
            self._error.append(error)


def first_paint(base: str) -> Callable[[Any], dict[str, Any]]:
    """Return what measures how soon a page that was just started shows its runs.

    Args:
        base: Address of the page.
    """

    def visit(tab: Any) -> dict[str, Any]:
        tab.goto("about:blank")
        tab.goto(base, wait_until="commit")
        tab.wait_for_selector("tbody tr", timeout=1000 * CONTENT_S)
        content_ms = tab.evaluate("performance.now()")
        paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        return {"first_contentful_paint_ms": round(tab.evaluate(paint)), "content_ms": round(content_ms)}

    return visit


def following(base: str, run_id: str, seconds: float) -> Callable[[Any], dict[str, Any]]:
    """Return what measures frames, latency and memory while an installation streams.

    Args:
        base: Address of the page.
        run_id: The run whose steps are noted as they appear; the caller publishes them.
        seconds: How long the run is followed, after the fleet.
    """

    def visit(tab: Any) -> dict[str, Any]:
        tab.goto(base)
        tab.wait_for_selector("tbody tr", timeout=1000 * CONTENT_S)
        fleet = frames_of(tab.evaluate(COUNT_FRAMES, FRAMES_S))
        tab.goto(f"{base}#/run/{run_id}")
        tab.wait_for_selector("h1:not(:text('Loading'))", timeout=1000 * CONTENT_S, state="attached")
        tab.evaluate(NOTE_STEPS)
        run = frames_of(tab.evaluate(COUNT_FRAMES, FRAMES_S))
        session = tab.context.new_cdp_session(tab)
        heap: list[float] = []
        began = time.monotonic()
        for number in range(HEAPS):
            time.sleep(max(0.0, began + seconds * (number + 1) / HEAPS - time.monotonic()))
            session.send("HeapProfiler.collectGarbage")
            heap.append(round(tab.evaluate("performance.memory.usedJSHeapSize") / 2**20, 2))
        noted = {int(step): ms / 1000 for step, ms in tab.evaluate("window.noted").items()}
        return {"fleet_frames": fleet, "run_frames": run, "heap_mib": heap, "noted": noted}

    return visit


def frames_of(times: list[float]) -> dict[str, float]:
    """Return the frames a second, and how long the slowest hundredth took, from the times of frames in ms."""
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return {
        "per_second": round(1000 * len(gaps) / max(1e-9, times[-1] - times[0]), 1),
        "p99_ms": round(percentile(gaps, 0.99), 1),
    }

"""Faults of the broker: killed, stopped, slow."""

import random
import time
from collections.abc import Callable

from tamiyo.evaluation.faults.scene import Scene
from tamiyo.schemas.errors import BrokerError

START_ATTEMPTS = 5
FREEZE_S, THAW_S = 0.3, 0.06  # a slow broker runs a sixth of the time


def kill_broker(scene: Scene, rng: random.Random) -> str:
    """SIGKILL the broker and restart it on its data."""
    return _take_down(scene, scene.installation.broker.kill, rng.uniform(0, 3))


def stop_broker(scene: Scene, rng: random.Random) -> str:
    """Stop the broker as an operator does, and restart it after seconds."""
    return _take_down(scene, scene.installation.broker.stop, rng.uniform(2, 8))


def _take_down(scene: Scene, end: Callable[[], None], down_s: float) -> str:
    with scene.broker:
        end()
        time.sleep(down_s)
        for attempt in range(START_ATTEMPTS):
            try:
                scene.installation.broker.start()
                break
            except BrokerError:  # a busy machine may take more than the minute allowed
                if attempt == START_ATTEMPTS - 1:
                    raise
    return f"down for {down_s:.1f} s and the time to start"


def slow_broker(scene: Scene, rng: random.Random) -> str:
    """Freeze the broker five sixths of the time: every request waits."""
    seconds = rng.uniform(3, 7)
    with scene.broker:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            scene.installation.broker.pause()
            time.sleep(FREEZE_S)
            scene.installation.broker.resume()
            time.sleep(THAW_S)
    return f"for {seconds:.1f} s"

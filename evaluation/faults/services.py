"""Faults of what the installation uses: a broker that is killed, stopped, slow or full, a registry that goes away."""

import random
import time
from collections.abc import Callable

from tamiyo.evaluation.faults.scene import Scene
from tamiyo.schemas.errors import BrokerError

START_ATTEMPTS = 5
FULL_S = 30.0  # a broker whose only disk is full ends by itself at once; if nothing is written, it does not
FREEZE_S, THAW_S = 0.3, 0.06  # a slow broker runs a sixth of the time


def kill_broker(scene: Scene, rng: random.Random) -> str:
    """SIGKILL the broker and restart it on its data."""
    return _take_down(scene, scene.installation.broker.kill, rng.uniform(0, 3))


def stop_broker(scene: Scene, rng: random.Random) -> str:
    """Stop the broker as an operator does, and restart it after seconds."""
    return _take_down(scene, scene.installation.broker.stop, rng.uniform(2, 8))


def full_broker_disk(scene: Scene, rng: random.Random) -> str:
    """Fill the disk of the broker's logs, so that it ends; free it, and restart the broker.

    What the broker has acknowledged is in files, so nothing is lost; a record that it could write in part only is cut
    off when it starts.
    """
    broker, seconds = scene.installation.broker, rng.uniform(0, 5)
    with scene.broker:
        with scene.logs.full([broker.pid] if broker.pid is not None else []):
            ended = broker.wait(FULL_S)
            time.sleep(seconds)
        broker.kill()
        _start(scene)
    return f"by {scene.logs.means}; the broker {'ended by itself' if ended else 'was killed'}, down for {seconds:.1f} s"


def registry_away(scene: Scene, rng: random.Random) -> str:
    """Stop the schema registry, and kill a worker, which needs it to start; then start the registry again."""
    registry, name, seconds = scene.installation.registry, rng.choice(scene.workers), rng.uniform(5, 15)
    assert registry is not None
    with scene.registry:
        registry.stop()
        scene.installation.fleet.kill(name, restart_after_s=0)
        time.sleep(seconds)
        registry.start()
    return f"for {seconds:.1f} s and the time to start, while {name} restarted"


def _take_down(scene: Scene, end: Callable[[], None], down_s: float) -> str:
    with scene.broker:
        end()
        time.sleep(down_s)
        _start(scene)
    return f"down for {down_s:.1f} s and the time to start"


def _start(scene: Scene) -> None:
    for attempt in range(START_ATTEMPTS):
        try:
            scene.installation.broker.start()
            return
        except BrokerError:  # a busy machine may take more than the minute allowed
            if attempt == START_ATTEMPTS - 1:
                raise


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

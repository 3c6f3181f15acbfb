"""The schedule of faults, drawn from a seed.

In the first half faults hit every process. In the second half they spare the witnesses, so that some processes live
long enough to show whether memory grows; rebalances and broker restarts still affect them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tamiyo.evaluation.common.installation import Installation

EVERY_S = 150.0  # between two faults, on average
BROKER_EVERY_S = 1200.0
CALM_S = 120.0  # without faults at the beginning and at the end; less in a short soak
FROZEN_S = (8.0, 14.0)  # beyond the session timeout of 6 s: the process returns as a zombie
DOWN_S = (1.0, 8.0)
KINDS = {"kill": 4, "freeze": 3, "restart": 2}
BROKER = "broker"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: kill (SIGKILL), freeze (SIGSTOP, SIGCONT), restart (SIGTERM), or a restart of the broker."""

    at_s: float
    kind: str
    victim: str
    duration_s: float

    def inject(self, installation: Installation) -> None:
        """Inject the fault and return when it is over; the fleet restarts a killed process later."""
        fleet = installation.fleet
        if self.victim == BROKER:
            installation.restart_broker(down_s=self.duration_s)
        elif self.kind == "kill":
            fleet.kill(self.victim, restart_after_s=self.duration_s)
        elif self.kind == "freeze":
            fleet.pause(self.victim)
            time.sleep(self.duration_s)
            fleet.resume(self.victim)
        else:
            fleet.restart(self.victim)


def schedule(
    seconds: float, seed: int, victims: Sequence[str], witnesses: Sequence[str], *, every_s: float = EVERY_S
) -> list[Fault]:
    """Return the faults of a soak of `seconds`, in order; equal arguments give equal faults."""
    random = Random(f"faults-{seed}")
    faults = []
    calm = min(CALM_S, seconds / 10)
    at = calm
    while (at := at + every_s * random.uniform(0.6, 1.4)) < seconds - calm:
        hit = [name for name in victims if at < seconds / 2 or name not in witnesses]
        kind = random.choices(list(KINDS), list(KINDS.values()))[0]
        bounds = FROZEN_S if kind == "freeze" else DOWN_S
        faults.append(Fault(round(at, 1), kind, random.choice(hit), round(random.uniform(*bounds), 1)))
    broker = min(BROKER_EVERY_S / 2, seconds / 2)
    while broker < seconds - calm:
        faults.append(Fault(round(broker, 1), "restart", BROKER, round(random.uniform(*DOWN_S), 1)))
        broker += BROKER_EVERY_S
    return sorted(faults, key=lambda fault: fault.at_s)

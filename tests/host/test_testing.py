"""MemoryTransport: real records, limits and outcomes without a broker."""

from collections.abc import Callable

import pytest

from tamiyo.host._layers.seed import SeedState
from tamiyo.host.blueprints import names
from tamiyo.host.testing import MemoryTransport
from tamiyo.models.actions import kinds, to_index
from tamiyo.schemas.adaptation import CompiledKernel, DecisionType, KernelStatus, OutcomeStatus
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.telemetry import CacheHitRates
from tamiyo.schemas.topics import CACHE_HIT_RATES, DECISIONS, KERNELS, MODEL_PERFORMANCE, OUTCOMES, TOPOLOGY
from tests.support.runs import RUN, compiled, decision, order, run


def test_a_load_is_compiled_and_executed_at_the_next_step() -> None:
    made = run()
    made.train(2)
    decided = made.transport.decide("load_kernel", layer="3", blueprint="bottleneck")
    assert made.outcomes == []
    made.train(1)
    (outcome,) = made.outcomes
    assert (outcome.decision_id, outcome.status, outcome.step) == (decided.decision_id, OutcomeStatus.EXECUTED, 3)
    (kernel,) = made.records(KERNELS)
    assert (kernel.kernel_id, kernel.status) == (decided.kernel_id, KernelStatus.COMPILED)
    assert made.layer("3").seeds[0].kernel_id == decided.kernel_id
    assert made.handle.stats.kernel_parameters == kernel.parameters > 0
    made.handle.close()


def test_every_kind_of_decision_is_executed() -> None:
    made = run(ramp_steps=1)
    made.load()
    made.train(2)
    for kind in ("fossilize_kernel", DecisionType.OPTIMIZE_PARAMETERS):
        made.transport.decide(kind, layer="0")
        made.train(1)
    assert [seed.state for seed in made.layer().seeds][:1] == [SeedState.FOSSILIZED]
    made.load("3")
    made.train(2)
    made.transport.decide("unload_kernel", layer="3")
    made.transport.decide("no_op")
    made.train(3)
    assert len(made.layer("3").kernels) == 0
    assert [outcome.status for outcome in made.outcomes] == [OutcomeStatus.EXECUTED] * 5
    assert made.handle.stats.decisions == 6
    made.handle.close()


def test_a_decision_is_recorded_as_the_policy_records_it() -> None:
    made = run()
    made.train(5)
    decided = made.transport.decide("load_kernel", layer="3", blueprint="low_rank")
    assert decided in made.records(DECISIONS)
    layers = [node.layer_id for node in made.records(TOPOLOGY)[0].layers]
    assert decided.layers == layers
    assert tuple(decided.kinds) == kinds(names())
    assert decided.action_index == to_index(decided.proposed, layers, decided.kinds)
    assert decided.probabilities.numpy()[decided.action_index] == 1.0
    assert sum(decided.mask) == 1
    assert decided.step == made.records(MODEL_PERFORMANCE)[-1].step == 4
    assert made.transport.decide("no_op").action_index == 0
    made.handle.close()


def test_the_hosts_own_limits_hold() -> None:
    made = run(protected=["5"], cooldown_steps=100, parameter_budget=300)
    made.transport.decide("load_kernel", layer="5", blueprint="bottleneck")
    made.transport.decide("load_kernel", layer="0", blueprint="low_rank")
    made.load("3")
    made.load("0", "squeeze_excite")
    made.transport.decide("optimize_parameters", layer="3")
    made.train(1)
    assert [(outcome.status, outcome.reason.split(":")[0]) for outcome in made.outcomes] == [
        (OutcomeStatus.REFUSED, "protected_layer"),
        (OutcomeStatus.REFUSED, "unknown_blueprint"),
        (OutcomeStatus.REFUSED, "parameter_budget"),
        (OutcomeStatus.EXECUTED, ""),
        (OutcomeStatus.REFUSED, "cooldown"),
    ]
    kernels = made.records(KERNELS)
    assert [kernel.status for kernel in kernels] == [KernelStatus.REFUSED] * 3 + [KernelStatus.COMPILED]
    assert kernels[0].reason == "layer '5' is protected"
    made.handle.close()


def test_records_of_ones_own_arrive_if_they_are_for_the_run() -> None:
    made = run()
    made.transport.send(order(paused=True), decision("other", run_id="run-2"), order("run-2", protected_layers=["0"]))
    made.load()
    made.train(1)
    assert [outcome.reason.split(":")[0] for outcome in made.outcomes] == ["paused"]
    assert made.handle.stats.decisions == 1
    made.handle.close()


def test_a_kernel_is_prefetched_when_it_arrives() -> None:
    fetched: list[CompiledKernel] = []
    made = run()
    transport = MemoryTransport()
    transport.open(RUN, made.handle._settings, fetched.append)
    kernel = compiled(decision(), made.layer().spec)
    transport.send(kernel)
    assert fetched == [kernel]
    made.handle.close()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            lambda t: t.records("tamiyo.outcomes"),
            "there is no topic 'tamiyo.outcomes'; there are .*adaptation.outcomes",
        ),
        (lambda t: t.decide("grow", layer="0"), "no kind of decision 'grow'; there are no_op, load_kernel"),
        (lambda t: t.decide("unload_kernel", layer="9"), "there is no layer '9'; there are 0, 3, 5"),
        (lambda t: t.decide("unload_kernel"), "there is no layer None"),
        (lambda t: t.decide("load_kernel", layer="0"), "blueprint"),
        (lambda t: t.decide("load_kernel", layer="0", blueprint="wide"), "'wide'.*parallel_expansion"),
        (lambda t: t.decide("unload_kernel", layer="0", blueprint="bottleneck"), "takes no blueprint"),
        (lambda t: t.decide("no_op", layer="0"), "neither a layer nor a blueprint"),
        (lambda t: t.open("run-2", None, print), f"carries run {RUN}"),
        (lambda t: MemoryTransport().decide("no_op"), "no run is attached"),
    ],
)
def test_a_mistake_is_a_clear_error(mistake: Callable[[MemoryTransport], object], message: str) -> None:
    made = run()
    with pytest.raises(ConfigurationError, match=message):
        mistake(made.transport)
    made.handle.close()


def test_invalid_and_late_records_are_dropped_and_counted() -> None:
    transport = MemoryTransport()
    frame = CacheHitRates(
        run_id=RUN, step=1, time_ms=1, hits=0, misses=0, evictions=0, hit_rate=1.0, entries=0, capacity=1
    )
    transport.publish(CACHE_HIT_RATES, lambda: CacheHitRates(**{**frame.model_dump(), "hit_rate": 7.0}))
    transport.publish(CACHE_HIT_RATES, lambda: frame)
    transport.close(0.0)
    transport.publish(CACHE_HIT_RATES, lambda: frame)
    assert (transport.published, transport.dropped) == (1, 2)
    assert [encode(each) for each in transport.records(CACHE_HIT_RATES.name)] == [encode(frame)]


def test_the_host_closes_without_waiting_for_decisions() -> None:
    made = run(drain_s=60.0)
    made.train(1)
    made.handle.close()
    assert made.transport.closed
    assert made.records(OUTCOMES) == []

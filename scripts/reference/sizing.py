"""The page of sizes: what `tamiyo plan` gives for 100 to 100,000 runs with the unit costs of the release."""

from scripts.reference.markdown import code, page, prose, section, table

RUNS = (100, 1_000, 10_000, 100_000)
LAYERS = 50
INTERVAL_S = 60.0

UNIT_COSTS = (
    "Processor time, measured. Busy cores = rate x (microseconds + layers x microseconds a layer) / 1,000,000. "
    "The rate of sampled steps is runs / interval in seconds; that of windows is half of it, since a window has two "
    "sampled steps."
)


def sizing() -> str:
    """Return the sizes of installations from 100 to 100,000 runs, and the topics of the largest."""
    from tamiyo.streams.admin.plan import Demand, UnitCosts, assumptions, readable_bytes, size

    costs = UnitCosts.load()
    plans = [size(Demand(runs=runs, layers=LAYERS, interval_s=INTERVAL_S), costs) for runs in RUNS]
    largest = plans[-1]
    rows = [
        ("layer-signals a second", *(f"{each.layer_signals_per_s:,.0f}" for each in plans)),
        ("decisions a second", *(f"{each.windows_per_s:,.3g}" for each in plans)),
        *(
            (f"busy cores, {stage}", *(f"{each.stage_cores[stage]:,.2f}" for each in plans))
            for stage in largest.stage_cores
        ),
        ("busy cores, learner", *(f"{each.learner_cores:,.2f}" for each in plans)),
        ("workers, a core each", *(f"{each.workers:,}" for each in plans)),
        ("memory of a worker", *(readable_bytes(each.worker_memory_bytes) for each in plans)),
        ("learners", *(f"{each.learners:,}" for each in plans)),
        ("partitions of every topic", *(f"{each.partitions:,}" for each in plans)),
        ("brokers", *(f"{each.brokers:,}" for each in plans)),
        ("... because of", *(max(each.brokers_for, key=lambda need: each.brokers_for[need]) for each in plans)),
        ("bytes a day, one replica", *(readable_bytes(each.bytes_per_day) for each in plans)),
        ("stored, all replicas", *(readable_bytes(each.stored_bytes) for each in plans)),
    ]
    topics = [
        (
            code(each.name),
            readable_bytes(each.bytes_per_day),
            "compacted" if each.retention_days is None else f"{each.retention_days:g} days",
            readable_bytes(each.stored_bytes),
        )
        for each in largest.topics
    ]
    unit_costs = [
        (name, cost.per, f"{cost.fixed:,.4g}", f"{cost.layer:,.4g}")
        for name, cost in {
            **costs.processor_us,
            "learner": costs.learner_us,
            "a broker, one replica": costs.broker_us,
        }.items()
    ]
    command = f"tamiyo plan --runs {RUNS[-1]} --layers {LAYERS} --interval {INTERVAL_S:g}"
    introduction = (
        f"Installations for runs of {LAYERS} layers that each send a sampled step every {INTERVAL_S:g} seconds, as "
        f"`{command}` computes them from measured unit costs. See [Speed and size](../guides/scale.md)."
    )
    return page(
        "Sizing",
        introduction,
        section("Installations", table(("runs", *(f"{runs:,}" for runs in RUNS)), rows)),
        section("Unit costs", f"{UNIT_COSTS}\n\n{table(('of', 'each', 'microseconds', '... a layer'), unit_costs)}"),
        section(f"Topics of {RUNS[-1]:,} runs", table(("topic", "bytes a day", "kept", "stored, one replica"), topics)),
        section("Assumptions", "\n".join(f"- {prose(each)}" for each in assumptions(largest, costs))),
    )

"""The tests that the specification names, on the stages without Kafka.

The second (learning) uses a bandit with known rewards (evaluation/lab/bandit.py). The fourth (latency) is measured by
`make bench` and in the demo's report; here it has a generous bound.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from scipy import stats
from torch import nn
from torch.nn import functional as F

from tamiyo.evaluation.lab.bandit import BLUEPRINTS, GrowthBandit, expected_reward, learn_rounds, no_op_share
from tamiyo.host import HostSettings, attach
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host.blueprints import names
from tamiyo.models.behaviour import choose
from tamiyo.models.checkpoint import CheckpointHeader, CheckpointStore, checksum, save
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.learner import Learner
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tamiyo.models.safety import SafetyMonitor
from tamiyo.schemas import topics
from tamiyo.schemas.adaptation import Action, DecisionType, OutcomeStatus
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint
from tamiyo.streams.settings import (
    DecisionSettings,
    GraphSettings,
    IntakeSettings,
    KernelSettings,
    RewardSettings,
    WindowSettings,
)
from tamiyo.streams.stages.decisions.stage import DecisionsStage
from tamiyo.streams.stages.graphs.stage import GraphsStage
from tamiyo.streams.stages.intake.stage import IntakeStage
from tamiyo.streams.stages.kernels.stage import KernelsStage
from tamiyo.streams.stages.rewards.stage import RewardsStage
from tamiyo.streams.stages.windows.stage import WindowsStage
from tests.support.chain import Chain
from tests.support.factories import make_graph
from tests.support.layers import attached_layer

STEPS = 700


def start(folder: Path) -> tuple[Chain, InMemorySpanExporter]:
    """Return a chain of all stages that decides with version 0 of the policy, and the spans that it records."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    chain = Chain(provider)
    store = CheckpointStore(f"file://{folder}/checkpoints")
    policy = TamiyoPolicy(PolicyConfig(blueprints=tuple(names())))
    data = save(policy, None, CheckpointHeader.of(policy, version=0))
    settings = DecisionSettings(checkpoint_url=store.url)
    announcement = PolicyCheckpoint(
        name=settings.policy,
        version=0,
        time_ms=0,
        status=CheckpointStatus.RELEASED,
        file=store.write(0, data),
        checksum=checksum(data),
        size_bytes=len(data),
        feature_version=CheckpointHeader.of(policy, version=0).feature_version,
        blueprints=list(names()),
        offsets={},
    )
    chain.send(topics.CHECKPOINTS, announcement, settings.policy)
    chain.add(IntakeStage, IntakeSettings())
    chain.add(WindowsStage, WindowSettings())
    chain.add(GraphsStage, GraphSettings())
    chain.add(DecisionsStage, settings)
    chain.add(KernelsStage, KernelSettings(store_url=f"file://{folder}/kernels"))
    chain.add(RewardsStage, RewardSettings())
    return chain, spans


Run = tuple[Chain, KasminaLayer, InMemorySpanExporter]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("specification")
    chain, spans = start(folder)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    teacher = nn.Sequential(nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, 10))
    probe = torch.randn(512, 128)
    held_out = (probe, teacher(probe).argmax(1))
    with attach(
        model,
        optimizer,
        example_input=probe[:2],
        run_id="specification",
        protected=["2"],
        num_seeds=4,
        loss_fn=F.cross_entropy,
        held_out=held_out,
        settings=HostSettings(store_url=f"file://{folder}/kernels", drain_s=0.0, overhead_budget=1.0),
        transport=chain,
    ) as handle:
        layer = attached_layer(model, "0")
        assert layer.telemetry_enabled
        for step in range(STEPS):
            inputs = torch.randn(64, 128)  # fresh in every step: nothing can be overfitted
            loss = F.cross_entropy(model(inputs), teacher(inputs).argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            handle.step(loss=loss)
            if step % 50 == 49:
                handle.validate(lambda: F.cross_entropy(model(held_out[0]), held_out[1]).item())
    return chain, layer, spans


class TestEndToEnd:
    """From realistic signals of a KasminaLayer(128, 64, 4 seeds) to a decision that is executed."""

    def test_a_confident_valid_decision_is_published(self, run: Run) -> None:
        chain, _, _ = run
        decisions = chain.log[topics.DECISIONS.name]
        requested = [decision for decision in decisions if decision.type != DecisionType.NO_OP]
        assert requested
        assert all(decision.confidence > 0.5 for decision in requested)
        assert {decision.type for decision in decisions} <= {kind.value for kind in DecisionType}

    def test_it_is_executed(self, run: Run) -> None:
        chain, layer, _ = run
        executed = [o for o in chain.log[topics.OUTCOMES.name] if o.status is OutcomeStatus.EXECUTED]
        assert any(outcome.type == DecisionType.LOAD_KERNEL for outcome in executed)
        assert layer.get_layer_stats()["state_stats"]["active_seeds"] > 0

    def test_every_graph_has_a_decision_and_every_adaptation_an_outcome(self, run: Run) -> None:
        chain, _, _ = run
        graphs = [graph.graph_id for graph in chain.log[topics.GRAPHS.name]]
        decisions = chain.log[topics.DECISIONS.name]
        requested = {decision.decision_id for decision in decisions if decision.type != DecisionType.NO_OP}
        assert len(graphs) >= STEPS // WindowSettings().width
        assert [decision.graph_id for decision in decisions] == graphs
        assert {outcome.decision_id for outcome in chain.log[topics.OUTCOMES.name]} == requested
        assert chain.rejected == []

    def test_a_trace_leads_from_telemetry_to_the_reward(self, run: Run) -> None:
        _, _, exporter = run
        spans = {span.context.span_id: span for span in exporter.get_finished_spans()}
        rewards = [span for span in spans.values() if span.attributes["messaging.destination.name"] == "tamiyo.rewards"]
        paths = []
        for span in rewards:
            path = [span]
            while path[-1].parent is not None:
                path.append(spans[path[-1].parent.span_id])
            assert len({each.context.trace_id for each in path}) == 1
            paths.append([each.name.removeprefix("tamiyo.") for each in reversed(path)])
            about = span.attributes["tamiyo.decision_id"]
            assert all(each.attributes.get("tamiyo.decision_id", about) == about for each in path)
        decided = ["telemetry", "intake", "windows", "graphs", "decisions"]
        loaded = (*decided, "kernels", "execute", "rewards")
        found = {tuple(path) for path in paths}
        assert loaded in found
        assert found <= {(*decided, "rewards"), (*decided, "execute", "rewards"), loaded}

    def test_every_decision_has_a_final_reward(self, run: Run) -> None:
        chain, _, _ = run
        complete = {reward.decision_id for reward in chain.log[topics.REWARDS.name] if reward.complete}
        assert complete == {decision.decision_id for decision in chain.log[topics.DECISIONS.name]}

    def test_the_load_preserved_the_function(self, run: Run) -> None:
        chain, _, _ = run
        loads = [o for o in chain.log[topics.OUTCOMES.name] if o.type == "load_kernel" and o.after]
        assert loads
        assert all(abs(outcome.after["loss"] - outcome.before["loss"]) < 1e-6 for outcome in loads)


def test_learning_after_100_experiences_performance_and_mean_reward_are_higher() -> None:
    """The heuristic grows although no growth pays here. Six seeds; a small policy that learns quickly."""
    held_out = range(10**6, 10**6 + 30)
    gains, waits = [], []
    for seed in range(10, 16):
        bandit = GrowthBandit(seed, nodes=6, noise=0.1, good=-0.3)
        policy = TamiyoPolicy(PolicyConfig(blueprints=BLUEPRINTS, hidden=32, layers=2, seed=seed))
        learner = Learner(policy, LearningSettings(seed=seed, learning_rate=2e-3))
        before = expected_reward(policy, bandit, held_out), no_op_share(policy, bandit, held_out)
        for _ in learn_rounds(learner, bandit, range(100)):
            pass
        gains.append(expected_reward(learner.policy, bandit, held_out) - before[0])
        waits.append(no_op_share(learner.policy, bandit, held_out) - before[1])
    # The mean gain's 95 % interval over the seeds lies above 0.
    for differences in (gains, waits):
        interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
        assert interval.low > 0, differences


def test_safety_the_dangerous_decision_is_refused() -> None:
    action = Action(type="experimental_modification", layer_id="critical_layer")
    vetoes = SafetyMonitor(protected=["critical_layer"]).validate(action, confidence=0.99)
    assert {"experimental_modification", "critical_layer"} <= set(
        " ".join(veto.reason for veto in vetoes).replace("'", " ").replace(",", " ").split()
    )


def test_latency_one_decision_from_a_graph(tmp_path: Path) -> None:
    # The target of 100 ms at p99 is measured by `make bench` and in the demo's report.
    policy = TamiyoPolicy(PolicyConfig(blueprints=tuple(names()))).eval()
    graph = make_graph()
    mask = np.ones(1 + len(graph.layer_id) * len(policy.kinds), bool)
    started = time.perf_counter()
    choose(policy, graph, mask, seed=1)
    assert time.perf_counter() - started < 2.0

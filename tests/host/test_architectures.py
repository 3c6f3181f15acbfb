"""Networks as people build them: which layers are watched, and that each kind of layer grows, trains and exports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import HostSettings, attach, export
from tamiyo.host._topology.tracing import Example, call
from tamiyo.host.blueprints._layer_kinds import has_lazy_parameters
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.errors import ConfigurationError
from tests.host.work import python_calls

STEPS = 8


class Result:
    """A network after growth at chosen layers and some steps of training."""

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        grow: Mapping[str, Any],
        *,
        layers: Any = "all",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.model, self.example = model.train(), example
        self.transport = MemoryTransport()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        options: dict[str, Any] = {
            "cooldown_steps": 0, "ramp_steps": 1, "sample_interval": 2, "growth_interval": 2, "overhead_budget": 1e6,
            "parameter_budget": 10**7, "drain_s": 0.0,
        }  # fmt: skip
        self.handle = attach(
            model, optimizer, example_input=example, layers=layers, transport=self.transport,
            settings=HostSettings(**options | dict(settings or {})),
        )  # fmt: skip
        for layer, blueprint in grow.items():
            kind = "optimize_parameters" if blueprint is None else "load_kernel"
            self.transport.decide(kind, layer=layer, blueprint=blueprint)
            self.step(optimizer)
        for _ in range(STEPS):
            self.step(optimizer)
        self.handle.close()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        loss = self.output().float().square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        self.handle.step(loss=loss)

    def output(self, model: nn.Module | None = None) -> Tensor:
        found = call(model or self.model, self.example)
        if isinstance(found, Tensor):
            return found
        output: Tensor = found.logits  # a ModelOutput of transformers
        return output

    @property
    def watched(self) -> dict[str, str]:
        (topology,) = self.transport.records("tamiyo.model.topology")
        return {layer.layer_id: layer.type for layer in topology.layers}

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        found = self.transport.records("tamiyo.adaptation.outcomes")
        return [(each.status.value, each.reason) for each in found]

    def check(self, grown: int) -> None:
        """Everything was executed and measured; the kernels have an effect; the export computes the same."""
        assert [status for status, _ in self.outcomes] == ["executed"] * grown, self.outcomes
        assert self.handle.stats.errors == 0
        assert self.handle.stats.kernel_parameters > 0
        self.check_frames()
        self.model.eval()
        plain = export(self.model)
        with torch.no_grad():
            torch.testing.assert_close(self.output(plain), self.output(), rtol=1e-5, atol=1e-6)
        classes = {kind.__module__ for module in plain.modules() for kind in type(module).__mro__}
        assert not [name for name in classes if name.startswith("tamiyo")]

    def check_frames(self) -> None:
        """Each frame has every layer that ran, with a growth score where kernels can grow."""
        frames = [frame for frame in self.transport.records("telemetry.layer.health_signals") if not frame.final]
        assert frames
        (topology,) = self.transport.records("tamiyo.model.topology")
        offering = {layer.layer_id for layer in topology.layers if layer.blueprints}
        assert self.transport.dropped == 0
        for frame in frames:
            scores = dict(zip(frame.layer_id, frame.growth_score, strict=True))
            assert set(scores) == set(self.watched)
            assert {layer for layer, score in scores.items() if score is not None} == offering


class Residual(nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        activated: Tensor = self.relu(out)
        return activated


class ResNet(nn.Module):
    """torchvision's resnet18 with one block fewer a stage and narrow channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Residual(8, 8, 1))
        self.layer2 = nn.Sequential(Residual(8, 16, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        scores: Tensor = self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))
        return scores


RESNET = ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
RESNET += ["layer2.0.downsample.0", "layer2.0.conv1", "layer2.0.conv2"]


def test_a_resnet() -> None:
    grow = {"conv1": "parallel_expansion", "layer2.0.downsample.0": "squeeze_excite", "fc": "low_rank"}
    made = Result(ResNet(), torch.randn(4, 3, 32, 32), grow)
    assert made.watched == {**dict.fromkeys(RESNET, "conv2d"), "fc": "linear"}
    made.check(3)


class SequenceClassifier(nn.Module):
    """An LSTM over embeddings, and a head on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.projection = nn.Linear(6, 6)
        self.lstm = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (state, _) = self.lstm(self.projection(self.embedding(tokens)))
        scores: Tensor = self.head(self.norm(torch.cat([state[0], state[1]], dim=1)))
        return scores


def test_an_lstm_classifier() -> None:
    tokens = torch.randint(20, (5, 7), generator=torch.Generator().manual_seed(0))
    made = Result(SequenceClassifier(), tokens, {"projection": "bottleneck", "head": "parallel_expansion"})
    assert made.watched == {"projection": "linear", "head": "linear"}
    made.check(2)


def test_norms_and_embeddings_are_observed_if_they_are_named() -> None:
    tokens = torch.randint(20, (5, 7), generator=torch.Generator().manual_seed(0))
    layers = ["embedding", "norm", "head"]
    made = Result(SequenceClassifier(), tokens, {"head": "parallel_expansion"}, layers=layers)
    assert made.watched == {"embedding": "embedding", "norm": "layer_norm", "head": "linear"}
    (topology,) = made.transport.records("tamiyo.model.topology")
    assert [(layer.protected, bool(layer.blueprints)) for layer in topology.layers] == [
        (True, False), (True, False), (False, True),
    ]  # fmt: skip
    made.check(1)


@pytest.mark.parametrize("blueprint", ["bottleneck", None])
def test_no_decision_adapts_an_observed_layer(blueprint: str | None) -> None:
    made = Result(SequenceClassifier(), torch.randint(20, (5, 7)), {"norm": blueprint}, layers=["norm", "head"])
    assert made.outcomes == [("refused", "protected_layer: layer norm is protected")]


class Decoder(nn.Module):
    """Up again by transposed convolutions, in one and two dimensions, and down by one in three."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(1, 2, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1)
        self.up1 = nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        planes = F.relu(self.volume(x)).mean(dim=2)
        lines = F.relu(self.up2(planes)).mean(dim=2)
        output: Tensor = self.up1(lines)
        return output


@pytest.mark.parametrize("blueprint", ["parallel_expansion", "bottleneck", "depthwise_separable", "squeeze_excite"])
def test_transposed_and_volume_convolutions(blueprint: str) -> None:
    layers = {"volume": "conv3d", "up2": "conv_transpose2d", "up1": "conv_transpose1d"}
    made = Result(Decoder(), torch.randn(3, 1, 4, 5, 6), dict.fromkeys(layers, blueprint))
    assert made.watched == layers
    made.check(3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    made = Result(ResNet().to(dtype), torch.randn(4, 3, 32, 32).to(dtype), {"conv1": "parallel_expansion"})
    assert [status for status, _ in made.outcomes] == ["executed"]
    assert made.handle.stats.errors == 0
    made.check_frames()


def test_inputs_without_a_batch() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 4, 3, padding=1)
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.fc(F.relu(self.conv(x)).mean(dim=-1))
            return scores

    made = Result(Alone(), torch.randn(2, 9), {"conv": "squeeze_excite", "fc": "low_rank"})
    assert made.watched == {"conv": "conv1d", "fc": "linear"}
    made.check(2)


def test_a_linear_with_others_in_it_is_one_layer() -> None:
    class LowRank(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.down = nn.Linear(4, 1, bias=False)
            self.up = nn.Linear(1, 4, bias=False)
            self.dropout = nn.Dropout(0.5)

        def forward(self, input: Tensor) -> Tensor:
            output: Tensor = super().forward(input) + self.up(self.down(self.dropout(input)))
            return output

    made = Result(nn.Sequential(LowRank(), nn.ReLU(), nn.Linear(4, 2)), torch.randn(6, 4), {"0": "bottleneck"})
    assert made.watched == {"0": "linear", "2": "linear"}
    made.check(1)


def test_a_lazy_model_must_have_seen_a_batch() -> None:
    model, example = nn.Sequential(nn.LazyConv1d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)), torch.randn(3, 2, 9)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ConfigurationError, match=r"lazy parameters.*run one batch first"):
        attach(model, optimizer, example_input=example, transport=MemoryTransport())
    assert has_lazy_parameters(model)
    model(example)
    made = Result(model, example, {"0": "parallel_expansion", "3": "low_rank"})
    assert made.watched == {"0": "conv1d", "3": "linear"}
    made.check(2)


class Attending(nn.Module):
    """Attention in every way to call it: self and cross, both layouts, by name, causal, without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(5, 8)
        self.same = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=5, vdim=5)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inward(x)
        causal = nn.Transformer.generate_square_subsequent_mask(hidden.shape[-2])
        hidden = hidden + self.same(hidden, hidden, hidden, attn_mask=causal, is_causal=True, need_weights=False)[0]
        first = x.transpose(0, 1) if x.dim() == 3 else x
        query = hidden.transpose(0, 1) if x.dim() == 3 else hidden
        mixed, weights = self.cross(key=first, value=first, query=query)
        assert weights.shape[-2:] == (x.shape[-2], x.shape[-2])
        scores: Tensor = self.head(mixed)
        return scores


@pytest.mark.parametrize("blueprint", ["parallel_expansion", "low_rank", "bottleneck"])
@pytest.mark.parametrize("shape", [(4, 6, 5), (6, 5)], ids=["batch", "no_batch"])
def test_attention_is_one_layer(blueprint: str, shape: tuple[int, ...]) -> None:
    made = Result(Attending(), torch.randn(shape), {"same": blueprint, "cross": blueprint})
    assert made.watched == {"inward": "linear", "same": "attention", "cross": "attention", "head": "linear"}
    made.check(2)


def test_the_units_of_attention_are_its_features() -> None:
    made = Result(Attending(), torch.randn(4, 6, 5), {"same": "low_rank"})
    measured: dict[str, float] = {}
    for frame in made.transport.records("telemetry.execution.kernel_performance"):
        measured |= dict(zip(frame.layer_id, frame.avg_correlation, strict=True))
    made.model.train()
    outputs: dict[str, Tensor] = {}
    hooks = [
        made.model.get_submodule(name).register_forward_hook(lambda *a, name=name: outputs.update({name: a[-1][0]}))
        for name in ("same", "cross")
    ]
    made.output()
    for hook in hooks:
        hook.remove()
    for name, output in outputs.items():
        units = output.detach().reshape(-1, 8).T
        correlation = torch.corrcoef(units).abs()
        mean = (correlation.sum() - 8) / (8 * 7)
        assert measured[name] == pytest.approx(float(mean), abs=0.02)


def test_a_transformer_encoder() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(8, 3))
    grow = {"0.layers.0.self_attn": "bottleneck", "0.layers.1.linear1": "low_rank"}
    made = Result(model, torch.randn(4, 6, 8), grow)
    assert made.watched == {
        **{f"0.layers.{n}.self_attn": "attention" for n in (0, 1)},
        **{f"0.layers.{n}.linear{i}": "linear" for n in (0, 1) for i in (1, 2)},
        "1": "linear",
    }
    made.check(2)


class Gated(nn.Module):
    """Blocks of seven layers in a residual stream, as in recent language models."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(4, 4) for _ in range(7)]) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            q, k, v, o, u, g, w = block.children()
            x = x + o(q(x) * k(x) + v(x))
            x = x + w(u(x) * g(x))
        return x


def test_attaching_is_linear_in_the_number_of_layers() -> None:
    def attaching(blocks: int) -> int:
        model, transport = Gated(blocks), MemoryTransport()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def work() -> None:
            attach(model, optimizer, example_input=torch.randn(2, 4), transport=transport).close()

        calls = python_calls(work)
        (topology,) = transport.records("tamiyo.model.topology")
        assert len(topology.layers) == 7 * blocks
        # q, k, v, u and g read the block before and eight skips each; o reads three layers and w two
        assert len(topology.edges) <= 50 * blocks
        return calls

    attaching(2)  # what happens once in a process
    assert attaching(36) < 4.5 * attaching(9)


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def test_gpt2() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=12, use_cache=False)
    tokens = {"input_ids": torch.randint(30, (3, 8), generator=torch.Generator().manual_seed(0))}
    grow = {"transformer.h.0.attn.c_attn": "low_rank", "transformer.h.1.mlp.c_fc": "parallel_expansion"}
    made = Result(transformers.GPT2LMHeadModel(config), tokens, grow)
    blocks = [
        f"transformer.h.{n}.{name}" for n in (0, 1) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert [name for name in made.watched if name != "lm_head"] == blocks
    assert set(made.watched.values()) == {"linear"}
    made.check(2)


def test_bert() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**TINY, vocab_size=30, max_position_embeddings=12)
    tokens = {"input_ids": torch.randint(30, (3, 8), generator=torch.Generator().manual_seed(0))}
    grow = {
        "bert.encoder.layer.0.attention.self.query": "low_rank",
        "bert.pooler.dense": "bottleneck",
        "classifier": "low_rank",
    }
    made = Result(transformers.BertForSequenceClassification(config), tokens, grow)
    layer = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    layer += ["intermediate.dense", "output.dense"]
    encoder = [f"bert.encoder.layer.{n}.{name}" for n in (0, 1) for name in layer]
    assert set(made.watched) == {*encoder, "bert.pooler.dense", "classifier"}
    made.check(3)


def test_vit() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**TINY, image_size=16, patch_size=4)
    grow = {"vit.embeddings.patch_embeddings.projection": "parallel_expansion", "classifier": "bottleneck"}
    made = Result(transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(3, 3, 16, 16)}, grow)
    assert made.watched["vit.embeddings.patch_embeddings.projection"] == "conv2d"
    assert len(made.watched) == 1 + 2 * 6 + 1
    made.check(2)

"""Factories: layers of every geometry, their specs, kernels good and bad."""

import copy

import torch
from torch import Tensor, nn

from tamiyo.host import LayerSpec
from tamiyo.host._layers.grown_kernels import kernels_of
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host.blueprints import Kernel, blueprint


class Conv1D(nn.Module):
    """As in transformers: a Linear with a transposed weight, and no subclass of it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


# name -> (module, an input of a batch of 3)
GEOMETRIES: dict[str, tuple[nn.Module, Tensor]] = {
    "linear": (nn.Linear(5, 7), torch.zeros(3, 5)),
    "linear_sequence": (nn.Linear(5, 7, bias=False), torch.zeros(3, 4, 5)),
    "linear_one": (nn.Linear(5, 1), torch.zeros(3, 5)),
    "conv1d": (nn.Conv1d(2, 6, 5, padding=2), torch.zeros(3, 2, 20)),
    "conv1d_stride": (nn.Conv1d(2, 6, 5, stride=2), torch.zeros(3, 2, 21)),
    "conv1d_same": (nn.Conv1d(2, 6, 4, padding="same", dilation=2), torch.zeros(3, 2, 20)),
    "conv1d_circular": (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), torch.zeros(3, 4, 9)),
    "conv1d_depthwise": (nn.Conv1d(6, 6, 3, groups=6), torch.zeros(3, 6, 9)),
    "conv2d": (nn.Conv2d(3, 4, 3, padding=1), torch.zeros(3, 3, 8, 8)),
    "conv2d_groups": (nn.Conv2d(4, 6, (3, 1), stride=(2, 1), groups=2, dilation=(1, 2)), torch.zeros(3, 4, 9, 5)),
    "conv2d_double": (nn.Conv2d(2, 3, 2, padding="valid", dtype=torch.float64), torch.zeros(3, 2, 6, 6)),
    "conv3d": (nn.Conv3d(2, 4, (3, 2, 1), padding=(1, 0, 0), stride=(2, 1, 1)), torch.zeros(3, 2, 5, 4, 3)),
    "conv3d_replicate": (nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate"), torch.zeros(3, 2, 4, 4, 4)),
    "up1d": (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), torch.zeros(3, 4, 7)),
    "up1d_cropped": (nn.ConvTranspose1d(2, 3, 2, stride=2, padding=2), torch.zeros(3, 2, 9)),
    "up2d": (
        nn.ConvTranspose2d(3, 4, (3, 5), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), dilation=(2, 1)),
        torch.zeros(3, 3, 5, 4),
    ),
    "up2d_groups": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), torch.zeros(3, 4, 4, 3)),
    "up3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), torch.zeros(3, 2, 3, 2, 2)),
    "transposed_linear": (Conv1D(7, 5), torch.zeros(3, 4, 5)),
}
# These take three inputs, the first of which is the query.
ATTENTIONS: dict[str, tuple[nn.MultiheadAttention, Tensor]] = {
    "attention": (nn.MultiheadAttention(8, 2, batch_first=True), torch.zeros(3, 5, 8)),
    "attention_length_first": (nn.MultiheadAttention(8, 2), torch.zeros(5, 3, 8)),
    "attention_other_sizes": (nn.MultiheadAttention(8, 2, kdim=3, vdim=6, batch_first=True), torch.zeros(3, 5, 8)),
}
ALL: dict[str, tuple[nn.Module, Tensor]] = {**GEOMETRIES, **ATTENTIONS}


def attached_layer(model: nn.Module, layer_id: str) -> KasminaLayer:
    """What `attach` has put beside a module of the model."""
    return attached_layers(model)[layer_id]


def attached_layers(model: nn.Module) -> dict[str, KasminaLayer]:
    """What `attach` has put beside the modules of a model, or of a copy of one, by layer_id."""
    kernels = kernels_of(model)
    return {} if kernels is None else {layer.layer_id: layer for layer in kernels.layers.values()}


def spec_of(name: str, layer_id: str = "layer") -> LayerSpec:
    return LayerSpec.of(layer_id, *ALL[name])


def random_input(spec: LayerSpec, batch: int = 3, seed: int = 0) -> Tensor:
    return spec.sample(batch, generator=torch.Generator().manual_seed(seed))[0]


def layer(name: str = "linear", **options: object) -> KasminaLayer:
    """A wrapped copy of a geometry with its own parameters."""
    module, example = GEOMETRIES[name]
    base = copy.deepcopy(module)
    return KasminaLayer(base, spec=LayerSpec.of("layer", base, example), **options)  # type: ignore[arg-type]


def kernel(spec: LayerSpec, name: str = "bottleneck", *, seed: int = 1, trained: bool = False) -> Kernel:
    """A fresh kernel, or one whose last projection is no longer zero."""
    built = blueprint(name).build(spec, seed=seed)
    if trained:
        train(built)
    return built


def train(built: Kernel, seed: int = 2) -> None:
    """Give the last projection values that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.last.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def load(wrapped: KasminaLayer, name: str = "bottleneck", *, step: int = 0, taught: bool = True) -> int:
    """Load a kernel as the executor does, then let it learn."""
    built = kernel(wrapped.spec, name)
    index = wrapped.load_kernel(built, kernel_id=f"{step:08x}", blueprint=name, step=step)
    if taught:
        train(built)
    return index


class FaultyKernel(Kernel):
    """A trained constant delta of 1; raises or gives NaN `faults` times."""

    def __init__(self, features: int, faults: int = 0, kind: str = "raise") -> None:
        super().__init__()
        self.last = nn.Linear(1, features)
        self.faults = faults
        self.kind = kind
        self.calls = 0
        self.zero_last()

    def hidden(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        self.calls += 1
        if self.faults > 0:
            self.faults -= 1
            if self.kind == "raise":
                raise RuntimeError("out of luck")
            return torch.full((*layer_output.shape[:-1], 1), torch.nan)
        return layer_output.new_zeros((*layer_output.shape[:-1], 1))

    def teach(self) -> None:
        with torch.no_grad():
            self.last.bias.fill_(1.0)  # type: ignore[union-attr, operator]

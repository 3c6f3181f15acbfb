"""The networks of the reference tasks: small, and initialised from torch's global random state.

Most are too narrow for their data, so that growth can help.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mnist1d_network() -> nn.Module:
    """Return a 1-D CNN of three strided Conv1d, 6 wide: 574 parameters (36 + 114 + 114 + 310)."""
    return nn.Sequential(
        nn.Conv1d(1, 6, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv1d(6, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(6, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(30, 10),
    )


def digits_network() -> nn.Module:
    """Return an MLP of two hidden layers, 5 wide: 415 parameters (325 + 30 + 60)."""
    return nn.Sequential(nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 10))


def mnist5k_network() -> nn.Module:
    """Return a 2-D CNN of three strided Conv2d, 3 wide, pooled to 2x2: 328 parameters (30 + 84 + 84 + 130)."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


class ResNet(nn.Module):
    """A ResNet of three residual blocks, 8, 16 and 32 wide, on 28x28 images: 19,810 parameters. (He et al. 2016.)"""

    def __init__(self, *, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            ResidualBlock(width, width, stride=1),
            ResidualBlock(width, 2 * width, stride=2),
            ResidualBlock(2 * width, 4 * width, stride=2),
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(F.relu(self.norm(self.stem(images))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, beside the input or its 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.skip(features))


class Transformer(nn.Module):
    """A causal transformer of 3 blocks, 128 wide, 4 heads, on characters: 628,193 parameters. (Radford et al. 2019.)

    The output embedding is a Linear of its own: no weights are tied.
    """

    def __init__(self, vocabulary: int, context: int, *, width: int = 128, heads: int = 4, blocks: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, characters: Tensor) -> Tensor:
        """Return the logits of each next character, [batch, vocabulary, positions], as F.cross_entropy takes them.

        Args:
            characters: Indices in the vocabulary, [batch, positions].
        """
        features = self.embedding(characters) + self.positions[: characters.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(features)))
        return logits.transpose(1, 2)


class TransformerBlock(nn.Module):
    """Attention, then an MLP four times as wide, each after a layer norm and beside its input."""

    def __init__(self, width: int, heads: int, *, causal: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.attention(self.norm1(features))
        hidden: Tensor = self.mlp(self.norm2(features))
        return features + hidden


class Attention(nn.Module):
    """Each position attends to all of them; if causal, to itself and those before it.

    Not nn.MultiheadAttention, which reads its projections' weights without calling them: a kernel there would not run.
    """

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        # [batch, positions, 3 width] -> [3, batch, heads, positions, width / heads]
        qkv = self.qkv(features).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=self.causal)
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class CharConv(nn.Module):
    """Six dilated convolutions, 16 wide, that read 64 characters: 6,369 parameters. (Van den Oord et al. 2016.)

    Without padding, the dilations of 1, 2, 4, ... 32 reduce 64 positions to one, which predicts the next character. It
    predicts one only: kernels that mix positions, such as depthwise_separable and squeeze_excite, would pass later
    characters, thus the labels, to earlier predictions.
    """

    def __init__(self, vocabulary: int, *, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        convolutions = [nn.Conv1d(width, width, 2, dilation=2**depth) for depth in range(6)]
        self.layers = nn.Sequential(*(module for each in convolutions for module in (each, nn.ReLU())))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        """Return the logits of the next character, [batch, vocabulary].

        Args:
            characters: Indices in the vocabulary, [batch, 64].
        """
        features = self.layers(self.embedding(characters).transpose(1, 2))
        logits: Tensor = self.head(features.flatten(1))
        return logits


class Mixer(nn.Module):
    """An MLP-Mixer of two blocks, 8 wide, on 7x7-pixel patches of 28x28 images: 1,418 parameters. (Tolstikhin 2021.)"""

    def __init__(self, *, width: int = 8, hidden: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Linear(49, width)
        self.blocks = nn.Sequential(*(MixerBlock(16, width, hidden) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        # [batch, 1, 28, 28] -> [batch, 16 patches, 49 pixels]
        patches = images.reshape(-1, 4, 7, 4, 7).transpose(2, 3).reshape(-1, 16, 49)
        features = self.blocks(self.embedding(patches))
        logits: Tensor = self.head(self.norm(features).mean(dim=1))
        return logits


class MixerBlock(nn.Module):
    """An MLP across the patches, then one across the channels, each after a layer norm and beside its input."""

    def __init__(self, patches: int, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(patches, hidden), nn.GELU(), nn.Linear(hidden, patches))
        self.norm2 = nn.LayerNorm(width)
        self.channels = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.tokens(self.norm1(features).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = self.channels(self.norm2(features))
        return features + mixed

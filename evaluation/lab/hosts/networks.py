"""Networks of drawn sizes: perceptrons, convolutions, residual perceptrons, and attention on images and text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tamiyo.host._reference.networks import TransformerBlock


def perceptron(
    inputs: int, widths: tuple[int, ...], activation: type[nn.Module] = nn.ReLU, *, outputs: int = 10
) -> Callable[[], nn.Module]:
    """Return what makes a perceptron of `widths` hidden layers on flattened `inputs`, with `outputs` classes."""

    def make() -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        before = inputs
        for width in widths:
            layers += [nn.Linear(before, width), activation()]
            before = width
        return nn.Sequential(*layers, nn.Linear(before, outputs))

    return make


def convolutions(
    widths: tuple[int, ...], activation: type[nn.Module] = nn.ReLU, *, dimensions: int
) -> Callable[[], nn.Module]:
    """Return what makes a convolutional network: a layer of each width, with stride 2, then the mean and ten classes.

    Args:
        widths: Channels of each layer.
        activation: After each layer.
        dimensions: Of the data, without its one channel: 1 or 2.
    """
    layer: type[nn.Module] = nn.Conv1d if dimensions == 1 else nn.Conv2d
    pool: type[nn.Module] = nn.AdaptiveAvgPool1d if dimensions == 1 else nn.AdaptiveAvgPool2d

    def make() -> nn.Module:
        layers: list[nn.Module] = []
        before = 1
        for width in widths:
            layers += [layer(before, width, kernel_size=3, stride=2, padding=1), activation()]
            before = width
        return nn.Sequential(*layers, pool(1), nn.Flatten(), nn.Linear(before, 10))

    return make


class TextPerceptron(nn.Module):
    """A perceptron on the embeddings of the last characters, which predicts the next one. (Bengio et al. 2003.)

    Args:
        vocabulary: Number of characters.
        context: Characters that it reads, at the end of each sample.
        embedding: Width of a character's embedding.
        widths: Of the hidden layers.
        activation: After each hidden layer.
    """

    def __init__(
        self, vocabulary: int, context: int, embedding: int, widths: tuple[int, ...], activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.layers = perceptron(context * embedding, widths, activation, outputs=vocabulary)()

    def forward(self, characters: Tensor) -> Tensor:
        """Return the logits of the next character, [batch, vocabulary].

        Args:
            characters: Indices in the vocabulary, [batch, positions].
        """
        logits: Tensor = self.layers(self.embedding(characters[:, -self.context :]))
        return logits


class TextConvolutions(nn.Module):
    """A convolutional network on the embeddings of the last characters, which predicts the next one.

    Its convolutions have stride 2 and no dilation: dilated ones on text are held out.

    Args:
        vocabulary: Number of characters.
        context: Characters that it reads, at the end of each sample.
        embedding: Width of a character's embedding.
        widths: Channels of each convolution.
        activation: After each convolution.
    """

    def __init__(
        self, vocabulary: int, context: int, embedding: int, widths: tuple[int, ...], activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(vocabulary, embedding)
        layers: list[nn.Module] = []
        before, positions = embedding, context
        for width in widths:
            layers += [nn.Conv1d(before, width, kernel_size=3, stride=2, padding=1), activation()]
            before, positions = width, (positions + 1) // 2
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(before * positions, vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        """Return the logits of the next character, [batch, vocabulary].

        Args:
            characters: Indices in the vocabulary, [batch, positions].
        """
        features = self.layers(self.embedding(characters[:, -self.context :]).transpose(1, 2))
        logits: Tensor = self.head(features.flatten(1))
        return logits


class ResidualPerceptron(nn.Module):
    """Blocks of a layer norm and two linear layers beside their input, on flattened inputs, with ten classes.

    Args:
        inputs: Numbers in a sample.
        width: Between the blocks.
        hidden: Within a block.
        blocks: How many.
        activation: Within a block.
    """

    def __init__(self, inputs: int, width: int, hidden: int, blocks: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), activation(), nn.Linear(hidden, width))
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, samples: Tensor) -> Tensor:
        features: Tensor = self.stem(samples.flatten(1))
        for block in self.blocks:
            features = features + block(features)
        logits: Tensor = self.head(self.norm(features))
        return logits


class Encoder(nn.Module):
    """Attention over the pieces of a sample, with ten classes. (Dosovitskiy et al. 2021.)

    Args:
        pieces: How many; their sizes are equal.
        piece: Numbers in each.
        width: Of the features; a multiple of `heads`.
        heads: Of the attention.
        blocks: How many.
    """

    def __init__(self, pieces: int, piece: int, *, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.pieces = pieces
        self.embedding = nn.Linear(piece, width)
        self.positions = nn.Parameter(torch.zeros(pieces, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=False) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, samples: Tensor) -> Tensor:
        pieces = samples.reshape(len(samples), self.pieces, -1)
        features = self.norm(self.blocks(self.embedding(pieces) + self.positions))
        logits: Tensor = self.head(features.mean(dim=1))
        return logits

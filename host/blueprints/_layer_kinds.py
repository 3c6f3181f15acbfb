"""The kinds of layers: how to recognise them, and how to read and change what they take and return.

Kernels grow at Linear layers, convolutions and attention. Norms and embeddings are only observed: they appear in
telemetry and topology if their names are given, and no blueprint supports them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor, nn

LayerType = Literal[
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "attention",
    "layer_norm",
    "channel_norm",
    "embedding",
]
LAYER_TYPES: tuple[LayerType, ...] = get_args(LayerType)
OBSERVED: frozenset[LayerType] = frozenset({"layer_norm", "channel_norm", "embedding"})
"""Types that no kernel can grow at."""
CHANNELS_LAST: frozenset[LayerType] = frozenset({"linear", "attention", "layer_norm", "embedding"})
"""Types whose output has its features in the last dimension; the others have them behind the batch."""
SPATIAL_DIMS: dict[LayerType, int] = {
    "conv1d": 1,
    "conv2d": 2,
    "conv3d": 3,
    "conv_transpose1d": 1,
    "conv_transpose2d": 2,
    "conv_transpose3d": 3,
}

_TYPES: dict[type[nn.Module], LayerType] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.MultiheadAttention: "attention",
    nn.LayerNorm: "layer_norm",
    nn.RMSNorm: "layer_norm",
    nn.BatchNorm1d: "channel_norm",
    nn.BatchNorm2d: "channel_norm",
    nn.BatchNorm3d: "channel_norm",
    nn.SyncBatchNorm: "channel_norm",
    nn.InstanceNorm1d: "channel_norm",
    nn.InstanceNorm2d: "channel_norm",
    nn.InstanceNorm3d: "channel_norm",
    nn.GroupNorm: "channel_norm",
    nn.Embedding: "embedding",
}


def layer_type(module: nn.Module) -> LayerType | None:
    """Return the type of a module, None if it is not one that can be attached.

    Args:
        module: A layer of torch, a subclass of one, or the Conv1D of transformers, which is a Linear with a transposed
            weight.
    """
    for cls in type(module).__mro__:
        if cls in _TYPES:
            return _TYPES[cls]
    return "linear" if _is_transposed_linear(module) else None


def growable(layers: Mapping[str, nn.Module]) -> set[str]:
    """Return the names of the layers that kernels can grow at, without those within another layer.

    Args:
        layers: All modules of a model that have a `layer_type`, by name.
    """
    inner = {id(each) for module in layers.values() for each in module.modules() if each is not module}
    return {k for k, module in layers.items() if id(module) not in inner and layer_type(module) not in OBSERVED}


def features(module: nn.Module) -> tuple[int, int]:
    """Return the number of features, or channels, that a layer takes and returns.

    Args:
        module: A module that has a `layer_type`.
    """
    match module:
        case nn.MultiheadAttention():
            return module.embed_dim, module.embed_dim
        case nn.Embedding():
            return module.num_embeddings, module.embedding_dim
        case nn.LayerNorm() | nn.RMSNorm():
            return module.normalized_shape[-1], module.normalized_shape[-1]
        case nn.GroupNorm():
            return module.num_channels, module.num_channels
        case nn.Linear():
            return module.in_features, module.out_features
    if _is_transposed_linear(module):
        weight = stored_weight(module)
        assert weight is not None
        return int(weight.shape[0]), int(weight.shape[1])
    channels: Any = module  # a convolution, or a norm by channels
    if hasattr(channels, "num_features"):
        return channels.num_features, channels.num_features
    return channels.in_channels, channels.out_channels


def weight_of(module: nn.Module) -> Tensor | None:
    """Return the weight that gives a layer's dtype and device; None if it has none.

    Args:
        module: A module that has a `layer_type`.
    """
    holder = module.out_proj if isinstance(module, nn.MultiheadAttention) else module
    return stored_weight(holder)


def stored_weight(module: nn.Module) -> Tensor | None:
    """Return a module's weight without computing it; None if it has none.

    A parametrization computes the weight whenever it is read, and may count that: spectral_norm does in training mode.

    Args:
        module: Any module.
    """
    own: Any = vars(module)
    found = own["_parameters"].get("weight", own["_buffers"].get("weight", own.get("weight")))
    if found is None:
        parametrized = own["_modules"].get("parametrizations")
        computed = vars(parametrized)["_modules"].get("weight") if parametrized is not None else None
        originals = () if computed is None else tuple(computed.parameters())
        found = max(originals, key=Tensor.numel, default=None)  # of weight_norm the direction, not the lengths
    return found if isinstance(found, Tensor) else None


def layer_input(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what a layer reads, of the arguments of its forward pass: of attention, the query.

    Args:
        module: The layer.
        args: Positional arguments of its forward pass.
        kwargs: Keyword arguments of its forward pass.

    Returns:
        The first argument, usually a tensor; None if there is none.
    """
    return args[0] if args else kwargs.get(input_name(module, kwargs))


def input_name(module: nn.Module, kwargs: Mapping[str, Any]) -> str:
    """Return the name of the argument that a layer reads, if it is not the first by position.

    Args:
        module: The layer.
        kwargs: Keyword arguments of its forward pass.
    """
    name = "query" if isinstance(module, nn.MultiheadAttention) else "input"
    return name if name in kwargs else next(iter(kwargs), name)


def layer_output(result: Any) -> Any:
    """Return a layer's output, of what its forward pass has returned: attention returns it beside its weights.

    Args:
        result: A tensor, or a tuple that begins with one.
    """
    return result[0] if isinstance(result, tuple) and result else result


def with_output(result: Any, output: Tensor) -> Any:
    """Return what a layer's forward pass has returned, with another output in it.

    Args:
        result: A tensor, or a tuple that begins with one.
        output: The new output, in the shape of the old one.
    """
    return (output, *result[1:]) if isinstance(result, tuple) else output


def run_layer(module: nn.Module, inputs: Tensor) -> Tensor:
    """Run a layer by itself and return its output.

    Args:
        module: A module that has a `layer_type`, or one that wraps it and has its attributes.
        inputs: [batch, ...]; of attention [batch, length, features], whatever its layout is. Key and value of attention
            are zeros.
    """
    if layer_type(module) != "attention":
        output: Tensor = layer_output(module(inputs))
        return output
    attention: Any = module
    query = inputs if attention.batch_first else inputs.transpose(0, 1)
    key, value = (query.new_zeros(*query.shape[:-1], size) for size in (attention.kdim, attention.vdim))
    output = layer_output(attention(query, key, value))
    return output if attention.batch_first else output.transpose(0, 1)


def _is_transposed_linear(module: nn.Module) -> bool:
    """Return whether a module is the Conv1D of transformers: x @ weight + bias, with weight [inputs, outputs]."""
    if not any(cls.__name__ == "Conv1D" for cls in type(module).__mro__):
        return False
    weight = stored_weight(module)
    return weight is not None and weight.dim() == 2 and getattr(module, "nf", None) == weight.shape[1]


def has_lazy_parameters(module: nn.Module) -> bool:
    """Return whether a module contains parameters or buffers without a shape, which its first forward pass creates.

    Args:
        module: Any module.
    """
    lazy = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)
    values: list[Tensor] = [*module.parameters(), *module.buffers()]
    return any(isinstance(value, lazy) for value in values)

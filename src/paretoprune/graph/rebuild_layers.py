"""Layers whose size attributes follow from their tensors: what each is called, and what has to be set anew with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import fx, nn

from paretoprune.graph.op import bind

Arguments = Mapping[str, Any]
Sizes = dict[str, Any]
_Update = Callable[[Any, Arguments], Sizes]
"""New size attributes of a layer, from its sliced tensors and from the arguments of its operator after surgery."""


def _convolution(m: Any, args: Arguments) -> Sizes:
    groups = int(args.get("groups", m.groups))
    return {"out_channels": m.weight.shape[0], "in_channels": m.weight.shape[1] * groups, "groups": groups}


def _transposed(m: Any, args: Arguments) -> Sizes:
    groups = int(args.get("groups", m.groups))
    return {"in_channels": m.weight.shape[0], "out_channels": m.weight.shape[1] * groups, "groups": groups}


def _linear(m: Any, args: Arguments) -> Sizes:
    return {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}


def _bilinear(m: Any, args: Arguments) -> Sizes:
    return dict(zip(("out_features", "in1_features", "in2_features"), m.weight.shape, strict=True))


def _features(m: Any, args: Arguments) -> Sizes:
    made = next((t for t in (m.weight, m.running_mean) if t is not None), None)
    return {} if made is None else {"num_features": made.shape[0]}


def _normalized(m: Any, args: Arguments) -> Sizes:
    shape = tuple(args.get("normalized_shape") or (m.normalized_shape if m.weight is None else m.weight.shape))
    return {"normalized_shape": shape}


def _group_norm(m: Any, args: Arguments) -> Sizes:
    channels = {} if m.weight is None else {"num_channels": m.weight.shape[0]}
    return {"num_groups": int(args.get("num_groups", m.num_groups)), **channels}


def _parameters(m: Any, args: Arguments) -> Sizes:
    return {"num_parameters": m.weight.shape[0]}


def _embedding(m: Any, args: Arguments) -> Sizes:
    return {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]}


def _recurrent(gates: int) -> _Update:
    def update(m: Any, args: Arguments) -> Sizes:
        projection = getattr(m, "weight_hr_l0", None)
        return {
            "input_size": m.weight_ih_l0.shape[1],
            "hidden_size": m.weight_ih_l0.shape[0] // gates,
            "proj_size": 0 if projection is None else projection.shape[0],
        }

    return update


def _cell(gates: int) -> _Update:
    def update(m: Any, args: Arguments) -> Sizes:
        return {"input_size": m.weight_ih.shape[1], "hidden_size": m.weight_ih.shape[0] // gates}

    return update


def _shuffled(m: Any, args: Arguments) -> Sizes:
    return {"groups": int(args.get("groups", m.groups))}


def _transposed_matrix(m: Any, args: Arguments) -> Sizes:
    return {"nx": m.weight.shape[0], "nf": m.weight.shape[1]}


LAYERS: dict[type[nn.Module], tuple[tuple[str, ...], _Update]] = {
    **{getattr(nn, f"Conv{d}d"): ((f"conv{d}d",), _convolution) for d in (1, 2, 3)},
    **{getattr(nn, f"ConvTranspose{d}d"): ((f"conv_transpose{d}d",), _transposed) for d in (1, 2, 3)},
    nn.Linear: (("linear", "addmm"), _linear),
    nn.Bilinear: (("bilinear",), _bilinear),
    **{getattr(nn, f"BatchNorm{d}d"): (("batch_norm",), _features) for d in (1, 2, 3)},
    **{getattr(nn, f"InstanceNorm{d}d"): (("instance_norm",), _features) for d in (1, 2, 3)},
    nn.LayerNorm: (("layer_norm",), _normalized),
    nn.RMSNorm: (("rms_norm",), _normalized),
    nn.GroupNorm: (("group_norm",), _group_norm),
    nn.PReLU: (("prelu",), _parameters),
    nn.Embedding: (("embedding",), _embedding),
    nn.EmbeddingBag: (("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"), _embedding),
    nn.LSTM: (("lstm",), _recurrent(4)),
    nn.GRU: (("gru",), _recurrent(3)),
    nn.RNN: (("rnn_tanh", "rnn_relu"), _recurrent(1)),
    nn.LSTMCell: (("lstm_cell",), _cell(4)),
    nn.GRUCell: (("gru_cell",), _cell(3)),
    nn.RNNCell: (("rnn_tanh_cell", "rnn_relu_cell"), _cell(1)),
    nn.ChannelShuffle: (("channel_shuffle",), _shuffled),
}
"""Layers that hold sizes besides their weights, with the operators that each becomes."""

_BY_NAME: dict[str, tuple[tuple[str, ...], _Update]] = {
    "transformers.pytorch_utils.Conv1D": (("addmm",), _transposed_matrix),
}
"""The same for a library that is not imported here."""


SIZE_NAMES = frozenset(
    (
        *("in_channels", "out_channels", "groups", "num_groups", "num_channels", "num_features", "normalized_shape"),
        *("in_features", "out_features", "in1_features", "in2_features", "nx", "nf", "num_parameters"),
        *("num_embeddings", "embedding_dim", "input_size", "hidden_size", "proj_size"),
    )
)
"""Every attribute that the functions above set."""


def layer_of(module: nn.Module) -> tuple[tuple[str, ...], _Update] | None:
    """What is known of the nearest of its classes."""
    for kind in type(module).__mro__:
        found = LAYERS.get(kind) or _BY_NAME.get(f"{kind.__module__}.{kind.__name__}")
        if found is not None:
            return found
    return None


def layer_sizes(module: nn.Module, nodes: Iterable[fx.Node]) -> Sizes:
    """New size attributes of a known layer that has its sliced tensors. `nodes`: its operators after surgery."""
    known = layer_of(module)
    if known is None:
        return {}
    operators, update = known
    node = next((n for n in nodes if str(n.target).partition(".")[2].partition(".")[0] in operators), None)
    found = update(module, {} if node is None else bind(node))
    return {k: v for k, v in found.items() if getattr(module, k, v) != v}


def refresh(module: nn.Module) -> None:
    """Recurrent layers keep a second list of their weights."""
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
            layer.flatten_parameters()

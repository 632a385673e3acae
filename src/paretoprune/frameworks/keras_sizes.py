"""Which entries of a Keras layer's config hold sizes, and what they become: one function per kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Config = dict[str, Any]


class InexpressibleError(Exception):
    """A config has no words for these sizes; the message says why."""


@dataclass
class Seen:
    """One layer at its new sizes.

    `tensors`: its variables and those of layers within, by the name relative to it. `calls`: arguments of the operators
    that it became, by schema name. `output`: shape of what the last of them gave; None where it gave no single tensor.
    """

    tensors: Mapping[str, Tensor]
    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    output: tuple[int, ...] | None = None
    entering: tuple[int, ...] | None = None
    """Shape of what enters it first."""

    def size(self, name: str, dim: int) -> int:
        return int(self.tensors[name].shape[dim])

    def argument(self, operator: str, name: str) -> Any:
        """An argument of the first operator whose name starts so; None without one."""
        return next((args.get(name) for op, args in self.calls if op.startswith(operator)), None)


def _dense(seen: Seen, config: Config) -> Config:
    return {"units": seen.size("kernel", -1)}


def _einsum_dense(seen: Seen, config: Config) -> Config:
    return {"output_shape": _like(config["output_shape"], seen)}


def _like(old: Any, seen: Seen) -> Any:
    """A target shape without the batch: entries that say "whatever is left" stay."""
    single = isinstance(old, int)
    entries = [old] if single else list(old)
    if seen.output is None or len(seen.output) <= len(entries):
        return old
    new = [o if o is None or o == -1 else n for o, n in zip(entries, seen.output[-len(entries) :], strict=True)]
    return new[0] if single else new


def _convolution(seen: Seen, config: Config) -> Config:
    groups = seen.argument("conv", "groups")
    return {"filters": seen.size("kernel", -1), **({} if groups is None else {"groups": int(groups)})}


def _transposed(seen: Seen, config: Config) -> Config:
    return {"filters": seen.size("kernel", -2)}


def _depthwise(seen: Seen, config: Config) -> Config:
    return {"depth_multiplier": seen.size("kernel", -1)}


def _separable(seen: Seen, config: Config) -> Config:
    return {
        "filters": seen.size("pointwise_kernel", -1),
        "depth_multiplier": seen.size("depthwise_kernel", -1),
    }


def _embedding(seen: Seen, config: Config) -> Config:
    return {"input_dim": seen.size("embeddings", 0), "output_dim": seen.size("embeddings", 1)}


def _recurrent(seen: Seen, config: Config) -> Config:
    name = next(n for n in seen.tensors if n.endswith("recurrent_kernel"))
    return {"units": seen.size(name, 0)}


def _attention(seen: Seen, config: Config) -> Config:
    key = seen.size("query.kernel", 2)
    if key != config["key_dim"]:
        raise InexpressibleError(
            f"its scores are divided by the root of key_dim, which was {config['key_dim']} and would become {key}"
        )
    if len({seen.size(f"{part}.kernel", 1) for part in ("query", "key", "value")}) > 1:
        raise InexpressibleError("its queries, keys and values kept different numbers of heads")
    output = config.get("output_shape")
    made = [int(n) for n in seen.tensors["attention_output.kernel"].shape[2:]]
    shape = {} if output is None else {"output_shape": made[0] if isinstance(output, int) else made}
    return {"num_heads": seen.size("query.kernel", 1), "value_dim": seen.size("value.kernel", 2), **shape}


def _grouped_attention(seen: Seen, config: Config) -> Config:
    size = seen.size("query.kernel", 2)
    if size != config["head_dim"]:
        raise InexpressibleError(
            f"its scores are divided by the root of head_dim, which was {config['head_dim']} and would become {size}"
        )
    return {"num_query_heads": seen.size("query.kernel", 1), "num_key_value_heads": seen.size("key.kernel", 1)}


def _group_norm(seen: Seen, config: Config) -> Config:
    groups = seen.argument("group_norm", "num_groups")
    return {} if groups is None or config["groups"] == -1 else {"groups": int(groups)}


def _reshape(seen: Seen, config: Config) -> Config:
    return {"target_shape": _like(config["target_shape"], seen)}


def _reshape_operation(seen: Seen, config: Config) -> Config:
    old = list(config["newshape"])
    return {"newshape": [old[0], *_like(old[1:], seen)]} if len(old) > 1 else {}


SIZES: Mapping[str, Callable[[Seen, Config], Config]] = {
    "Dense": _dense,
    "EinsumDense": _einsum_dense,
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _convolution),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _transposed),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _depthwise),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separable),
    "Embedding": _embedding,
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "LSTMCell", "GRUCell", "SimpleRNNCell"), _recurrent),
    "MultiHeadAttention": _attention,
    "GroupedQueryAttention": _grouped_attention,
    "GroupNormalization": _group_norm,
    "Reshape": _reshape,
}
"""By the name of the class in keras.layers; every other layer takes its sizes from its input."""

OPERATION_SIZES: Mapping[str, Callable[[Seen, Config], Config]] = {"Reshape": _reshape_operation}
"""By the name of the class of an operation in a functional model."""

"""Keras layers for which torch has one operator: the same values, seen for what they are.

On its torch backend Keras writes a batch or layer normalisation as arithmetic, a recurrent layer as a loop, and the
bias of a convolution as an addition. In one operator the statistics of a normalisation can be taken over kept
positions, a batch norm can be recalibrated, train flags work in the rewritten graph, and runtimes know the layer. A
function returns NotImplemented for arguments that torch's operator does not cover; the layer then runs as Keras
writes it. The result is compared with Keras' own on the example before anything else is done
(KerasNetwork.differs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as tree

_FULL = (torch.float32, torch.float64)
"""Keras computes half precision normalisations in single precision."""


def _value(variable: Any) -> Tensor | None:
    """The tensor of a variable, or a tensor that a property made (a kernel with a low-rank update)."""
    return variable if variable is None or isinstance(variable, Tensor) else variable.value


def _first(x: Tensor, channel: int) -> Tensor:
    """`x` with its channels in dim 1."""
    if channel % x.ndim == 1:
        return x
    order = [d for d in range(x.ndim) if d != channel % x.ndim]
    return x.permute(order[0], channel % x.ndim, *order[1:])


def _back(x: Tensor, channel: int) -> Tensor:
    if channel % x.ndim == 1:
        return x
    order = [d for d in range(x.ndim) if d != 1]
    order.insert(channel % x.ndim, 1)
    return x.permute(order)


def _plain(layer: Any) -> bool:
    return getattr(layer, "quantization_mode", None) is None


def _activated(layer: Any, x: Tensor) -> Tensor:
    result: Tensor = x if layer.activation is None else layer.activation(x)
    return result


def dense(layer: Any, inputs: Tensor, training: Any = None) -> Any:
    kernel = _value(layer.kernel)
    if not _plain(layer) or kernel is None or inputs.dtype != kernel.dtype:
        return NotImplemented
    return _activated(layer, functional.linear(inputs, kernel.t(), _value(layer.bias)))


def convolution(layer: Any, inputs: Tensor) -> Any:
    kernel = _value(layer.kernel)
    if not _plain(layer) or kernel is None or inputs.dtype != kernel.dtype:
        return NotImplemented
    channel = -1 if layer.data_format == "channels_last" else 1
    x, padding = _padded(layer, _first(inputs, channel))
    run: Callable[..., Tensor] = getattr(functional, f"conv{layer.rank}d")
    weight = kernel.permute(-1, -2, *range(layer.rank))
    bias = _value(layer.bias) if layer.use_bias else None
    y = run(x, weight, bias, tuple(layer.strides), padding, tuple(layer.dilation_rate), layer.groups)
    return _activated(layer, _back(y, channel))


def _padded(layer: Any, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """TensorFlow's "same": the output has ceil(size / stride) positions, the odd one of the padding comes last."""
    sides = [_sides(layer, int(n), i) for i, n in enumerate(x.shape[2:])] if layer.padding != "valid" else []
    if all(before == after for before, after in sides):
        return x, tuple(before for before, _ in sides) or (0,) * layer.rank
    return functional.pad(x, [n for pair in reversed(sides) for n in pair]), (0,) * layer.rank


def _sides(layer: Any, size: int, i: int) -> tuple[int, int]:
    reach = (layer.kernel_size[i] - 1) * layer.dilation_rate[i]
    if layer.padding == "causal":
        return reach, 0
    stride = layer.strides[i]
    total = max(0, (-(-size // stride) - 1) * stride + reach + 1 - size)
    return total // 2, total - total // 2


def batch_norm(layer: Any, inputs: Tensor, training: Any = None, mask: Any = None) -> Any:
    if mask is not None or not layer.trainable or getattr(layer, "renorm", False) or inputs.dtype not in _FULL:
        return NotImplemented
    gamma, beta = (_value(v) if used else None for v, used in ((layer.gamma, layer.scale), (layer.beta, layer.center)))
    mean, variance = _value(layer.moving_mean), _value(layer.moving_variance)
    x, momentum = _first(inputs, layer.axis), 1 - layer.momentum
    y = functional.batch_norm(x, mean, variance, gamma, beta, bool(training), momentum, layer.epsilon)
    return _back(y, layer.axis)


def layer_norm(layer: Any, inputs: Tensor) -> Any:
    axes = sorted(a % inputs.ndim for a in ([layer.axis] if isinstance(layer.axis, int) else layer.axis))
    trailing = axes == list(range(inputs.ndim - len(axes), inputs.ndim))
    if not trailing or getattr(layer, "rms_scaling", False) or inputs.dtype not in _FULL:
        return NotImplemented
    sizes = [inputs.shape[a] for a in axes]
    return functional.layer_norm(inputs, sizes, _value(layer.gamma), _value(layer.beta), layer.epsilon)


def rms_norm(layer: Any, x: Tensor) -> Any:
    if layer.axis not in (-1, x.ndim - 1, [-1], (-1,)) or x.dtype not in _FULL:
        return NotImplemented
    return functional.rms_norm(x, [x.shape[-1]], _value(layer.scale), layer.epsilon)


def group_norm(layer: Any, inputs: Tensor) -> Any:
    if not isinstance(layer.axis, int) or inputs.dtype not in _FULL:
        return NotImplemented
    gamma, beta = (_value(v) if used else None for v, used in ((layer.gamma, layer.scale), (layer.beta, layer.center)))
    y = functional.group_norm(_first(inputs, layer.axis), layer.groups, gamma, beta, layer.epsilon)
    return _back(y, layer.axis)


def dropout(layer: Any, inputs: Tensor, training: Any = False) -> Any:
    """Keras draws from a seed of its own; the distribution is the same."""
    if layer.noise_shape is not None:
        return NotImplemented
    return functional.dropout(inputs, layer.rate, bool(training))


_NAMES = {"LSTM": ("tanh", "sigmoid"), "GRU": ("tanh", "sigmoid"), "SimpleRNN": ("tanh",)}


def recurrent(layer: Any, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
    """Keras' gates are input, forget, cell, output (as torch's) and update, reset, candidate (torch: reset first)."""
    kind, cell = type(layer).__name__, layer.cell
    used = (cell.activation, cell.recurrent_activation) if kind != "SimpleRNN" else (cell.activation,)
    plain = tuple(getattr(a, "__name__", "") for a in used) == _NAMES[kind] and getattr(cell, "reset_after", True)
    dropped = bool(training) and (cell.dropout or cell.recurrent_dropout)
    kernel, back = _value(cell.kernel), _value(cell.recurrent_kernel)
    if mask is not None or layer.stateful or not plain or dropped or kernel is None or back is None:
        return unrolled(layer, sequences, initial_state, mask, training)
    if sequences.dtype != kernel.dtype:
        return unrolled(layer, sequences, initial_state, mask, training)
    x = sequences.flip(1) if layer.go_backwards else sequences
    biases = _biases(kind, _value(cell.bias) if cell.use_bias else None)
    weights = [_torch_gates(kind, kernel.t()), _torch_gates(kind, back.t()), *biases]
    states = _initial(layer, x, initial_state)
    options = (bool(biases), 1, 0.0, bool(training), False, True)
    if kind == "LSTM":
        outputs, *finals = torch.lstm(x, states, weights, *options)
    else:
        outputs, *finals = (torch.gru if kind == "GRU" else torch.rnn_tanh)(x, states[0], weights, *options)
    ends = [final.squeeze(0) for final in finals]
    result = outputs if layer.return_sequences else ends[0]
    return (result, *ends) if layer.return_state else result


def unrolled(layer: Any, sequences: Tensor, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
    """Keras' own steps one after the other. Its loop counts the samples of the batch; unrolled it does not."""
    back = layer.go_backwards and mask is not None  # unrolled, Keras cannot turn a mask round
    if back:
        sequences, mask = sequences.flip(1), tree.tree_map(lambda m: m.flip(1), mask)
    before = layer.unroll, layer.go_backwards
    object.__setattr__(layer, "unroll", True)
    object.__setattr__(layer, "go_backwards", False if back else layer.go_backwards)
    try:
        options = {} if initial_state is None else {"initial_state": initial_state}
        return type(layer).call(layer, sequences, mask=mask, training=training, **options)
    finally:
        object.__setattr__(layer, "unroll", before[0])
        object.__setattr__(layer, "go_backwards", before[1])


def _biases(kind: str, bias: Tensor | None) -> list[Tensor]:
    if bias is None:
        return []
    both = list(bias.unbind(0)) if bias.ndim == 2 else [bias, torch.zeros_like(bias)]
    return [_torch_gates(kind, b) for b in both]


def _torch_gates(kind: str, rows: Tensor) -> Tensor:
    if kind != "GRU":
        return rows
    update, reset, candidate = rows.chunk(3, 0)
    return torch.cat([reset, update, candidate], 0)


def _initial(layer: Any, x: Tensor, given: Any) -> list[Tensor]:
    count = 2 if type(layer).__name__ == "LSTM" else 1
    if given is None or (isinstance(given, (list, tuple)) and not given):
        return [x.new_zeros((1, x.shape[0], layer.units)) for _ in range(count)]
    states = list(given) if isinstance(given, (list, tuple)) else [given]
    return [state.unsqueeze(0) for state in states]


CALLS: Mapping[str, Callable[..., Any]] = {
    "Dense": dense,
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), convolution),
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "GroupNormalization": group_norm,
    "Dropout": dropout,
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN"), recurrent),
    **dict.fromkeys(("RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), unrolled),
}
"""By the name of Keras' own class; a subclass is not taken for it."""

"""Which values are never negative, whatever the weights: a removed zero cannot win a maximum over them."""

from __future__ import annotations

from typing import Any

from torch import fx

_VALUES = """
relu relu6 abs square sqrt rsqrt exp exp2 cosh erfc sigmoid special_expit hardsigmoid softmax _softmax norm
linalg_vector_norm hypot var std eq ne gt ge lt le isnan isinf logical_and logical_or logical_xor logical_not
zeros zeros_like new_zeros ones ones_like new_ones bernoulli rand rand_like
"""
_COPIES = """
max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d
dropout feature_dropout contiguous clone alias detach to _to_copy type_as positive round floor ceil trunc
view reshape _unsafe_view flatten unflatten permute transpose unsqueeze squeeze expand expand_as repeat
slice select narrow split chunk split_with_sizes getitem pixel_shuffle pixel_unshuffle channel_shuffle roll flip
mean sum amax amin max
"""
_NEVER = frozenset(_VALUES.split())
_PASS = frozenset(_COPIES.split())
"""Never negative where the first operand is."""
_ALL = frozenset(("add", "mul", "div", "maximum", "minimum", "where", "cat", "stack"))
"""Never negative where every operand is."""


def never_negative(node: Any) -> bool:
    """Sound and far from complete: operators by name, through copies, layouts and averages."""
    stack, seen = [node], {node}
    while stack:
        top = stack.pop()
        if isinstance(top, (int, float)):
            if top < 0:
                return False
            continue
        needed = _needed(top)
        if needed is None:
            return False
        stack.extend(n for n in needed if not isinstance(n, fx.Node) or n not in seen)
        seen.update(n for n in needed if isinstance(n, fx.Node))
    return True


def _needed(node: Any) -> list[Any] | None:
    """What must be non-negative for `node` to be so; None where that says nothing."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    parts = str(node.target).split(".")
    name = parts[1] if parts[0] == "aten" else "getitem" if "getitem" in str(node.target) else ""
    if name in _NEVER:
        return []
    if name in _PASS and node.args:
        return [node.args[0]]
    if name in _ALL and not node.kwargs:
        operands = list(node.args[1:]) if name == "where" else list(node.args)
        return list(operands[0]) if isinstance(operands[0], (list, tuple)) else operands
    if name in ("clamp", "clamp_min", "hardtanh") and len(node.args) > 1 and isinstance(node.args[1], (int, float)):
        return [] if node.args[1] >= 0 else None
    return None

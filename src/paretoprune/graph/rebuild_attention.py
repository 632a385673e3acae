"""nn.MultiheadAttention after surgery: which sizes it takes, and where it needs a forward that takes them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from paretoprune.graph.rebuild_edits import Edit
from paretoprune.graph.rebuild_evidence import Evidence


def attention_edits(
    model: nn.Module, evidence: Mapping[str, Evidence]
) -> tuple[tuple[tuple[str, int, int, float], ...], list[Edit], str]:
    """(layers that must be narrowed, new sizes of them all, why it cannot be done).

    `model` has its sliced tensors already. Torch's own layer holds a cut in which heads times head size is the
    embedding and the head size is the old one, on which its scale depends.
    """
    narrow, edits = [], []
    for path, module in model.named_modules():
        if not isinstance(module, nn.MultiheadAttention) or path not in evidence:
            continue
        inner, outer = module.out_proj.weight.shape[1], module.out_proj.weight.shape[0]
        whole, rows = outer == module.embed_dim, inner == module.embed_dim
        if whole and rows:
            continue
        shape = _heads(module, inner, evidence[path])
        if shape is None:
            return (), [], f"nn.MultiheadAttention '{path}' holds queries, keys and values of one size only"
        sizes = {"embed_dim": outer, "kdim": _width(module, "k"), "vdim": _width(module, "v")}
        edits += [Edit(path, n, "", v) for n, v in sizes.items() if getattr(module, n) != v]
        if inner != outer or shape[1] != module.head_dim:
            if module.bias_k is not None or module.add_zero_attn:
                return (), [], f"nn.MultiheadAttention '{path}' adds keys of its own (add_bias_kv or add_zero_attn)"
            narrow.append((path, *shape, module.head_dim**-0.5))
        elif shape[0] != module.num_heads:
            edits.append(Edit(path, "num_heads", "", shape[0]))
    return tuple(narrow), edits, ""


def _width(module: nn.MultiheadAttention, which: str) -> int:
    separate = getattr(module, f"{which}_proj_weight")
    return int((module.in_proj_weight if separate is None else separate).shape[1])


def _heads(module: nn.MultiheadAttention, inner: int, seen: Evidence) -> tuple[int, int] | None:
    """Heads and their size after surgery, by what the graph says of both; None where the three parts differ."""
    parts = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    rows = (
        [int(p.shape[0]) for p in parts] if module.in_proj_weight is None else [module.in_proj_weight.shape[0] // 3] * 3
    )
    if set(rows) != {inner}:
        return None
    sizes = [new for new in seen.values(module.head_dim) if inner % new == 0] or [module.head_dim]
    heads = seen.values(module.num_heads) or [module.num_heads]
    fitting = [(h, d) for d in sizes for h in heads if h * d == inner]
    by_kind = [(h, d) for h, d in fitting if any("heads" in k for k in seen.exprs.get(module.num_heads, {}).get(h, ()))]
    chosen = by_kind or fitting
    return chosen[0] if chosen else None

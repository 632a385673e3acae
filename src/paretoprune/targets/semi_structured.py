"""Linear layers whose weights obey 2:4, on NVIDIA GPUs: half of the weights are read, and half of the products made.

The GPU's sparse units take fp16 and bf16 here. They take fp32 too, but round it to TF32, which the target promises not
to do; 8-bit weights it does not offer. Sizes must fit PyTorch's kernels (multiples of 16 to 64, by type and library).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx, nn

from paretoprune.targets.session import one_line

KEY = "2:4"
"""Of the graph's `meta`: the weights that obey 2:4, each with "" or why it was left dense."""

HALF = (torch.float16, torch.bfloat16)
OLDEST = (8, 0)
"""Compute capability of the first GPUs with sparse units (Ampere)."""

PROBE_ROWS = 8
_FAILURES = (RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError, AttributeError)

Pack = Callable[[torch.Tensor], torch.Tensor]


def compress(module: fx.GraphModule, capability: tuple[int, int], pack: Pack | None = None) -> dict[str, str]:
    """Replace the weights that obey 2:4 and fit; says of all that obey it what became of them. Changes `module`."""
    notes: dict[str, str] = {}
    for name in linear_weights(module):
        weight = module.get_buffer(name)
        if not obeys(weight):
            continue
        notes[name] = _fault(weight, capability) or _compressed(module, name, pack or _pack)
    module.meta[KEY] = notes
    return notes


def linear_weights(module: fx.GraphModule) -> list[str]:
    """Tensors that linear layers read as their weight, and nothing reads otherwise."""
    return list(dict.fromkeys(str(node.target) for node in module.graph.nodes if _is_weight(node)))


def _is_weight(node: fx.Node) -> bool:
    def reads(user: fx.Node) -> bool:
        linear = user.target == torch.ops.aten.linear.default
        return linear and [at for at, arg in enumerate(user.args) if arg is node] == [1]

    return node.op == "get_attr" and bool(node.users) and all(map(reads, node.users))


def obeys(weight: torch.Tensor) -> bool:
    """Of each four neighbouring inputs of an output at most two are not zero."""
    if weight.dim() != 2 or weight.shape[1] % 4:
        return False
    return bool(((weight.reshape(-1, 4) != 0).sum(dim=1) <= 2).all())


def _fault(weight: torch.Tensor, capability: tuple[int, int]) -> str:
    if weight.dtype not in HALF:
        return f"{weight.dtype}: only fp16 and bf16 are computed sparse without being rounded"
    if capability < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} has no sparse units: they begin with 8.0"
    return ""


def _compressed(module: fx.GraphModule, name: str, pack: Pack) -> str:
    weight = module.get_buffer(name)
    x = torch.linspace(-1, 1, PROBE_ROWS * weight.shape[1], dtype=torch.float32).reshape(PROBE_ROWS, -1).to(weight)
    try:
        with torch.no_grad():
            packed = pack(weight.contiguous())
            given, wanted = nn.functional.linear(x, packed).float(), nn.functional.linear(x, weight).float()
    except _FAILURES as error:
        return f"PyTorch does not take it: {one_line(error)}"
    # Sums in another order, rounded to half precision.
    if not torch.allclose(given, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max())):
        return f"the sparse product is off by {float((given - wanted).abs().max()):.3g}"
    owner, _, last = name.rpartition(".")
    holder = module.get_submodule(owner)
    del holder._buffers[last]
    holder.register_buffer(last, packed)
    return ""


def _pack(weight: torch.Tensor) -> torch.Tensor:
    return torch.sparse.to_sparse_semi_structured(weight)

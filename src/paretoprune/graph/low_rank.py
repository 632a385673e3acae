"""Which layers can become two thin ones, at which ranks that saves work, and what is then left.

By channels: the matrix W (outputs, inputs × taps) becomes (rank, inputs × taps) and then (outputs, rank): a linear
layer two linear layers, a convolution one to `rank` channels and then one of kernel 1 (Zhang et al. 2016,
arXiv:1505.06798, figure 1). In space: a k × k convolution becomes k × 1 to `rank` channels and then 1 × k (Jaderberg et
al. 2014, arXiv:1405.3866, scheme 2).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor, prod
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from paretoprune.core.errors import PlanError
from paretoprune.core.layers import LayerSpec
from paretoprune.graph.algebra import Atom
from paretoprune.graph.op import Op
from paretoprune.graph.positions import size_of

if TYPE_CHECKING:
    from paretoprune.core.graph import Contraction
    from paretoprune.graph.inference import Inferred

Widths = Mapping[Atom, int]
Ranks = Mapping[str, int]
MAX_NAMES = 12


@dataclass(frozen=True)
class Layer:
    """The operator that a weight belongs to, and its shape in the original network."""

    op: Op
    spec: LayerSpec

    @property
    def spatial(self) -> bool:
        """Can its kernel be divided?"""
        return len(self.spec.kernel) == 2 and min(self.spec.kernel) > 1


@dataclass(frozen=True)
class Split:
    """What two thin layers of rank 1 and the whole one cost, in parameters and in multiply-accumulates (of one row).

    `sides`: sizes of the matrix that is factorised, which no rank exceeds.
    """

    sides: tuple[int, int]
    parameters: int
    macs: int
    whole_parameters: int
    whole_macs: int

    @property
    def largest(self) -> int:
        """The largest rank that takes fewer multiply-accumulates than the whole layer; 0 if none does."""
        return min((self.whole_macs - 1) // self.macs, *self.sides)

    def at(self, share: float) -> int:
        """The rank at which so much of the layer's work is left."""
        return floor(share * self.whole_macs / self.macs + 1e-9)


def split_of(spec: LayerSpec, spatial: bool) -> Split:
    first, second = thin_layers(spec, 1, spatial)
    sides = (entries(second), entries(first))
    return Split(sides, sum(sides), macs_of(first) + macs_of(second), entries(spec), macs_of(spec))


def entries(spec: LayerSpec) -> int:
    return spec.inputs // spec.groups * spec.outputs * prod(spec.kernel)


def macs_of(spec: LayerSpec) -> int:
    return entries(spec) * (spec.rows if spec.kind == "linear" else prod(_plane(spec)))


@dataclass(frozen=True)
class LowRank:
    """`layers`: every weight that can be factorised; `refused`: why another matrix cannot."""

    layers: Mapping[str, Layer]
    refused: Mapping[str, str]

    def split(self, weight: str, spatial: bool, widths: Widths) -> Split:
        layer = self.layers[weight]
        outputs, inputs = (size_of(layer.op.resolve(layer.op.memo[k]), widths) for k in ("out", "into"))
        return split_of(replace(layer.spec, inputs=inputs, outputs=outputs, rows=1), spatial)

    def checked(
        self, ranks: Ranks, spatial: Collection[str], widths: Widths, gone: Collection[str] = ()
    ) -> dict[str, int]:
        """`ranks` as they are. Raises PlanError for a weight that cannot be factorised or a rank that saves nothing.

        `gone`: tensors that a dropped block took with it.
        """
        for weight, rank in ranks.items():
            if why := self.why_not(weight, rank, weight in spatial, widths, gone):
                raise PlanError(f"cannot factorise '{weight}': {why}")
        return dict(ranks)

    def why_not(self, weight: str, rank: int, spatial: bool, widths: Widths, gone: Collection[str] = ()) -> str:
        """Why the weight cannot have this rank; empty if it can."""
        if weight not in self.layers:
            return self.refused.get(weight, f"this network has no such matrix; it has {self._names()}")
        if weight in gone:
            return "it goes with a residual block"
        if spatial and not self.layers[weight].spatial:
            return "it has no kernel of two dimensions to divide"
        split = self.split(weight, spatial, widths)
        if 1 <= rank <= split.largest:
            return ""
        shape = f"it is factorised as a matrix of {split.sides[0]} × {split.sides[1]}"
        if split.largest == 0:
            return f"{shape}, and two layers in its place would never take fewer multiply-accumulates"
        less = "" if rank < 1 else ", for two layers of that rank would not take fewer multiply-accumulates"
        return f"rank {rank} is not within 1 to {split.largest}{less} ({shape}); give at most {split.largest}"

    def _names(self) -> str:
        names = [f"'{w}'" for w in self.layers]
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        return ", ".join(names[:MAX_NAMES]) + more if names else "none that can be factorised"


def low_rank_of(
    captured: fx.GraphModule, found: Inferred, contractions: Sequence[Contraction], tensors: Mapping[str, torch.Tensor]
) -> LowRank:
    """Look at every parameter that is a matrix or more."""
    by_name = {node.name: op for node, op in found.ops.items()}
    summed = {c.weight: op for c in contractions if found.rules[(op := by_name[c.node]).node].layer is not None}
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    readers: dict[int, list[fx.Node]] = {}
    for node in captured.graph.nodes:
        if node.op == "get_attr" and str(node.target) in tensors:
            readers.setdefault(id(tensors[str(node.target)]), []).extend(node.users)
    layers: dict[str, Layer] = {}
    refused: dict[str, str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.nn.Parameter) or tensor.ndim < 2:
            continue
        why = _why_not(name, tensor, names[id(tensor)], readers.get(id(tensor), []), found, name in summed)
        if why:
            refused[name] = why
        else:
            layers[name] = Layer(summed[name], _spec(found, summed[name]))
    order = {node: i for i, node in enumerate(found.dims)}
    return LowRank(dict(sorted(layers.items(), key=lambda kv: order[kv[1].op.node])), refused)


def _why_not(
    name: str, tensor: torch.Tensor, names: Sequence[str], readers: Sequence[fx.Node], found: Inferred, summed: bool
) -> str:
    others = ", ".join(f"'{n}'" for n in names if n != name)
    if others:
        return f"it is tied to {others}"
    if not tensor.is_floating_point():
        return f"its type is {tensor.dtype}"
    if len(readers) != 1:
        return "no operator reads it" if not readers else f"{len(readers)} operators share it"
    if summed:
        return ""
    rule, op = found.rules.get(readers[0]), found.ops.get(readers[0])
    if rule is None or op is None or rule.layer is None or op.args.get("weight") is not readers[0].args[1]:
        return f"{readers[0].target} reads it, which is no linear layer or convolution"
    spec = rule.layer(op)
    if spec is None or spec.kind == "conv_transpose":
        return "its convolution is transposed" if spec is not None else "its convolution pads unevenly"
    return f"its convolution has {spec.groups} groups" if spec.groups > 1 else "its layer cannot be described"


# -- counting ----------------------------------------------------------------------------------------------------------


def _spec(found: Inferred, op: Op) -> LayerSpec:
    spec: LayerSpec = found.rules[op.node].layer(op)  # type: ignore[misc]  # a contraction has one
    return spec


def thin_layers(spec: LayerSpec, rank: int, spatial: bool) -> tuple[LayerSpec, LayerSpec]:
    """The two layers in the place of one."""
    if spec.kind == "linear":
        return replace(spec, outputs=rank), replace(spec, inputs=rank)
    ones, zeros = (1,) * len(spec.kernel), (0,) * len(spec.kernel)
    kinds = (("kernel", ones), ("stride", ones), ("padding", zeros), ("dilation", ones))
    here: dict[str, Any] = {k: (getattr(spec, k)[0], *rest[1:]) if spatial else getattr(spec, k) for k, rest in kinds}
    there: dict[str, Any] = {k: (rest[0], *getattr(spec, k)[1:]) if spatial else rest for k, rest in kinds}
    first = replace(spec, outputs=rank, **here)
    return first, replace(spec, inputs=rank, spatial=_plane(first), **there)


def _plane(spec: LayerSpec) -> tuple[int, ...]:
    sizes = zip(spec.spatial, spec.kernel, spec.stride, spec.padding, spec.dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)


def saved_parameters(found: LowRank, ranks: Ranks, spatial: Collection[str], widths: Widths) -> int:
    splits = {w: found.split(w, w in spatial, widths) for w in ranks}
    return sum(s.whole_parameters - ranks[w] * s.parameters for w, s in splits.items())


def saved_macs(
    found: LowRank, ranks: Ranks, spatial: Collection[str], widths: Widths, macs: Callable[[fx.Node], int]
) -> int:
    """`macs`: multiply-accumulates of an operator at these widths; an input of more than one batch dim has more."""
    total = 0
    for weight, rank in ranks.items():
        split = found.split(weight, weight in spatial, widths)
        times = macs(found.layers[weight].op.node) // split.whole_macs
        total += times * (split.whole_macs - rank * split.macs)
    return total

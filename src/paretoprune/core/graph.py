"""What the other rooms may know of a captured network: never a layer type."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from paretoprune.core.axis import Axis
from paretoprune.core.block import Block
from paretoprune.core.layers import LayerSpec

if TYPE_CHECKING:
    import torch
    from torch import fx, nn


@dataclass(frozen=True)
class Example:
    """Inputs of one call: positional and by keyword."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    per_sample: tuple[int, ...] | None = field(default=None, compare=False)
    """Per leaf: entries of its first dimension that belong to one sample, 0 where that is no batch; None: one each."""
    dynamic: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False)
    """By input name: dimensions beside the batch whose size may be another one, e.g. the length of a sequence."""

    @classmethod
    def of(cls, example: Any) -> Example:
        """A tensor, a tuple (or list) of positional inputs, or a dict of keyword inputs."""
        if isinstance(example, Example):
            return example
        if isinstance(example, dict):
            return cls((), dict(example))
        if isinstance(example, (tuple, list)):
            return cls(tuple(example))
        return cls((example,))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of every tensor leaf: "input", or "input_0", "input_1" … and the keywords' names."""
        from torch.utils import _pytree as pytree

        single = len(self.args) == 1 and not self.kwargs
        for i, value in enumerate(self.args):
            for leaf in pytree.tree_leaves(value):
                if hasattr(leaf, "shape"):
                    yield ("input" if single else f"input_{i}"), leaf
        for key, value in self.kwargs.items():
            for leaf in pytree.tree_leaves(value):
                if hasattr(leaf, "shape"):
                    yield key, leaf


def placeholders(module: fx.GraphModule, inputs: Example) -> list[Any]:
    """Inputs as an interpreter of the graph takes them: in the captured order, whatever the order of the keywords."""
    info = getattr(module.graph._codegen, "pytree_info", None)
    order = [str(n.target) for n in module.graph.nodes if n.op == "placeholder"] if info is None else info.orig_args
    return [*inputs.args, *(inputs.kwargs[n] for n in order if n in inputs.kwargs)]


def device_of(tensor: torch.Tensor) -> torch.device:
    """Stands in a graph, which thereby makes its constants where its parameters are."""
    return tensor.device


@dataclass(frozen=True)
class Contraction:
    """A sum over an axis with a parameter: `rows(x) @ weight.reshape(out, -1).T + bias`.

    `rows` maps the activation that enters to (samples, inputs × taps), in the order of the flattened weight
    (inputs outer, taps inner). `matrix` maps the weight tensor to (outputs, inputs × taps) and `unmatrix` back.
    `input_dim` is the dimension of the weight that is summed over. Only contractions without groups are listed.
    The directions of a recurrent layer are contractions of one node.
    """

    node: str
    weight: str
    bias: str | None
    input_dim: int
    rows: Callable[[torch.Tensor], torch.Tensor] = field(repr=False, compare=False)
    matrix: Callable[[torch.Tensor], torch.Tensor] = field(repr=False, compare=False)
    unmatrix: Callable[[torch.Tensor, torch.Size], torch.Tensor] = field(repr=False, compare=False)
    dim: int = -1
    """Dimension of the activation that is summed over, counted from the end."""
    batch_norm: str | None = None
    """Node of the batch normalisation that alone reads the output; it takes up a constant, in place of a bias."""


def by_node(contractions: Iterable[Contraction]) -> dict[str, list[Contraction]]:
    """Those that read the same activation, together."""
    found: dict[str, list[Contraction]] = {}
    for contraction in contractions:
        found.setdefault(contraction.node, []).append(contraction)
    return found


@dataclass(frozen=True)
class BatchNorm:
    """A batch normalisation whose running statistics can be taken again. Names of its buffers; channels are dim 1."""

    node: str
    mean: str
    var: str
    weight: str | None = None
    """Name of its factors, where it has any."""


class Walk(Protocol):
    """One run that goes as far as it is asked to, without gradients. A weight counts as it is when it is reached."""

    def entering(self, node: str) -> torch.Tensor:
        """Run all that stands before `node`; the activation that enters it. Nodes are asked for in the graph's order.

        What no later node reads is forgotten.
        """
        ...

    def held(self) -> int:
        """Bytes of the activations that are still to be read."""
        ...


class Program(Protocol):
    """A network that runs as a graph. `module` trains, evaluates, deep-copies and exports.

    Parameters keep the names that they have in the user's model.
    """

    @property
    def module(self) -> nn.Module: ...
    @property
    def contractions(self) -> tuple[Contraction, ...]: ...
    @property
    def batch_norms(self) -> tuple[BatchNorm, ...]: ...
    @property
    def nodes(self) -> tuple[str, ...]:
        """Names in the order in which they run."""
        ...

    def observe(
        self,
        inputs: Example,
        watch: Mapping[str, Callable[[torch.Tensor], None]],
        *,
        batch_statistics: bool = False,
    ) -> Any:
        """Run once without gradients; call `watch[node]` with the activation that *enters* that node.

        With `batch_statistics`, batch normalisations use the batch's own mean and variance.
        """
        ...

    def walk(self, inputs: Example) -> Walk:
        """A run that stops where it is asked to; train flags stand as they are."""
        ...


class Graph(Protocol):
    """A captured network with its axes. `fingerprint` identifies structure (names, shapes, axes), not weights.

    `notes`: plain sentences on operators without a rule, parameters that nothing reaches, what training has besides.
    """

    @property
    def axes(self) -> tuple[Axis, ...]: ...
    @property
    def blocks(self) -> tuple[Block, ...]: ...
    @property
    def program(self) -> Program: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def example(self) -> Example: ...
    @property
    def notes(self) -> tuple[str, ...]: ...

    def macs(
        self,
        widths: Mapping[str, int] | None = None,
        blocks: Sequence[str] = (),
        ranks: Mapping[str, int] | None = None,
        spatial: Collection[str] = (),
    ) -> int:
        """Multiply-accumulates of one sample (batch 1) when axis `id` keeps `widths[id]` positions, `blocks` go and the
        layer of weight `name` becomes two thin ones of rank `ranks[name]` (see core.plan.Plan).
        """
        ...

    def layers(
        self,
        widths: Mapping[str, int] | None = None,
        blocks: Sequence[str] = (),
        ranks: Mapping[str, int] | None = None,
        spatial: Collection[str] = (),
    ) -> tuple[LayerSpec, ...]:
        """The convolutions and linear layers that are left of such a plan, in the order of the graph."""
        ...

    def parameters(
        self,
        widths: Mapping[str, int] | None = None,
        blocks: Sequence[str] = (),
        ranks: Mapping[str, int] | None = None,
        spatial: Collection[str] = (),
    ) -> int:
        """Parameter count of what is left of such a plan."""
        ...

"""A captured graph whose layers run on the packed kernels, with what follows them fused in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from paretoprune.sparsity.operators import sparse_conv, sparse_linear
from paretoprune.sparsity.packing import MOST_INPUTS
from paretoprune.sparsity.parts import SIGNS, Weight, parts_of

Array = NDArray[np.float32]
_ACTIVATIONS = {"aten.relu.default": "relu", "aten.gelu.default": "gelu"}
SEEN = "paretoprune: type and shape in a run"


@dataclass(frozen=True, eq=False)
class Site:
    """A layer that the kernels can run. `weight`: its parameter's name."""

    node: fx.Node
    weight: str
    value: Array
    bias: Array | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def image(self) -> bool:
        return self.value.ndim == 4

    @property
    def x(self) -> fx.Node:
        """What it is given."""
        x: Any = self.node.args[0]
        return x  # type: ignore[no-any-return]

    @property
    def rank(self) -> int:
        """Dimensions of what it is given."""
        return len(_shape(self.node)[1])


def sites_of(module: fx.GraphModule) -> tuple[list[Site], dict[str, str]]:
    """The layers that the kernels can run, and by weight why another cannot."""
    found: list[Site] = []
    left: dict[str, str] = {}
    for node in module.graph.nodes:
        if not str(node.target).startswith(("aten.conv", "aten.linear.")) or node.op != "call_function":
            continue
        site = _site(module, node)
        if isinstance(site, Site):
            found.append(site)
        elif isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr":
            left[str(node.args[1].target)] = site
    return found, left


def _site(module: fx.GraphModule, node: fx.Node) -> Site | str:
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    given: list[Any] = [weight] if bias is None else [weight, bias]
    if any(not isinstance(n, fx.Node) or n.op != "get_attr" for n in given):
        return "its weight is computed"
    tensors = [_tensor(module, str(n.target)) for n in given]
    if any(t.dtype != torch.float32 or not torch.isfinite(t).all() for t in tensors):
        return "its weight is not float32, or not finite"
    value = tensors[0].detach().cpu().numpy()
    if value[0].size > MOST_INPUTS:
        return f"it has more than {MOST_INPUTS} inputs"
    array = tensors[1].detach().cpu().numpy() if len(tensors) > 1 else None
    name = str(given[0].target)
    if str(node.target) == "aten.linear.default":
        return Site(node, name, value, array)
    if str(node.target) != "aten.conv2d.default":
        return f"it is {str(node.target).split('.')[1]} with {value.ndim - 2} dimensions or padding in words"
    defaults: tuple[Any, ...] = ((1, 1), (0, 0), (1, 1), 1)
    window: tuple[Any, ...] = node.args[3:]
    stride, padding, dilation, groups = window + defaults[len(window) :]
    if groups != 1 or tuple(dilation) != (1, 1):
        return "its kernel is dilated or in groups"
    return Site(node, name, value, array, _pair(stride), _pair(padding))


@contextmanager
def watched(module: fx.GraphModule, see: Callable[[fx.Node, Any], None], nodes: Iterable[fx.Node]) -> Iterator[None]:
    """Inside the block, every run of the graph calls `see` with what each node gives."""
    watches = []
    for number, node in enumerate(dict.fromkeys(nodes)):
        module.add_submodule(f"watch_{number}", _Watch(node, see))
        with module.graph.inserting_before(_behind(node)):
            watches.append(module.graph.call_module(f"watch_{number}", (node,)))
    module.recompile()
    try:
        with torch.no_grad():
            yield
    finally:
        for watch in watches:
            module.graph.erase_node(watch)
            module.delete_submodule(str(watch.target))
        module.recompile()


class _Watch(nn.Module):
    def __init__(self, node: fx.Node, see: Callable[[fx.Node, Any], None]) -> None:
        super().__init__()
        self.node, self.see = node, see

    def forward(self, value: Any) -> None:
        self.see(self.node, value)


def _behind(node: fx.Node) -> fx.Node:
    """The next node, but behind all placeholders."""
    node = node.next
    while node.op == "placeholder":
        node = node.next
    return node


def note_shapes(module: fx.GraphModule, sites: Sequence[Site], run: Callable[[], Any]) -> None:
    """A graph that was read from a file knows no shapes: note those of a run, of what may be fused."""

    def see(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            node.meta[SEEN] = (value.dtype, tuple(value.shape))

    nodes = [n for site in sites for n in (site.x, site.node, *_added(module, site.node))]
    with watched(module, see, nodes):
        run()


def lower(module: fx.GraphModule, chosen: Mapping[Site, tuple[Weight, tuple[float, ...]]]) -> None:
    """Put kernels in the place of layers, in place; with each its weight and, if that has 8 bits, its input's grid."""
    for site, (weight, grid) in chosen.items():
        _replace(module, site, weight, grid)
    # A dropout counts as impure, and would keep the dense layer before it alive.
    module.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    module.graph.lint()
    module.recompile()


def _replace(module: fx.GraphModule, site: Site, weight: Weight, grid: tuple[float, ...]) -> None:
    graph, parts = module.graph, parts_of(weight)
    last, residual, activation = _end(module, site.node)
    value = parts.value.view(np.int32) if parts.pattern == SIGNS else parts.value
    arrays = {"value": value, "at": parts.at, "scale": parts.scale}
    with graph.inserting_before(last):
        held = [None if a is None else _constant(module, f"{site.weight}_{n}", a) for n, a in arrays.items()]
        bias = None if site.bias is None else site.node.args[2]
        words = (parts.pattern, parts.coding, list(parts.shape))
        args: list[Any] = [site.node.args[0], *held, *words, bias, residual, activation, list(grid)]
        args += [list(site.stride), list(site.padding)] if site.image else [site.rank]
        new = graph.call_function(sparse_conv if site.image else sparse_linear, tuple(args))
    new.meta = dict(last.meta)
    last.replace_all_uses_with(new)


def _end(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, fx.Node | None, str]:
    """(the last operator that the kernel does too, what is added before the activation, the activation)."""
    last, residual = _through_dropout(module, node), None
    for other in _added(module, node):
        if _alike(node, other):
            last, residual = next(iter(last.users)), other
    user = _only_user(last)
    if user is not None and str(user.target) in _ACTIVATIONS and len(user.args) == 1 and not _tanh(user):
        return user, residual, _ACTIVATIONS[str(user.target)]
    return last, residual, "none"


def _added(module: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """What alone is added to the layer's result, if anything is."""
    last = _through_dropout(module, node)
    user = _only_user(last)
    if user is None or str(user.target) != "aten.add.Tensor" or user.kwargs or len(user.args) != 2:
        return []
    other: Any = user.args[1] if user.args[0] is last else user.args[0]
    return [other] if isinstance(other, fx.Node) and other is not last else []


def _tanh(node: fx.Node) -> bool:
    return node.kwargs.get("approximate", "none") != "none"


def _through_dropout(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    while (user := _only_user(node)) is not None and str(user.target) == "aten.dropout.default":
        node = user
    return node


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Of one shape and type, so that nothing is broadcast; the kernel asks again."""
    (one, x), (other, y) = _shape(a), _shape(b)
    return (
        one is not None
        and one == other
        and len(x) == len(y)
        and all(str(m) == str(n) for m, n in zip(x, y, strict=True))
    )


def _shape(node: fx.Node) -> tuple[torch.dtype | None, tuple[Any, ...]]:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape)
    seen: tuple[torch.dtype | None, tuple[Any, ...]] = node.meta.get(SEEN, (None, ()))
    return seen


def _constant(module: fx.GraphModule, name: str, value: NDArray[Any]) -> fx.Node:
    *owners, leaf = name.split(".")
    owner: nn.Module = module
    for part in owners:
        owner = owner.get_submodule(part)
    owner.register_buffer(leaf, torch.from_numpy(np.ascontiguousarray(value).copy()))
    return module.graph.get_attr(name)


def _tensor(module: fx.GraphModule, name: str) -> Tensor:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[-1]))

"""The caller's weights, shared with the private copy instead of copied: nothing may write into them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from paretoprune.graph.half import called

_UNDECLARED = ("running_mean", "running_var")
"""Arguments that normalisations write into in training without saying so in their schema."""


def sharing(model: nn.Module, overlapping: Iterable[str]) -> dict[int, Any]:
    """A memo for `copy.deepcopy` by which parameters of the copy are new objects over the caller's memory.

    Left out, and therefore copied: parameters of a class of their own, and those named in `overlapping`, which share
    memory with others in another layout. Buffers are always copied, for networks write into them.
    """
    apart = set(overlapping)
    plain = {n: p for n, p in model.named_parameters(remove_duplicate=False) if type(p) is nn.Parameter}
    return {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for n, p in plain.items() if n not in apart}


def take_over(module: nn.Module, names: Iterable[str]) -> None:
    """Give `module` its own memory for these parameters, under all their names."""
    wanted = set(names)
    named = dict(module.named_parameters(remove_duplicate=False))
    copies = {id(p): nn.Parameter(p.detach().clone(), p.requires_grad) for n, p in named.items() if n in wanted}
    for name, parameter in named.items():
        if id(parameter) in copies:
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner).register_parameter(leaf, copies[id(parameter)])


@contextmanager
def unwritten(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """What operators write into these tensors is undone when the block is left."""
    mode = _Saving(parameters)
    try:
        with mode:
            yield
    finally:
        mode.restore()


class _Saving(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Saves the memory of a tensor before the first operator that writes into it, be it through a view."""

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        storages = [t.untyped_storage() for t in tensors if t.layout == torch.strided and not t.is_meta]
        self._watched = {s.data_ptr(): s for s in storages if s.nbytes()}
        self._saved: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for value in _written(func, args, kwargs or {}):
            key = value.untyped_storage().data_ptr() if value.layout == torch.strided and not _empty(value) else 0
            if key in self._watched and key not in self._saved:
                self._saved[key] = self._watched[key].clone()  # type: ignore[no-untyped-call]
        return called(func, args, kwargs or {})

    def restore(self) -> None:
        for key, before in self._saved.items():
            self._watched[key].copy_(before)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Tensors among the operands that the operator may write into."""
    found: list[torch.Tensor] = []
    for i, argument in enumerate(func._schema.arguments if isinstance(func, torch._ops.OpOverload) else ()):
        info = argument.alias_info
        if (info is not None and info.is_write) or argument.name in _UNDECLARED:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [
                v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, torch.Tensor)
            ]
    return found


def _empty(value: torch.Tensor) -> bool:
    """Has it no memory that could be written into?"""
    return value.is_meta or isinstance(value, FakeTensor)

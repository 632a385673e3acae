"""Zeros that stay, whatever the optimizer does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from paretoprune.core.errors import UsageError


class Masked:
    """A hook of `recover.train`, or around a loop of your own:

        with Masked(pruned.model, pruned.plan.sparsity) as held:
            held.attach(optimizer)
            ...

    `masks`: by parameter name a tensor of its shape, True where the weight trains, False where it is zero; or names
    alone, whose zeros now are those that stay. Gradients are zero there before any clipping sees them; after each step
    of an attached optimizer, weights and every state of a weight's shape (momentum, second moments) are, too. So
    neither momentum nor weight decay brings a zero back, and averages of the weights (EMA) keep them. Raises UsageError
    for a name that is no parameter and a mask of another shape.
    """

    def __init__(self, module: nn.Module, masks: Mapping[str, Tensor] | Iterable[str]) -> None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        given: Mapping[str, Any] = masks if isinstance(masks, Mapping) else dict.fromkeys(masks)
        self.parameters: dict[str, nn.Parameter] = {}
        self.masks: dict[str, Tensor] = {}
        for name, mask in given.items():
            if name not in parameters:
                raise UsageError(f"'{name}' is no parameter of {type(module).__name__}")
            parameter = parameters[name]
            stays = mask.bool() if isinstance(mask, Tensor) else parameter.detach() != 0
            if stays.shape != parameter.shape:
                raise UsageError(f"'{name}' has shape {tuple(parameter.shape)}, its mask {tuple(stays.shape)}")
            self.parameters[name], self.masks[name] = parameter, stays.to(parameter.device)
        self._optimizers: WeakSet[Optimizer] = WeakSet()
        self._handles: list[Any] = [
            p.register_post_accumulate_grad_hook(self._gradient_of(n))  # type: ignore[no-untyped-call]
            for n, p in self.parameters.items()
            if p.requires_grad
        ]
        self.hold()

    def _gradient_of(self, name: str) -> Any:
        return lambda parameter: self.gradient(name, parameter)

    def gradient(self, name: str, parameter: Tensor) -> None:
        """Called when a gradient has come in."""
        if parameter.grad is not None:
            parameter.grad.masked_fill_(self.gone(name), 0.0)

    def gone(self, name: str) -> Tensor:
        """True where the weight is zero, on the weight's device."""
        mask = self.masks[name]
        if mask.device != self.parameters[name].device:
            mask = self.masks[name] = mask.to(self.parameters[name].device)
        return ~mask

    @torch.no_grad()
    def hold(self) -> None:
        """Weights, and what optimizers remember of them, zero where the mask says so."""
        for name, parameter in self.parameters.items():
            gone = self.gone(name)
            parameter.masked_fill_(gone, 0.0)
            for optimizer in self._optimizers:
                _forget(optimizer, parameter, gone)

    def put(self, masks: Mapping[str, Tensor]) -> None:
        """Other masks; weights that are new start at zero, and no optimizer remembers anything of them."""
        self.masks |= {name: mask.to(self.parameters[name].device) for name, mask in masks.items()}
        self.hold()

    def attach(self, optimizer: Optimizer) -> None:
        """After each of its steps the zeros are put back; what it remembers already is put right now."""
        self._optimizers.add(optimizer)
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self.hold()))
        self.hold()

    def close(self) -> None:
        """Leave network and optimizers alone from now on."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._optimizers.clear()

    def __enter__(self) -> Masked:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def penalty(self, step: int, steps: int) -> Tensor | None:
        return None

    def after_step(self, step: int, steps: int) -> None:
        if not self._optimizers:
            self.hold()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.masks)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.put(state)


def _forget(optimizer: Optimizer, parameter: Tensor, where: Tensor) -> None:
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(where.to(value.device), 0)

"""Mixed precision: which part of a step is computed in how many bits."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from paretoprune.core.errors import PruneError, UsageError

Precision = Literal["fp32", "bf16", "fp16"]
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_SCALE = 1.0
"""A loss scale below it means that gradients were infinite again and again, not that the scale was too large."""


class Mixed:
    """Forward and loss under autocast; weights, gradients and the optimizer stay as they are.

    fp16 scales the loss so that small gradients do not vanish (Micikevicius et al. 2018), which needs CUDA; a step with
    infinite gradients is left out and the scale halved.
    """

    def __init__(self, precision: str, place: torch.device) -> None:
        if precision not in _TYPES:
            raise UsageError(f"precision={precision!r}: give one of {', '.join(_TYPES)}")
        if precision == "fp16" and place.type != "cuda":
            raise UsageError(
                f"precision='fp16' needs a CUDA device for its loss scaling, and device={str(place)!r}: "
                "use precision='bf16' or 'fp32', or device='cuda'"
            )
        self.precision, self.place = precision, place
        self.scaler = GradScaler("cuda") if precision == "fp16" else None

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.place.type, dtype=_TYPES[self.precision], enabled=self.precision != "fp32")

    def backward(self, loss: Tensor, optimizer: Optimizer) -> None:
        """Gradients in their true size."""
        if self.scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer stepped."""
        if self.scaler is None:
            optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        now = self.scaler.get_scale()
        if now < LEAST_SCALE:
            raise PruneError("the gradients are infinite in fp16 at any scale of the loss: use precision='bf16'")
        return now >= before

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler is not None:
            self.scaler.load_state_dict(state)

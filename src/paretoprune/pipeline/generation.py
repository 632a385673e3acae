"""A language model whose result is the rewritten graph cannot generate: it says so, and what can be done."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from paretoprune.core.errors import ModelError

_KEPT = "_user_preserved_attributes"
"""Where torch keeps what a copy of a graph module must not lose."""


class Refusal:
    """Stands in the place of `generate`."""

    def __init__(self, why: str):
        self.why = why

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ModelError(
            f"this network is a rewritten graph, which has no generate(): its class cannot hold it ({self.why}). "
            "Prune fewer axes (axes='inner', or ignore=) to keep the class, or call the network itself on longer and "
            "longer inputs: dynamic={'input_ids': [1]} makes the length of the sequence dynamic"
        )


def refuse_generation(module: Any, model: nn.Module, why: str) -> None:
    """Give `module`, which stands for `model`, a generate() that raises, if `model` has one."""
    if callable(getattr(model, "generate", None)):
        refuse(module, why)


def refuse(module: Any, why: str) -> None:
    refusal = Refusal(why)
    module.meta.setdefault(_KEPT, {})["generate"] = refusal
    module.generate = refusal


def refused(module: Any) -> str | None:
    """Why `module` cannot generate, if it was told so."""
    refusal = getattr(module, "generate", None)
    return refusal.why if isinstance(refusal, Refusal) else None

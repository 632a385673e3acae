"""How a fresh network of the user's class becomes the pruned one: plain data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from paretoprune.core.errors import FileError
from paretoprune.core.graph import Example
from paretoprune.graph import Edits
from paretoprune.pipeline.plain_inputs import described, made


@dataclass(frozen=True)
class Blueprint:
    """`name`: the class as "module:qualname". `config`: of a transformers model before pruning, else None.

    `example`: inputs on which the restored network is compared with the graph. `own`: tensors of the class that the
    graph lacks, by name, where the network is the graph and does not hold them.
    """

    name: str
    edits: Edits
    example: Example
    config: Mapping[str, Any] | None = None
    attention: str = ""
    own: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        inputs = {"args": described(list(self.example.args)), "kwargs": described(dict(self.example.kwargs))}
        counts = self.example.per_sample
        return {
            "class": self.name,
            "edits": self.edits.to_json(),
            "inputs": inputs | {"per_sample": None if counts is None else list(counts)},
            "config": None if self.config is None else dict(self.config),
            "attention": self.attention,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Blueprint:
        """Raises FileError, KeyError, TypeError or ValueError for anything malformed."""
        inputs, config = data["inputs"], data["config"]
        if not isinstance(data["class"], str) or not isinstance(config, (dict, type(None))):
            raise FileError("the manifest does not name a class and its config")
        counts = inputs["per_sample"]
        example = Example(
            tuple(made(inputs["args"])), made(inputs["kwargs"]), None if counts is None else tuple(map(int, counts))
        )
        return cls(data["class"], Edits.from_json(data["edits"]), example, config, str(data["attention"]))


def blueprint_of(model: nn.Module, edits: Edits, example: Example) -> Blueprint:
    """`model` is the network before pruning."""
    kind = type(model)
    config = plain_config(model.config) if is_pretrained(model) else None
    attention = str(getattr(getattr(model, "config", None), "_attn_implementation", "") or "") if config else ""
    return Blueprint(f"{kind.__module__}:{kind.__qualname__}", edits, example, config, attention)


def is_pretrained(model: Any) -> bool:
    """Is it a model of transformers? Imports nothing."""
    library = sys.modules.get("transformers.modeling_utils")  # the package itself would import it, or fail to
    base = None if library is None else getattr(library, "PreTrainedModel", None)
    return base is not None and isinstance(model, base)


def plain_config(config: Any) -> dict[str, Any]:
    """The config as JSON; what JSON does not hold is left out."""
    result: dict[str, Any] = config.to_dict()
    return {k: v for k, v in result.items() if _is_json(v)}


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, (str, int)) and _is_json(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (bool, int, float, str))

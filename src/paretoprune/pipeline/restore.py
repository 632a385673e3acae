"""From a blueprint and tensors to the network in the user's class. Nothing that a file names is imported."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from paretoprune import graph as graphs
from paretoprune.core.errors import FileError
from paretoprune.core.graph import Example
from paretoprune.pipeline.blueprint import Blueprint

MAX_DEPTH = 32
_UNSAFE_KEYS = frozenset(
    {
        *("auto_map", "attn_implementation", "experts_implementation", "quantization_config", "name_or_path", "kwargs"),
        *("torch_dtype", "dtype", "compression_config", "use_kernels", "custom_pipelines", "transformers_weights"),
        "task_specific_params",
    }
)
"""Fields of a config that name code, files or kernels, that the tensors say better, or that no network is made of."""
_FETCHING = ("backbone", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone", "timm_model")
"""Fields with which building a network may fetch another."""
_LAYERS = re.compile(r"layers?(_|$)|depths?(_|$)|blocks?(_|$)|stages?(_|$)")
MIN_LAYERS = 1000
"""A count in a config up to here is taken as it is: not every field that speaks of layers counts them."""
_LABELS = ("id2label", "label2id")
_ATTENTION = ("eager", "sdpa")

TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of an output's figures, over its norm, for the coarser types; 1e-3 for others."""


@dataclass(frozen=True)
class Saved:
    """What the file holds of the network: its tensors, which of them the graph does not have, and how to compare.

    `program` is the graph, or None where it could not be saved; `outputs` are then figures of what the network gave on
    the blueprint's example.
    """

    tensors: Mapping[str, torch.Tensor]
    program: fx.GraphModule | None
    outputs: Sequence[Sequence[float]] = ()

    def difference(self, network: nn.Module, example: Example) -> str:
        """Why the network is not the one that was saved; empty if it is."""
        if self.program is not None:
            wrong = graphs.difference(network, self.program, example)
            return "" if wrong is None else wrong.why
        return "" if alike(self.outputs, graphs.figures(network, example), network) else "its outputs are others"


def alike(saved: Sequence[Sequence[float]], found: Sequence[Sequence[float]], network: nn.Module) -> bool:
    """Sums, norms and largest values of every output agree."""
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    slack = TOLERANCE.get(dtype, 1e-3)
    return len(saved) == len(found) > 0 and all(
        len(a) == len(b) == 4
        and a[0] == b[0]
        and all(abs(x - y) <= slack * (a[2] + 1e-12) for x, y in zip(a, b, strict=True))
        for a, b in zip(saved, found, strict=True)
    )


def restored(blueprint: Blueprint, saved: Saved, model: nn.Module | None) -> tuple[nn.Module | None, str]:
    """The pruned network in the user's class, over the saved tensors; or None and why it stays a graph.

    `model`: a fresh network of the class, which is copied, not changed. Raises FileError where it is another network.
    """
    if model is not None:
        clone = filled(blueprint, graphs.private_copy(model)[0], saved.tensors).eval()
        if wrong := saved.difference(clone, blueprint.example):
            raise FileError(f"the {type(model).__name__} given is not the network that was saved: {wrong}")
        return clone, ""
    try:
        made, why = built(blueprint, max(MIN_LAYERS, len(saved.tensors)))
        if made is None:
            return None, f"{why}; give a fresh network of the class with model="
        clone = filled(blueprint, made, saved.tensors).eval()
        wrong = saved.difference(clone, blueprint.example)
    except Exception as error:  # noqa: BLE001 - a library's own checks of a config raise errors of their own
        return None, f"its class could not be made ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    return (None, wrong) if wrong else (clone, "")


def filled(blueprint: Blueprint, clone: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Put the tensors and the sizes into a network that is nobody else's."""
    graphs.put_identities(clone, blueprint.edits.passed)
    graphs.put_activations(clone, blueprint.edits.activations)
    graphs.put_thin(clone, blueprint.edits.thin, tensors)
    missing = sorted(set(graphs.tensors_of(clone)) - set(tensors))
    if missing:
        raise FileError(f"{type(clone).__name__} has '{missing[0]}', which the file does not hold")
    graphs.put_tensors(clone, tensors, as_saved=True)
    graphs.apply_edits(clone, blueprint.edits)
    return clone


def built(blueprint: Blueprint, layers: int) -> tuple[nn.Module | None, str]:
    """A network of the class without values, or why none is made from this file alone.

    `layers`: how many the file can hold the tensors of. Only a class of transformers whose module the program has
    imported by itself, and only from a config that names no code, no file and no other network.
    """
    kind = _imported(blueprint.name)
    if kind is None:
        return None, f"'{blueprint.name}' is no class of transformers that is imported"
    config = blueprint.config
    if config is None or (why := _fetches(config) or _too_many(config, layers)):
        return None, "its config is not in the file" if config is None else why
    settings = kind.config_class.from_dict(_safe(config))
    if blueprint.attention in _ATTENTION:
        settings._attn_implementation = blueprint.attention
    with torch.device("meta"):
        return kind(settings), ""


def _too_many(config: Any, layers: int) -> str:
    """Why making the network would take for ever; empty if it does not."""
    if isinstance(config, list):
        return next((why for v in config if (why := _too_many(v, layers))), "")
    for key, value in config.items() if isinstance(config, dict) else ():
        counts = [n for n in (value if isinstance(value, list) else [value]) if type(n) is int]
        if _LAYERS.search(str(key)) and any(n > layers for n in counts):
            return f"its config asks for {max(counts)} layers ({key}), and the file does not hold so many"
        if why := _too_many(value, layers):
            return why
    return ""


def _imported(name: str) -> Any:
    """The class, if it is a model of transformers, goes by just this name and its module is there already."""
    module, _, qualname = name.partition(":")
    base = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    kind = vars(sys.modules[module]).get(qualname) if module in sys.modules else None
    if base is None or not module.startswith("transformers.models.") or not isinstance(kind, type):
        return None
    same = (kind.__module__, kind.__qualname__) == (module, qualname)
    return kind if same and issubclass(kind, base) and getattr(kind, "config_class", None) is not None else None


def _safe(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: _safe(v) if isinstance(v, dict) else v
        for k, v in config.items()
        if isinstance(k, str) and not k.startswith("_") and k not in _UNSAFE_KEYS
    }


def _fetches(config: Any, depth: int = 0) -> str:
    """Why building a network from this config might fetch something; empty if it cannot."""
    if depth > MAX_DEPTH:
        return "its config is nested too deeply"
    if isinstance(config, dict):
        for key, value in config.items():
            if key in _LABELS or str(key).startswith("_"):  # the latter are not read
                continue
            if key in _FETCHING and value not in (None, False, {}):
                return f"its config names another network ({key}={str(value)[:40]!r})"
            if key not in _UNSAFE_KEYS and (why := _fetches(value, depth + 1)):
                return why
    elif isinstance(config, list):
        return next((why for v in config if (why := _fetches(v, depth + 1))), "")
    elif isinstance(config, str) and ("/" in config or ":" in config or "\\" in config):
        return f"its config holds {config[:40]!r}, which may name a file or a place"
    return ""

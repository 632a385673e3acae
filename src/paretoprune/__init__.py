"""Multi-objective pruning: from a trained network to a measured Pareto front of smaller, faster ones."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paretoprune.core import errors as errors
    from paretoprune.core.candidate import Candidate as Candidate
    from paretoprune.core.data import Data as Data
    from paretoprune.core.front import Front as Front
    from paretoprune.core.limits import Limits as Limits
    from paretoprune.core.measurement import Measurement as Measurement
    from paretoprune.core.plan import Plan as Plan
    from paretoprune.core.protocols import Task as Task
    from paretoprune.core.why import Why as Why
    from paretoprune.pipeline.evaluating import Evaluation as Evaluation
    from paretoprune.pipeline.evaluating import evaluate as evaluate
    from paretoprune.pipeline.files import load as load
    from paretoprune.pipeline.files import load_checkpoint as load_checkpoint
    from paretoprune.pipeline.files import save as save
    from paretoprune.pipeline.gradual import prune_gradually as prune_gradually
    from paretoprune.pipeline.handing_back import hand_back as hand_back
    from paretoprune.pipeline.nesting import distill_nested as distill_nested
    from paretoprune.pipeline.opening import trace as trace
    from paretoprune.pipeline.packed import pack as pack
    from paretoprune.pipeline.prune import apply as apply
    from paretoprune.pipeline.prune import prune as prune
    from paretoprune.pipeline.pruned import Pruned as Pruned
    from paretoprune.pipeline.quantize_aware import quantize_aware as quantize_aware
    from paretoprune.pipeline.recovering import distill as distill
    from paretoprune.pipeline.recovering import finetune as finetune
    from paretoprune.pipeline.results import read_front as read_front
    from paretoprune.pipeline.runtime import export as export
    from paretoprune.pipeline.runtime import measure as measure
    from paretoprune.pipeline.search import auto_prune as auto_prune
    from paretoprune.pipeline.search import search as search
    from paretoprune.pipeline.sparse import train_sparse as train_sparse
    from paretoprune.pipeline.sparsify import sparsify as sparsify

__version__ = "0.1.0"

_HOMES = {
    "Candidate": "core.candidate",
    "Data": "core.data",
    "Evaluation": "pipeline.evaluating",
    "Front": "core.front",
    "Limits": "core.limits",
    "Measurement": "core.measurement",
    "Plan": "core.plan",
    "Pruned": "pipeline.pruned",
    "Task": "core.protocols",
    "Why": "core.why",
    "apply": "pipeline.prune",
    "auto_prune": "pipeline.search",
    "distill": "pipeline.recovering",
    "distill_nested": "pipeline.nesting",
    "evaluate": "pipeline.evaluating",
    "export": "pipeline.runtime",
    "finetune": "pipeline.recovering",
    "hand_back": "pipeline.handing_back",
    "load": "pipeline.files",
    "load_checkpoint": "pipeline.files",
    "measure": "pipeline.runtime",
    "prune": "pipeline.prune",
    "prune_gradually": "pipeline.gradual",
    "quantize_aware": "pipeline.quantize_aware",
    "read_front": "pipeline.results",
    "save": "pipeline.files",
    "search": "pipeline.search",
    "pack": "pipeline.packed",
    "sparsify": "pipeline.sparsify",
    "trace": "pipeline.opening",
    "train_sparse": "pipeline.sparse",
}
"""Where each public name lives; fetched when first used, so that importing the package costs nothing."""

__all__ = [
    "Candidate",
    "Data",
    "Evaluation",
    "Front",
    "Limits",
    "Measurement",
    "Plan",
    "Pruned",
    "Task",
    "Why",
    "apply",
    "auto_prune",
    "distill",
    "distill_nested",
    "errors",
    "evaluate",
    "export",
    "finetune",
    "hand_back",
    "load",
    "load_checkpoint",
    "measure",
    "pack",
    "prune",
    "prune_gradually",
    "quantize_aware",
    "read_front",
    "save",
    "search",
    "sparsify",
    "testing",
    "trace",
    "train_sparse",
]


def __getattr__(name: str) -> Any:
    if name in ("errors", "testing"):
        return importlib.import_module(f"{__name__}.core.errors" if name == "errors" else f"{__name__}.testing")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Importing a submodule binds its name here: the room `search` must not take the place of the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

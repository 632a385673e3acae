"""Dropped residual blocks in the user's own class: where a whole layer of a row is gone, `nn.Identity` stands there."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from paretoprune.core.errors import FileError
from paretoprune.graph.inference import paths_of
from paretoprune.graph.rules import RULES
from paretoprune.graph.surgery import Cut
from paretoprune.graph.traced import tensors_of

_ROWS = (nn.Sequential, nn.ModuleList)


def vacant(model: nn.Module, cut: Cut) -> tuple[tuple[str, ...], str]:
    """(paths of the layers that the cut left nothing of, "") or ((), why the class cannot lose a block).

    Whether passing a value on is right in their place is for a comparison to decide.
    """
    paths = []
    if cut.blocks and callable(getattr(model, "generate", None)):
        return (), "it generates with a cache that counts its layers, and residual blocks were dropped"
    for block in cut.blocks:
        path = _vacant(model, cut, block.partition("#")[0])
        if path is None:
            return (), f"block '{block}' is no layer of its own in a row of layers (nn.Sequential or nn.ModuleList)"
        paths.append(path)
    for path in dict.fromkeys(paths):
        if any(_trains(n) for n in cut.program.module.graph.nodes if path in paths_of(n)):
            return (), f"'{path}' without its block still does something in training"
    return tuple(dict.fromkeys(paths)), ""


def _vacant(model: nn.Module, cut: Cut, name: str) -> str | None:
    """The innermost layer of a row around `name` that has no tensor left."""
    modules, held = dict(model.named_modules()), tensors_of(model)
    while name:
        inside = [n for n in held if n.startswith(f"{name}.")]
        row = modules.get(name.rpartition(".")[0])
        if inside and isinstance(row, _ROWS) and not any(n in cut.kept for n in inside):
            return name
        name = name.rpartition(".")[0]
    return None


def _trains(node: object) -> bool:
    """Does the operator have a mode, as dropout and batch norm have?"""
    rule = RULES.get(str(getattr(node, "target", "")))
    return rule is not None and rule.mode is not None


def put_identities(model: nn.Module, paths: Iterable[str]) -> None:
    """Change `model` in place. Raises FileError for a path that names no layer of a row."""
    for path in paths:
        owner, _, leaf = path.rpartition(".")
        row = dict(model.named_modules()).get(owner)
        if not isinstance(row, _ROWS) or leaf not in row._modules:
            raise FileError(f"{type(model).__name__} has no layer '{path}' in a row of layers")
        row._modules[leaf] = nn.Identity()

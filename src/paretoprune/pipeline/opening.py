"""What may be given for a network: a torch module, a Keras model, or the path of a Keras file.

Everything behind this works on torch modules; a Keras model is given back as one where its layers can hold the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from paretoprune import frameworks
from paretoprune import graph as graphs
from paretoprune.core.errors import FileError, ModelError
from paretoprune.core.graph import Example, placeholders
from paretoprune.frameworks import KerasNetwork
from paretoprune.graph import Cut, Rebuilt, ThinNames, TracedGraph
from paretoprune.pipeline.blueprint import Blueprint, blueprint_of
from paretoprune.pipeline.pruned import Pruned

Network = nn.Module | str | Path


def opened(model: Network, example: Any = None) -> nn.Module:
    """The torch module for what was given. With an example, a Keras model's torch operators are compared with its own.

    Raises ModelError, FileError, UsageError.
    """
    if isinstance(model, (str, Path)):
        if not frameworks.is_keras_file(model):
            raise ModelError(
                f"the model is given as {str(model)!r}: give a torch.nn.Module or a Keras model, or the path of a "
                ".keras or .h5 file"
            )
        model = frameworks.read_keras(model)
    if not frameworks.is_keras(model):
        return cast("nn.Module", model)
    network = KerasNetwork(model)
    if example is not None:
        network.compare(Example.of(example))
    return network


def trace(model: Network, example: Any, dynamic: Mapping[str, Iterable[int]] | None = None) -> TracedGraph:
    """Capture `model` and find its axes. The model is not changed.

    `model`: a torch module, a Keras model, or the path of a `.keras` or `.h5` file.
    `example`: a tensor, a tuple of positional inputs, or a dict of keyword inputs; dimension 0 of each is dynamic.
    `dynamic`: further dynamic dims by input name. Raises ModelError, CaptureError, DataError, FileError.
    """
    return graphs.trace(opened(model, example), example, dynamic)


def rebuilt(model: nn.Module, traced: TracedGraph, cut: Cut) -> Rebuilt:
    """The result in the user's own class; for a Keras model a network over a smaller one (see `given_back`)."""
    if not isinstance(model, KerasNetwork):
        return graphs.rebuilt(model, traced, cut)
    if cut.blocks:
        return Rebuilt(None, f"residual blocks were dropped from it ({', '.join(cut.blocks[:4])})")
    if cut.activations:
        return Rebuilt(None, f"activations of it were replaced ({', '.join(sorted(set(cut.activations.values())))})")
    program, tensors = cut.program.module, graphs.tensors_of(cut.program.module)
    inputs = graphs.randomised(traced.example, 1, 2)
    smaller, why = frameworks.resized(model, program, tuple(placeholders(program, inputs)), tensors)
    if smaller is None:
        return Rebuilt(None, why)
    twin = KerasNetwork(smaller, substitute=False)
    if why := graphs.put_tensors(twin, twin.matching(model, tensors)):
        return Rebuilt(None, why)
    originals = graphs.tensors_of(traced.captured)

    def made(name: str) -> graphs.Pieces:
        return graphs.pieces_of(originals[name].detach(), cut.kept[name])

    wrong = graphs.difference(twin, program, traced.example, made)
    return Rebuilt(None, wrong.why) if wrong is not None else Rebuilt(twin, "")


def rebuilt_thin(model: nn.Module, own: Rebuilt, thin: Cut, names: Sequence[ThinNames], example: Example) -> Rebuilt:
    """The user's own class with two layers in the place of each factorised one."""
    if isinstance(model, KerasNetwork):
        return Rebuilt(None, "a layer of Keras cannot become two")
    return graphs.rebuilt_thin(own, thin, names, example)


def given_back(module: nn.Module) -> nn.Module:
    """What the caller gets: of a Keras network, its model with the network's values."""
    if not isinstance(module, KerasNetwork):
        return module
    module.put_back()
    result: nn.Module = module.outline.model
    return result


def write_keras(pruned: Pruned, path: Path) -> Path:
    """Write a `.keras` file, read it again and compare. Raises FileError."""
    if not frameworks.is_keras(pruned.model):
        why = next(
            (n for n in pruned.notes if n.startswith("the result is the rewritten graph")), "it was no Keras model"
        )
        raise FileError(
            f"{path} was not written: {why}; save it in a folder (a path without .keras), or export it to ONNX"
        )
    return frameworks.write_keras(pruned.model, path)


def blueprint(model: nn.Module, own: Rebuilt, example: Example) -> Blueprint | None:
    """How to make the user's class again; a Keras model is written as a `.keras` file instead."""
    if own.module is None or isinstance(model, KerasNetwork):
        return None
    return blueprint_of(model, own.edits, example)


def name_of(model: nn.Module) -> str:
    return f"Keras' {type(model.outline.model).__name__}" if isinstance(model, KerasNetwork) else type(model).__name__

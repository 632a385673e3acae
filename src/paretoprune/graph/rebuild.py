"""The first choice of surgery: the user's own class with sliced parameters and updated size attributes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from paretoprune.graph.activations import modules_of, put_activations
from paretoprune.graph.model import forget, private_copy, unwrapped
from paretoprune.graph.rebuild_attention import attention_edits
from paretoprune.graph.rebuild_blocks import put_identities, vacant
from paretoprune.graph.rebuild_compare import Difference, difference
from paretoprune.graph.rebuild_edits import Edit, Edits, apply_edits, edits_of
from paretoprune.graph.rebuild_evidence import gather, nodes_by_module
from paretoprune.graph.rebuild_layers import layer_sizes
from paretoprune.graph.rebuild_search import search
from paretoprune.graph.rebuild_slots import slots_of
from paretoprune.graph.surgery import Cut, Pieces, pieces_of
from paretoprune.graph.traced import TracedGraph, tensors_of


@dataclass(frozen=True)
class Rebuilt:
    """`module` is the user's class, or None and `why` says what it cannot hold. `edits`: what was set in it."""

    module: nn.Module | None
    why: str
    edits: Edits = field(default_factory=Edits)


def rebuild(model: nn.Module, graph: TracedGraph, cut: Cut) -> tuple[nn.Module | None, str]:
    """(the user's class, "") or (None, why its forward cannot be made right). See `rebuilt`."""
    result = rebuilt(model, graph, cut)
    return result.module, result.why


def rebuilt(model: nn.Module, graph: TracedGraph, cut: Cut) -> Rebuilt:
    """The user's class at the new sizes, if it can be made to compute what the rewritten graph computes.

    It is a copy without hooks and with reparametrised weights folded; every submodule keeps its mode. Its tensors share
    the memory of the cut's. Which attribute becomes what is guessed from the graph before and after surgery; whether a
    guess is right is decided by comparing outputs and gradients, never by equal sizes.
    """
    model, _ = unwrapped(model)
    passed, why = vacant(model, cut)
    if why:
        return Rebuilt(None, why)
    swaps, why = modules_of(model, cut.program.module.graph, cut.activations)
    if why:
        return Rebuilt(None, why)
    fresh = _clone(model, cut.program.module, passed, swaps)
    if isinstance(fresh, str):
        return Rebuilt(None, fresh)
    evidence, nodes = gather(graph, cut), nodes_by_module(cut.program.module.graph)
    known = _known(fresh, nodes)
    narrow, certain, why = attention_edits(fresh, evidence)
    if why:
        return Rebuilt(None, why)
    slots = slots_of(fresh, evidence)
    originals = tensors_of(graph.captured)
    tried: list[tuple[nn.Module, Edits]] = []

    def made(name: str) -> Pieces:
        return pieces_of(originals[name].detach(), cut.kept[name])

    def attempt(values: Iterable[int]) -> Difference | None:
        clone = _clone(model, cut.program.module, passed, swaps)
        if isinstance(clone, str):
            return Difference(clone)
        edits = Edits((*known, *certain, *edits_of(clone, slots, values)), narrow, passed, activations=swaps)
        apply_edits(clone, edits)
        tried[:] = [(clone, edits)]
        return difference(clone, cut.program.module, graph.example, made)

    values, wrong = search(fresh, slots, attempt)
    if values is None:
        why = "unknown" if wrong is None else wrong.why
        return Rebuilt(None, f"nn.Identity in the place of '{passed[0]}' does not do: {why}" if passed else why)
    clone, edits = tried[0]
    forget(clone)
    copy_modes(model, clone)
    return Rebuilt(clone, "", edits)


def _known(clone: nn.Module, nodes: Mapping[str, list[fx.Node]]) -> list[Edit]:
    return [
        Edit(path, name, "", value)
        for path, module in clone.named_modules()
        for name, value in layer_sizes(module, nodes.get(path, ())).items()
    ]


def _clone(
    model: nn.Module, program: nn.Module, passed: Iterable[str], swaps: Iterable[tuple[str, str]]
) -> nn.Module | str:
    """A private copy with the program's tensors, or why it cannot take them. `passed`: layers that pass a value on.
    `swaps`: modules and the activations that take their place."""
    clone, _ = private_copy(model)
    put_identities(clone, passed)
    put_activations(clone, swaps)
    return put_tensors(clone, tensors_of(program)) or clone


def put_tensors(clone: nn.Module, tensors: Mapping[str, torch.Tensor], *, as_saved: bool = False) -> str:
    """Give the clone these tensors, tied ones once, none of the caller's. Why it cannot be done, if so.

    The two share memory, so that a network which just fits can be cut. `as_saved`: their type, their device and what of
    them is trained are those of `tensors`, not of the clone.
    """
    mine = tensors_of(clone)
    if not as_saved and (wrong := [n for n in mine if n in tensors and mine[n].dtype != tensors[n].dtype]):
        return f"'{wrong[0]}' has another type in the graph"
    done: dict[int, torch.Tensor] = {}
    for name, old in mine.items():
        new = tensors.get(name)
        owner, leaf = clone.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if isinstance(owner, torch.jit.ScriptModule):  # it is run as it is, and takes memory but no new tensor
            old.data = old if new is None else new.detach()
            continue
        value = done.setdefault(id(old if new is None else new), _like(old, new, as_saved))
        if isinstance(value, nn.Parameter):
            owner.register_parameter(leaf, value)
        else:
            owner._buffers[leaf] = value
    return ""


def _like(old: torch.Tensor, new: torch.Tensor | None, as_saved: bool) -> torch.Tensor:
    if new is None:
        data, trained = old.detach().clone(), old.requires_grad
    elif as_saved:
        data, trained = new.detach(), new.requires_grad
    else:
        data, trained = new.detach().to(old.device), old.requires_grad
    return nn.Parameter(data, requires_grad=trained) if isinstance(old, nn.Parameter) else data


def copy_modes(model: nn.Module, clone: nn.Module) -> None:
    """Every submodule trains or evaluates as it does in `model`."""
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in clone.named_modules():
        module.training = modes.get(name, module.training)

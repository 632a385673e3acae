"""From inferred dims to the axes that other rooms see: members, roles, kinds and names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import fx

from paretoprune.core.axis import Axis, AxisMember, Role
from paretoprune.graph.algebra import Atom, atoms_of
from paretoprune.graph.inference import Inferred
from paretoprune.graph.kinds import kinds_of
from paretoprune.graph.positions import entries_of

_TRIVIAL = ("its positions are a kernel's", "its positions are gates", "its positions are those of a patch")


def axes_of(found: Inferred) -> tuple[dict[str, Atom], tuple[Axis, ...]]:
    _freeze_counted(found)
    members: dict[Atom, list[AxisMember]] = {}
    roles = _roles(found)
    done: set[int] = set()
    for name in found.params:
        if id(found.params[name]) in done:
            continue
        done.add(id(found.params[name]))
        for dim, expr in enumerate(found.resolved(name)):
            for atom in dict.fromkeys(atoms_of(expr)):
                role = roles.get((id(found.params[name]), dim, atom), "each")
                entries = entries_of(expr, atom) if not found.axes.frozen(atom) else np.zeros((0, 0), np.int64)
                members.setdefault(atom, []).append(AxisMember(name, dim, role, entries))
    kinds = kinds_of(found)
    atoms: dict[str, Atom] = {}
    axes: list[Axis] = []
    for atom, places in members.items():
        why = found.axes.frozen(atom)
        kind = "frozen" if why else kinds.get(atom, "channel")
        if why and _trivial(why):
            continue
        name = _axis_id(places, atoms)
        atoms[name] = atom
        axes.append(Axis(name, atom.size, not why, why, kind, tuple(places)))
    return atoms, tuple(axes)


def _freeze_counted(found: Inferred) -> None:
    """What stands only in integers and masks, or in a buffer that nothing reads, is no axis of any weight."""
    weighed = {
        atom
        for node in found.dims
        if node.op == "get_attr" and node.users and _floating(node)
        for expr in found.resolved(str(node.target))
        for atom in atoms_of(expr)
    }
    for name in found.params:
        for expr in found.resolved(name):
            for atom in atoms_of(expr):
                if atom not in weighed:
                    found.axes.freeze(atom, "no weight has it: it stands in positions and masks only")


def _floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.is_floating_point()


def _trivial(why: str) -> bool:
    """Kernel positions, gates and the places of a patch are no axis that anybody would look for."""
    return why.startswith(_TRIVIAL)


def _axis_id(places: list[AxisMember], taken: Mapping[str, Atom]) -> str:
    """Named after the module that makes the axis; a number tells several apart."""
    maker = next((m for m in places if m.role == "out"), places[0])
    owner = maker.name.rpartition(".")[0] or maker.name
    name, k = owner, 2
    while name in taken:
        name, k = f"{owner}#{k}", k + 1
    return name


def _roles(found: Inferred) -> dict[tuple[int, int, Atom], Role]:
    """Which parameters make an axis and which sum over it, by id of the parameter's dims: tied ones are one."""
    roles: dict[tuple[int, int, Atom], Role] = {}
    for op in found.ops.values():
        for (tensor, dim), role in op.roles.items():
            if tensor.op == "get_attr":
                name = str(tensor.target)
                for atom in atoms_of(found.resolved(name)[dim]):
                    roles[id(found.params[name]), dim, atom] = role
        if "into" not in op.memo:
            continue
        made, summed = (set(atoms_of(op.resolve(op.memo[k]))) for k in ("out", "into"))
        for tensor in op.tensors():
            if tensor.op != "get_attr":
                continue
            name = str(tensor.target)
            for dim, expr in enumerate(found.resolved(name)):
                for atom in atoms_of(expr):
                    if atom in made:
                        roles[id(found.params[name]), dim, atom] = "out"
                    elif atom in summed:
                        roles.setdefault((id(found.params[name]), dim, atom), "in")
    return roles

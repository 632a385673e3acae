"""From inferred dims to the axes that other rooms see: members, roles, kinds and names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import fx

from paretoprune.core.axis import Axis, AxisMember, Role
from paretoprune.graph.algebra import Atom, Expr, Product, atoms_of, factors_of, terms_of
from paretoprune.graph.inference import Inferred
from paretoprune.graph.positions import entries_of

_ADDITIONS = {"aten.add.Tensor", "aten.sub.Tensor"}


def axes_of(found: Inferred) -> tuple[dict[str, Atom], tuple[Axis, ...]]:
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
    residual, within = _residual(found), _within(found)
    atoms: dict[str, Atom] = {}
    axes: list[Axis] = []
    for atom, places in members.items():
        why = found.axes.frozen(atom)
        kind = "frozen" if why else "residual" if atom in residual else "within" if atom in within else "channel"
        if why and _trivial(why):
            continue
        name = _axis_id(places, atoms)
        atoms[name] = atom
        axes.append(Axis(name, atom.size, not why, why, kind, tuple(places)))
    return atoms, tuple(axes)


def _trivial(why: str) -> bool:
    """Kernel positions are no axis that anybody would look for."""
    return why.startswith("its positions are a kernel's")


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


def _residual(found: Inferred) -> set[Atom]:
    """Axes carried by both operands of a sum of two activations."""
    active = _active(found)
    result: set[Atom] = set()
    for node, op in found.ops.items():
        tensors = op.tensors()
        if str(node.target) in _ADDITIONS and len(tensors) == 2 and all(t in active for t in tensors):
            sides = [{a for e in op.dims_of(t) for a in atoms_of(op.resolve(e))} for t in tensors]
            result |= sides[0] & sides[1]
    return result


def _active(found: Inferred) -> set[fx.Node]:
    """Nodes that depend on an input."""
    result: set[fx.Node] = set()
    for node in found.dims:
        if node.op == "placeholder" or any(n in result for n in node.all_input_nodes):
            result.add(node)
    return result


def _within(found: Inferred) -> set[Atom]:
    """Inner factors of a product whose outer factor can be pruned too."""
    result: set[Atom] = set()
    for name in found.params:
        for expr in found.resolved(name):
            for term in terms_of(expr):
                if isinstance(term, Product):
                    result |= _inner_atoms(found, factors_of(term))
    return result


def _inner_atoms(found: Inferred, factors: list[Expr]) -> set[Atom]:
    outer_open = False
    inner: set[Atom] = set()
    for factor in factors:
        atoms = set(atoms_of(factor))
        if outer_open:
            inner |= atoms
        outer_open = outer_open or any(not found.axes.frozen(a) for a in atoms)
    return inner

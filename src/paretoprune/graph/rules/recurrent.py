"""RNN, LSTM and GRU, whole sequences and single steps.

Weights are (gate·h, in), (gate·h, r) and, with a projection, (p, h), where r is what is fed back: p, or h itself. The
initial state stacks all layers and directions, so that one module has one hidden axis. A unit whose rows are zero has
a candidate of tanh(0) = 0 and keeps a zero state (LSTM: Hochreiter and Schmidhuber 1997; GRU: Cho et al. 2014, eq. 7).
"""

from __future__ import annotations

from typing import Any

from paretoprune.graph.algebra import Expr, concatenate, multiply
from paretoprune.graph.op import DeadView, Dims, MacTerm, Op, State
from paretoprune.graph.rules.contraction import view_contraction

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _kind(op: Op) -> str:
    return str(op.node.target).split(".")[1].removesuffix("_cell")


def _layers(op: Op) -> list[list[list[Any]]]:
    """Weights by layer and direction: w_ih, w_hh, then biases and the projection where there are any."""
    directions = 2 if op.args["bidirectional"] else 1
    params = list(op.args["params"])
    each = len(params) // (int(op.args["num_layers"]) * directions)
    groups = [params[i : i + each] for i in range(0, len(params), each)]
    return [groups[i : i + directions] for i in range(0, len(groups), directions)]


def _states(op: Op) -> list[Any]:
    hx = op.args["hx"]
    return list(hx) if isinstance(hx, (list, tuple)) else [hx]


def _weights(op: Op, group: list[Any], into: Expr, hidden: Expr, back: Expr) -> None:
    gates = multiply(op.closed(_GATES[_kind(op)], f"its positions are gates at {op.where}"), hidden)
    w_ih, w_hh, *rest = group
    op.unify(op.dims_of(w_ih)[0], gates)
    op.unify(op.dims_of(w_ih)[1], into)
    op.unify(op.dims_of(w_hh)[0], gates)
    op.unify(op.dims_of(w_hh)[1], back)
    op.roles.update({(w_ih, 0): "out", (w_ih, 1): "in", (w_hh, 0): "out"})
    for tensor in (t for t in rest if t is not None):
        dims = op.dims_of(tensor)
        op.roles[tensor, 0] = "out"
        if len(dims) == 1:
            op.unify(dims[0], gates)
        else:
            op.unify(dims[0], back)
            op.unify(dims[1], hidden)


def _axes(op: Op, groups: list[list[Any]]) -> tuple[Expr, Expr]:
    """(hidden, fed back); the same without a projection."""
    hidden = op.fresh(op.shape_of(groups[0][0])[0] // _GATES[_kind(op)])
    projected = next((t for t in groups[0][2:] if t is not None and len(op.shape_of(t)) == 2), None)
    back = hidden if projected is None else op.fresh(op.shape_of(projected)[0])
    op.memo.update(hidden=hidden, back=back)
    return hidden, back


def sequence(op: Op) -> list[Dims]:
    """lstm.input, gru.input, rnn_*.input and their packed forms (data and batch sizes instead of a padded input)."""
    x: Any = op.args["data"] if "data" in op.args else op.args["input"]
    layers = _layers(op)
    hidden, back = _axes(op, [g for layer in layers for g in layer])
    into = op.dims_of(x)[-1]
    for layer in layers:
        for group in layer:
            _weights(op, group, into, hidden, back)
        into = concatenate(*[back] * len(layer))
    outer = _outer(op, x)
    batch = _batch(op, outer)
    for state, axis in zip(_states(op), (back, hidden), strict=False):
        dims = op.dims_of(state)
        op.freeze(dims[0], "it counts layers and directions")
        op.unify(dims[1], batch)
        op.unify(dims[2], axis)
    counts = op.dims_of(_states(op)[0])[0]
    finals = [(counts, batch, axis) for axis in (back, hidden)[: len(op.out_shape) - 1]]
    return [(*outer, into), *finals]


def _outer(op: Op, x: Any) -> Dims:
    """(batch, time) in the order of the input; packed data mixes both."""
    outer = op.dims_of(x)[:-1]
    if "data" in op.args:
        op.freeze(outer, "its positions are steps of a packed sequence")
        op.freeze(op.dims_of(op.args["batch_sizes"]), "its positions are steps of a sequence")
        return outer
    time = 1 if op.args["batch_first"] else 0
    op.freeze(outer[time], "its positions are steps of a sequence")
    return outer


def _batch(op: Op, outer: Dims) -> Expr:
    if "data" in op.args:
        expr = op.dims_of(_states(op)[0])[1]
        op.freeze(expr, "its positions are packed sequences")
        return expr
    return outer[0 if op.args["batch_first"] else 1]


def sequence_dead(view: DeadView) -> State:
    op = view.op
    x = op.args["data"] if "data" in op.args else op.args["input"]
    groups = [g for layer in _layers(op) for g in layer]
    for group in groups[: 2 if op.args["bidirectional"] else 1]:
        view_contraction(view, x, op.dims_of(x)[-1:], group[0])
    return _unit_dead(view, groups)


def _unit_dead(view: DeadView, groups: list[list[Any]]) -> State:
    """What a removed unit gives out: zero if its weights are zeroed and its memory starts at zero.

    A projected output has zeroed rows of its own; the state of a plain RNN is made anew in every step.
    """
    op = view.op
    mine = [t for g in groups for t in g if t is not None and view.has(t)]
    if any(view.state(t) != State.ZERO for t in mine):
        return view.refuse("its weights are no parameters")
    inside = view.contains(op.memo["hidden"]) or view.contains(op.memo["back"])
    if not inside:
        return State.UNKNOWN
    kind, states = _kind(op), _states(op)
    remembered = states[1:] if kind == "lstm" else states if kind == "gru" else []
    started = all(view.state(s) in (None, State.ZERO) for s in remembered)
    return State.ZERO if started else State.UNKNOWN


def sequence_reads(op: Op) -> list[tuple[Any, Any]]:
    """The first layer's weights of the input and their biases, by direction; what the next layers read is not seen."""
    groups = _layers(op)[0]
    return [(g[0], g[2] if op.args["has_biases"] else None) for g in groups]


def sequence_macs(op: Op) -> list[MacTerm]:
    x = op.args["data"] if "data" in op.args else op.args["input"]
    outer = op.dims_of(x)[:-1]
    groups = [g for layer in _layers(op) for g in layer]
    return [(1, (*outer, *op.dims_of(t))) for g in groups for t in g if t is not None and len(op.shape_of(t)) == 2]


# -- single steps ----------------------------------------------------------------------------------------------------


def cell(op: Op) -> Any:
    """lstm_cell, gru_cell, rnn_*_cell: (batch, in) and (batch, h)."""
    x, group = op.dims_of(op.args["input"]), _cell_group(op)
    hidden, back = _axes(op, [group])
    _weights(op, group, x[-1], hidden, back)
    for state in _states(op):
        dims = op.dims_of(state)
        op.unify(dims[0], x[0])
        op.unify(dims[1], hidden)
    out = (*x[:-1], hidden)
    return [out, out] if isinstance(op.out_shape, list) else out


def _cell_group(op: Op) -> list[Any]:
    return [op.args[k] for k in ("w_ih", "w_hh", "b_ih", "b_hh")]


def cell_dead(view: DeadView) -> State:
    """A step sums over the state that it is given, against weights that are zero there."""
    op = view.op
    view_contraction(view, op.args["input"], op.dims_of(op.args["input"])[-1:], op.args["w_ih"])
    return _unit_dead(view, [_cell_group(op)])


def cell_macs(op: Op) -> list[MacTerm]:
    rows = op.dims_of(op.args["input"])[:-1]
    return [(1, (*rows, *op.dims_of(op.args[k]))) for k in ("w_ih", "w_hh")]

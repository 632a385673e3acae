"""Complex numbers and Fourier transforms: what a transform runs along is frozen, other dims pass."""

from __future__ import annotations

from paretoprune.graph.op import DeadView, Dims, Op, State


def transform(op: Op) -> Dims:
    """fft_*: linear along the named dims, so a row of zeros stays one."""
    dims = op.dims_of(op.args["self"])
    named = _named(op, len(dims))
    op.freeze(tuple(dims[i] for i in named), "a Fourier transform mixes its positions")
    return tuple(
        op.closed(s, f"a Fourier transform mixes its positions at {op.where}") if i in named else d
        for i, (d, s) in enumerate(zip(dims, op.out_shape, strict=True))
    )


def _named(op: Op, rank: int) -> list[int]:
    """The transformed dims; without names all, or as many last ones as sizes are given."""
    dim, sizes = op.args.get("dim"), op.args.get("s")
    if isinstance(dim, int):
        return [op.dim_index(dim, rank)]
    if dim is None:
        return list(range(rank - (len(sizes) if sizes else rank), rank))
    return [op.dim_index(d, rank) for d in dim]


def transform_dead(view: DeadView) -> State:
    return view.join([view.op.args["self"]])


def short_time(op: Op) -> Dims:
    """stft: (batch, time) becomes (batch, frequency, frame)."""
    dims = op.dims_of(op.args["self"])
    op.freeze(dims[-1], "a Fourier transform mixes its positions")
    if op.args.get("window") is not None:
        op.freeze(op.dims_of(op.args["window"]), "it is a window of a Fourier transform")
    new = op.out_shape[len(dims) - 1 :]
    return (*dims[:-1], *(op.closed(s, f"a Fourier transform mixes its positions at {op.where}") for s in new))


def split_parts(op: Op) -> Dims:
    """view_as_real: real and imaginary part become a last dim of 2."""
    return (*op.dims_of(op.args["self"]), op.closed(2, f"it holds real and imaginary parts at {op.where}"))


def join_parts(op: Op) -> Dims:
    """view_as_complex takes the last dim of 2."""
    dims = op.dims_of(op.args["self"])
    op.freeze(dims[-1], "it holds real and imaginary parts")
    return dims[:-1]


def parts_dead(view: DeadView) -> State:
    return view.join([view.op.args["self"]])


def pair_dead(view: DeadView) -> State:
    """complex(a, b) is zero where both are; polar(length, angle) where the length is."""
    names = ("abs",) if "abs" in view.op.args else ("real", "imag")
    states = [view.state(view.op.args[n]) for n in names]
    return State.ZERO if all(s == State.ZERO for s in states) else State.UNKNOWN

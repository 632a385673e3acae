"""What can be removed in depth: a residual block, which the network then skips."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Block:
    """One sum `s = x + f(x)`; to remove it means `s := x`.

    `name`: the longest module path that the weights of f have in common, with "#2" and so on where several share it.
    `why` says in plain words why it is not `removable`; it is empty where it is. `parameters` and `macs` (of one
    sample) are those of the original network that go when this block alone goes. `weights`: parameters of the
    contractions in f, whether others use them too or not.
    """

    name: str
    removable: bool
    why: str
    parameters: int
    macs: int
    weights: tuple[str, ...] = field(default=(), repr=False)

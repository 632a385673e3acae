"""What a plan says of zeros, carried out on a network that was cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch

from paretoprune import graph as graphs
from paretoprune.core.errors import PlanError
from paretoprune.core.graph import Program
from paretoprune.core.sparsity import Zeros
from paretoprune.pipeline.zeros import Found, zeros_in

V = TypeVar("V")


def put_zeros(program: Program, sparsity: Mapping[str, str], batches: Iterable[Any] | None) -> list[str]:
    """In place. Raises PlanError for a name or pattern that fits no layer, UsageError where batches are missing."""
    if not sparsity:
        return []
    layers = graphs.layer_weights(program.module)  # type: ignore[arg-type]  # of a cut it is a graph
    if unknown := unmatched(sparsity, layers.weights):
        raise PlanError(
            f"plan: sparsity names '{unknown}', which is no weight of a linear layer or convolution, and fits none as "
            f"a pattern; there are {some(layers.weights)}"
        )
    wanted = by_name(layers.weights, {n: Zeros.parse(text) for n, text in sparsity.items()})
    found = zeros_in(program, layers.weights, wanted, batches)
    write(program, found)
    return list(found.notes)


def write(program: Program, found: Found) -> None:
    tensors = graphs.tensors_of(program.module)
    with torch.no_grad():
        for name, values in found.tensors.items():
            tensors[name].copy_(values)


def by_name(names: Iterable[str], table: Mapping[str, V]) -> dict[str, V]:
    """The entry of the first pattern that fits, for every name that one fits."""
    return {n: table[p] for n in names if (p := fitting(n, table))}


def fitting(name: str, patterns: Iterable[str]) -> str:
    """The first pattern that fits the name; empty if there is none."""
    return next((p for p in patterns if fnmatchcase(name, p)), "")


def unmatched(patterns: Iterable[str], names: Collection[str]) -> str:
    """The first pattern that fits no name; empty if there is none."""
    return next((p for p in patterns if not any(fnmatchcase(n, p) for n in names)), "")


def some(names: Collection[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{n}'" for n in list(names)[:most]) + more if names else "none"

"""`pp.sparsify`: single weights and blocks of them become zero, all in one shot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from paretoprune import frameworks
from paretoprune import graph as graphs
from paretoprune.core.errors import ModelError, UsageError
from paretoprune.core.plan import Plan
from paretoprune.core.sparsity import CRITERIA, REMOVED, Zeros
from paretoprune.graph import LayerWeights
from paretoprune.pipeline.handing_back import with_values
from paretoprune.pipeline.prune import carry_out
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.put_zeros import by_name, some, unmatched
from paretoprune.pipeline.zeros import zeros_in
from paretoprune.sparsity import NofM, Pattern, pattern_of
from paretoprune.tasks import fitted

SHARE = 0.8
"""The share that goes unless told otherwise."""
ALIASES = {"obc": "sparsegpt"}
"""Optimal Brain Compression as SparseGPT computes it."""
LATER = "later"
Given = str | Pattern | Mapping[str, "str | Pattern"]


def sparsify(
    model: nn.Module | Pruned,
    example: Any,
    *,
    pattern: Given = "unstructured",
    sparsity: float | None = None,
    threshold: float | None = None,
    criterion: str = "magnitude",
    calibration: Iterable[Any] | None = None,
    scope: Literal["layer", "global"] = "layer",
    ignore: Sequence[str] = (),
    removed: str = "zero",
    dynamic: Mapping[str, Iterable[int]] | None = None,
) -> Pruned:
    """Zeros in the weights of every linear layer and convolution of a copy of `model`; biases and norms stay.

    `model`: a module, or a Pruned, whose plan then holds both. `ignore`: names and patterns of weights that stay dense.
    A weight is a matrix (outputs, inputs), a convolution's inputs in the order kernel line, kernel column, channel.

    `pattern`: "unstructured"; n:m ("2:4"), at most n of m neighbouring inputs of an output; RxC ("16x1"), blocks of R
    outputs by C inputs; or a value of `paretoprune.sparsity`. A mapping {weight name or pattern of names: one of these}
    chooses by layer, the first that fits, and what none fits stays dense; there a share may stand behind: "16x1@0.9".
    `sparsity`: the share of weights that go, 0 up to below 1, by default 0.8; n:m has its own. No share is exceeded,
    and each is missed by less than a block. `threshold`, instead: what goes is not larger than this absolute value;
    of blocks, their mean absolute value; n:m holds besides.
    `scope`: "layer" takes that share of every layer, "global" of all layers together, where scores are lowest.

    `criterion`, of which blocks have their mean: "magnitude". "wanda" (Sun et al. 2023, arXiv:2306.11695): magnitude
    times the root mean square of the input; every output (for blocks, every row of them) loses the same share.
    "sparsegpt" (Frantar & Alistarh 2023, arXiv:2301.00774): the weights that stay follow, so that the layer's output
    changes least; "obc" is the same. These two need `calibration` batches, of which 512 samples are seen in the dense
    network. Layers with groups, with a shared weight or of more than 8192 inputs go by magnitude, which `notes` says.

    `removed`, what becomes of what goes: "zero". "mean": zero, and what it gave on average over the calibration batches
    goes into the bias, or the running mean of the batch norm behind; a layer with neither is noted. "clip": there are
    no zeros; weights that would go are raised to the cut, keeping their sign (a weight of 0 stays): to `threshold`, or
    to the smallest score that stays in the layer; by magnitude only. "later": weights stay as they are, and only the
    plan says what is to go; see zeros="gradual" of `pp.finetune`.

    The plan holds it by layer (core.sparsity.Zeros); `pp.apply` chooses anew in a fresh checkpoint's weights, layer by
    layer, and needs calibration where this did. `pp.finetune` and `pp.distill` keep zeros where they are. `macs` count
    zeros as they count other weights. Left dense, and noted: transposed convolutions, weights that something else reads
    too (tied embeddings), weights that overlap in memory, and what stands in a submodule that could not be captured.

    Raises UsageError, ModelError (no layer is left, values that are not finite), CaptureError, DataError.
    """
    table = _table(pattern, sparsity, threshold, ALIASES.get(criterion, criterion), removed, scope)
    if frameworks.is_keras(model.model if isinstance(model, Pruned) else model):
        raise UsageError("a Keras model's weights are not sparsified: give a torch.nn.Module")
    dims = {name: tuple(given) for name, given in (dynamic or {}).items()}
    network = model.model if isinstance(model, Pruned) else model
    traced = graphs.trace(network, example, dims)
    batches = None if calibration is None else fitted("calibration", calibration, traced.example, dynamic=dims)
    layers = graphs.layer_weights(traced.program.module, network)
    wanted = _wanted(layers, table, ignore)
    start = model if isinstance(model, Pruned) else carry_out(network, traced, Plan({}, traced.fingerprint), None)
    left = _left(layers, wanted, ignore)
    if removed == LATER:
        return _with_plan(start, wanted, left)
    found = zeros_in(traced.program, layers.weights, wanted, batches, scope == "global")
    result = with_values(start, found.tensors)
    return _with_plan(result, found.zeros, [*left, *found.notes])


def _with_plan(pruned: Pruned, zeros: Mapping[str, Zeros], notes: Sequence[str]) -> Pruned:
    texts = {n: str(z) for n, z in zeros.items()}
    before = {n: text for n, text in pruned.plan.sparsity.items() if n not in texts}
    plan = replace(pruned.plan, sparsity={**texts, **before})  # the first pattern that fits counts
    return replace(pruned, plan=plan, notes=(*pruned.notes, *notes))


def _table(
    pattern: Given, share: float | None, threshold: float | None, criterion: str, removed: str, scope: str
) -> dict[str, Zeros]:
    """Pattern of names -> what is asked for. Raises UsageError for what can be seen without the network."""
    for name, given, known in (
        ("criterion", criterion, (*CRITERIA, *ALIASES)),
        ("removed", removed, (*REMOVED, LATER)),
        ("scope", scope, ("layer", "global")),
    ):
        if given not in known:
            raise UsageError(f"{name}={given!r}: give one of {', '.join(known)}")
    _check_amount(share, threshold)
    if criterion == "wanda" and threshold is not None:
        raise UsageError(f"threshold={threshold} is of absolute values, and wanda scores by inputs: give sparsity=")
    if removed == "clip" and criterion != "magnitude":
        raise UsageError(
            f"removed='clip' raises weights to a magnitude: it goes with criterion='magnitude', not {criterion}"
        )
    if removed == LATER and (threshold is not None or scope == "global" or criterion != "magnitude"):
        raise UsageError(
            "removed='later' goes by magnitude, with a share for each layer: leave out what says otherwise"
        )
    several = isinstance(pattern, Mapping)
    entries = pattern if isinstance(pattern, Mapping) else {"*": pattern}
    if not entries:
        raise UsageError("pattern={}: name a weight or a pattern of names")
    after = "zero" if removed == LATER else removed
    return {n: _entry(n, p, share, threshold, several, criterion, after) for n, p in entries.items()}


def _check_amount(share: float | None, threshold: float | None) -> None:
    if share is not None and threshold is not None:
        raise UsageError(f"sparsity={share} and threshold={threshold} are both given: give one of them")
    for name, value, below in (("sparsity", share, 1.0), ("threshold", threshold, math.inf)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value < below):
            what = "the share of weights that go, 0 up to below 1" if below == 1 else "an absolute value, 0 or above"
            raise UsageError(f"{name}={value!r}: give {what}")


def _entry(
    name: str,
    given: str | Pattern,
    share: float | None,
    threshold: float | None,
    several: bool,
    criterion: str,
    removed: str,
) -> Zeros:
    if isinstance(given, str) and several and "@" in given:
        if threshold is not None:
            raise UsageError(f"pattern {given!r} of '{name}' has a share, and threshold={threshold} is given: give one")
        zeros = Zeros.parse(given)
        return replace(zeros, criterion=criterion, removed=removed)
    if not isinstance(given, (str, Pattern)):
        raise UsageError(f'pattern={given!r}: give "unstructured", "n:m", "RxC", or a value of paretoprune.sparsity')
    found = pattern_of(given)
    if isinstance(found, NofM):
        if share is not None and not several and not math.isclose(share, found.sparsity):
            raise UsageError(f"sparsity={share} with {found}: it has {found.sparsity:g}; leave sparsity out")
        return Zeros(str(found), None, threshold, criterion, removed)
    if threshold is None:
        return Zeros(str(found), float(SHARE if share is None else share), None, criterion, removed)
    return Zeros(str(found), None, float(threshold), criterion, removed)


def _wanted(layers: LayerWeights, table: Mapping[str, Zeros], ignore: Sequence[str]) -> dict[str, Zeros]:
    if isinstance(ignore, str):
        raise UsageError(f"ignore={ignore!r}: give a list of names and patterns")
    every = [*layers.weights, *layers.left]
    for what, patterns in (("pattern", table), ("ignore", ignore)):
        if every and (unknown := unmatched(patterns, every)):
            raise UsageError(f"{what} names '{unknown}', which fits no weight; there are {some(layers.weights)}")
    wanted = by_name((n for n in layers.weights if not _ignored(n, ignore)), table)
    if not wanted:
        raise ModelError(
            f"no layer is left to hold zeros: {len(layers.weights)} weights of linear layers and convolutions, "
            f"ignore={list(ignore)}; {'; '.join(f'{n}: {why}' for n, why in list(layers.left.items())[:4])}"
        )
    return wanted


def _ignored(name: str, ignore: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) for p in ignore)


def _left(layers: LayerWeights, wanted: Mapping[str, Zeros], ignore: Sequence[str]) -> list[str]:
    """Sentences on what stays dense without having been asked to."""
    reasons: dict[str, list[str]] = {}
    for name, why in layers.left.items():
        if not _ignored(name, ignore):
            reasons.setdefault(why, []).append(name)
    return [f"left dense: {some(names)} ({why})" for why, names in reasons.items()]

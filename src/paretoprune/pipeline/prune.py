"""`pp.prune` and `pp.apply`: one network in, one smaller network out, proved before it is returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from paretoprune import criteria, recover
from paretoprune import graph as graphs
from paretoprune.core.axis import Axis, Scores
from paretoprune.core.data import take
from paretoprune.core.errors import UsageError
from paretoprune.core.plan import Plan
from paretoprune.core.protocols import Criterion, Target, Task
from paretoprune.graph import TracedGraph
from paretoprune.pipeline import choose
from paretoprune.pipeline.depth import BlockChoice, axis_ratio, check_choice, chosen_blocks, living
from paretoprune.pipeline.evidence import evidence
from paretoprune.pipeline.generation import refuse_generation
from paretoprune.pipeline.low_rank import RankChoice, carry_in, check_ranks, with_ranks
from paretoprune.pipeline.opening import Network, blueprint, given_back, name_of, opened, rebuilt
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.put_zeros import put_zeros
from paretoprune.pipeline.ranking import Normalise, Ranking, check_ranking, groups_of, normalised, ranked_widths
from paretoprune.tasks import fitted, task_of

RECONSTRUCTION_SAMPLES = 1024
RECALIBRATION_SAMPLES = 1024
RANGE_SAMPLES = 256


def prune(
    model: Network,
    example: Any,
    *,
    ratio: float | Mapping[str, float] | None = None,
    macs: float | None = None,
    criterion: str | Criterion = "magnitude",
    ranking: Ranking | None = None,
    normalise: Normalise | None = None,
    axes: choose.AxisChoice = "inner",
    blocks: BlockChoice = None,
    ranks: RankChoice = None,
    split: str = "space",
    activations: Mapping[str, str] | None = None,
    align: int = 1,
    floor: int = 1,
    ignore: Sequence[str] = (),
    calibration: Iterable[Any] | None = None,
    task: str | Task = "classification",
    dynamic: Mapping[str, Iterable[int]] | None = None,
    quantized: str | Target | None = None,
) -> Pruned:
    """Remove the least important positions of every chosen axis; `model` itself is not changed.

    `model`: a torch module, a Keras model on its torch backend, or the path of a `.keras` or `.h5` file.

    Either `ratio`, the share of positions removed from every axis (or {name pattern: ratio}), or `macs`, the share of
    the multiply-accumulates to keep. With `calibration` batches (x, (x, y) or dict), what follows a pruned axis is
    reconstructed by least squares along the network. The result was compared with the dead-channel reference.

    `blocks`: residual blocks `s = x + f(x)` that go as a whole, so that s is x (`trace(...).blocks` lists them). A list
    of names and patterns ("model.layers.5.*"): exactly these; ratio and macs may then be left out. A strategy: with a
    ratio, that share of the removable blocks (rounded down; with a ratio by name the key "blocks" says it) goes besides
    the positions; with macs, blocks go in the strategy's order as long as the MACs stay at or above the target, and
    positions of axes make up for the rest. "deepest" takes the last ones first, "shallowest" the first, "middle" goes
    from the middle outwards (of two the deeper first), "score" the least important: without calibration by the mean
    score per parameter that the criterion gives the branch's weights, with it by Block Influence, 1 − cos(x, s)
    averaged over the calibration batches (Men et al. 2024, "ShortGPT", arXiv:2403.03853, eq. 1). A block that holds
    others takes them with it.

    `criterion`: a name of `paretoprune.criteria.CRITERIA`, an object, or "pkg.mod:Class".

    `ranking`: where positions are compared. With a ratio: "local" (the default) takes that share of every axis;
    "global" puts the positions of all chosen axes into one order and takes that share of them; "isomorphic" does so
    among axes of the same kind whose parameters have the same structure (Fang et al. 2024, "Isomorphic Pruning for
    Vision Models"). With macs: the share is the least that reaches them; without `ranking`, the widths that lose the
    least summed score. `normalise` makes scores of different axes comparable: each axis's over their "mean", "max" or
    root of the "sum-of-squares", "gaussian" (mean 0, deviation 1), or "none". By default "none" for criteria that
    measure every axis in one unit (`comparable`: the loss, a share of energy), else "mean".

    `ranks`: linear layers and convolutions that become two thin ones, after what is cut was cut. A rank (whole number),
    or the share of the layer's multiply-accumulates that stays (below 1): for every layer where that saves work, or by
    weight name or pattern ({"fc1.weight": 16, "layer3.*": 0.5}; of a pattern, layers that cannot are left alone and
    `notes` says why). "auto" with macs: the ranks that lose the least energy in all. With `calibration` the factors are
    the best ones for what enters the layer, else those of a plain singular value decomposition. ratio may be left out.
    `align` holds for ranks that are not given as numbers.
    `split`: how k × k convolutions are divided: "space", k × 1 and 1 × k, or "channels", k × k and 1 × 1.

    `activations`: cheaper ones by name or pattern of a node, or of the module that it stands in: {"*": "relu"} for
    every SiLU, GELU (both forms), Mish, ELU, CELU, SELU, hard-swish, leaky ReLU and softplus; "hardswish" for the
    smooth ones; "hardsigmoid" for sigmoid and "hardtanh" for tanh. ratio may be left out. With `calibration` the layers
    behind them are fitted to what the original gave; train the result, for this costs accuracy. nn.SiLU and its like
    are exchanged in the user's class; what calls an activation as a function becomes the rewritten graph.

    `quantized`: a target, e.g. "onnxruntime", that the result will be quantized for: positions are scored in the
    network as that target's int8 file rounds weights and activations, with ranges from the `calibration` batches.

    Raises ModelError, CaptureError, PlanError, UsageError, DataError, SurgeryError, and TargetError with `quantized`.
    """
    check_ranks(ranks, split, macs)
    swaps = _swaps(activations)
    if (ranks is None and not swaps) or blocks is not None or ratio is not None or macs is not None:
        check_choice(blocks, ratio, macs)
    check_ranking(ranking, normalise, ratio, macs)
    scorer = criteria.criterion_of(criterion)
    meaning = task_of(task)
    dims = {name: tuple(given) for name, given in (dynamic or {}).items()}
    model = opened(model, example)
    traced = graphs.trace(model, example, dims)
    swapped = graphs.activated(traced, swaps)
    batches = None if calibration is None else fitted("calibration", calibration, traced.example, dynamic=dims)
    gone = chosen_blocks(traced, blocks, ratio, macs, scorer, batches)
    ratio = axis_ratio(blocks, ratio)
    if ratio is None and (macs is None or ranks is not None):
        plan, told = with_ranks(traced, Plan({}, traced.fingerprint, gone), ranks, split, macs, batches, align)
        return carry_out(model, traced, replace(plan, activations=swaps), batches, told)
    chosen = choose.chosen_axes(swapped, axes, ignore)
    widths: Mapping[str, int] = {}
    if ratio is not None and ranking in (None, "local"):
        widths = choose.widths_by_ratio(chosen, ratio, align, floor)
    chosen = living(traced, chosen, gone)
    scores = score(rounded(traced, quantized, batches), chosen, scorer, meaning, batches)
    comparable = normalised(scores, normalise or ("none" if scorer.comparable else "mean"))
    if macs is not None and ranking is None:
        widths = choose.widths_by_macs(traced, chosen, comparable, macs, align, floor, gone)
    elif not widths:
        groups = groups_of(ranking, chosen, graphs.tensors_of(traced.program.module))
        widths = ranked_widths(traced, groups, comparable, ratio, macs, align, floor, gone)
    widths = {axis.id: widths[axis.id] for axis in chosen if axis.id in widths}
    plan = choose.plan_of(traced, widths, choose.removal_order(scores), gone)
    plan, told = with_ranks(traced, plan, ranks, split, macs, batches, align)
    return carry_out(model, traced, replace(plan, activations=swaps), batches, told)


def _swaps(activations: Mapping[str, str] | None) -> dict[str, str]:
    given = {} if activations is None else activations
    if not isinstance(given, Mapping) or not all(isinstance(text, str) for pair in given.items() for text in pair):
        raise UsageError(f"activations={str(given)[:80]}: give a name or pattern and the cheaper one: {{'*': 'relu'}}")
    return dict(given)


def apply(
    model: Network,
    example: Any,
    plan: Plan | Mapping[str, Any],
    *,
    calibration: Iterable[Any] | None = None,
    dynamic: Mapping[str, Iterable[int]] | None = None,
) -> Pruned:
    """Replay a plan on a fresh model of the same architecture. Raises PlanError where it does not fit.

    Zeros stand where the fresh weights are lowest, by the criterion that the plan names.
    """
    plan = plan if isinstance(plan, Plan) else Plan.from_json(plan)
    dims = {name: tuple(given) for name, given in (dynamic or {}).items()}
    model = opened(model, example)
    traced = graphs.trace(model, example, dims)
    batches = None if calibration is None else fitted("calibration", calibration, traced.example, dynamic=dims)
    return carry_out(model, traced, plan, batches)


def rounded(traced: TracedGraph, target: str | Target | None, batches: Iterable[Any] | None) -> TracedGraph:
    """The network as a target's int8 file rounds it, to be scored; as it is without a target."""
    if target is None:
        return traced
    if batches is None:
        raise UsageError(f"quantized={target!r} needs calibration= batches to learn the ranges of activations from")
    from paretoprune.pipeline.fake_graph import fakes_for
    from paretoprune.targets import find_target

    inputs = [inputs for inputs, _ in take(batches, RANGE_SAMPLES)]
    return replace(traced, program=fakes_for(traced, find_target(target), inputs).rounding(traced.program))


def score(
    traced: TracedGraph, axes: Sequence[Axis], scorer: Criterion, task: Task, batches: Iterable[Any] | None
) -> Scores:
    """Scores of `axes`; a criterion that looks at data needs calibration batches, some with labels."""
    seen = evidence(traced, axes, scorer, task, batches)
    return criteria.score_axes(axes, graphs.tensors_of(traced.program.module), scorer, seen)


def carry_out(
    model: nn.Module, traced: TracedGraph, plan: Plan, batches: Iterable[Any] | None, told: Sequence[str] = ()
) -> Pruned:
    """Cut, prove, recover, and put the result into the user's class where that is right. `told`: further notes."""
    widths = {axis: len(kept) for axis, kept in plan.kept.items()}
    traced.checked_ranks(plan.ranks, widths, plan.blocks, plan.spatial)
    graphs.check(traced, plan)  # first, while there is no pruned network in memory
    cut = graphs.cut(traced, plan)
    own = rebuilt(model, traced, cut)
    notes = [*traced.notes, *told]
    if batches is not None and (plan.kept or plan.blocks or plan.activations or not plan.ranks):
        notes += reconstruct(traced, cut, batches)
    if plan.ranks:
        cut, own, more = carry_in(model, traced, cut, own, plan, batches)
        notes += more
    if plan.sparsity:
        notes += put_zeros(cut.program, plan.sparsity, batches)
    if own.module is None:
        notes.append(f"the result is the rewritten graph: {name_of(model)} cannot hold it, because {own.why}")
        refuse_generation(cut.program.module, model, own.why)
    else:
        copy_tensors(cut.program.module, own.module)
    result = given_back(cut.program.module if own.module is None else own.module)
    macs = traced.macs(widths, plan.blocks, plan.ranks, plan.spatial), traced.macs()
    return Pruned(result, plan, cut.kept, cut.program, *macs, tuple(notes), blueprint(model, own, traced.example))


def reconstruct(
    traced: TracedGraph, cut: graphs.Cut, batches: Iterable[Any], samples: int = RECONSTRUCTION_SAMPLES
) -> list[str]:
    """Least squares along the network, for every layer whose inputs changed; what was left alone, as sentences."""
    done = recover.reconstruct_sequentially(traced.program, cut.program, cut.kept, batches, samples=samples)
    notes = [f"'{r.weight}' was not reconstructed: {r.left}" for r in done.layers if r.left]
    if done.fewer:
        notes.append(f"reconstruction saw {done.samples} samples: more activations would not have fitted into memory")
    return notes


def recover_cut(
    traced: TracedGraph, cut: graphs.Cut, grams: Mapping[str, recover.Gram], batches: Iterable[Any]
) -> list[str]:
    """Each layer by itself, with Gram matrices that were taken before, then batch norms: quicker, less accurate."""
    done = recover.reconstruct_program(graphs.tensors_of(traced.program.module), cut.program, cut.kept, grams)
    recover.recalibrate(cut.program, batches, samples=RECALIBRATION_SAMPLES)
    return [f"'{r.weight}' was not reconstructed: {r.left}" for r in done if r.left]


def copy_tensors(source: nn.Module, to: nn.Module) -> None:
    """Values of parameters and buffers by name; both have the same shapes."""
    ours = graphs.tensors_of(source)
    with torch.no_grad():
        for name, tensor in graphs.tensors_of(to).items():
            if name in ours and ours[name].shape == tensor.shape:
                tensor.copy_(ours[name])

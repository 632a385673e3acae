"""Which widths are worth carrying out: the searcher's ask-and-tell, then a spread over what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paretoprune import graph as graphs
from paretoprune.core.errors import PruneError
from paretoprune.core.protocols import Proposal
from paretoprune.pipeline.prune import recover_cut
from paretoprune.pipeline.put_zeros import put_zeros
from paretoprune.pipeline.space import Space
from paretoprune.pipeline.study import Study
from paretoprune.search.allocate import Allocation, allocate, spread
from paretoprune.search.table import make_searcher

EVALUATIONS_PER_CANDIDATE = 5


def explore(study: Study, space: Space) -> list[Mapping[str, int]]:
    """Widths of the networks to carry out, in the order to do it; never the original's. Raises PruneError for none."""
    count = study.settings.candidates
    if study.settings.searcher == "knapsack" and study.settings.evaluations is None:
        found = _from_knapsack(study, space, count)
    else:
        told = [a for a in _ask_and_tell(study, space) if not _is_original(space, a.widths)]
        found = [a.widths for a in spread(_undominated(told), count)]
    if not found:
        raise PruneError(
            "no narrower network was found that this target should run faster than the original: its layers may be too "
            "small for their widths to matter; if the machine was busy, search again in another folder"
        )
    return found


def _from_knapsack(study: Study, space: Space, count: int) -> list[Mapping[str, int]]:
    """The knapsack's front needs no proxy: its model is exact for what it models."""
    searcher = make_searcher("knapsack", space.choices, budget=count + 1, seed=study.settings.seed)
    found: list[Mapping[str, int]] = []
    while (proposal := searcher.ask()) is not None:
        if not _is_original(space, proposal.widths):
            found.append(proposal.widths)
        searcher.tell(proposal, None)
    return found[:count]


def _is_original(space: Space, widths: Mapping[str, int]) -> bool:
    return all(widths[c.axis] == c.widths[-1] for c in space.choices)


def _ask_and_tell(study: Study, space: Space) -> list[Allocation]:
    """Every proposal is cut, reconstructed, recalibrated and compared with the original; answers are journaled."""
    budget = study.settings.evaluations or EVALUATIONS_PER_CANDIDATE * study.settings.candidates
    seeds = [a.widths for a in spread(allocate(space.choices), study.settings.candidates)]
    searcher = make_searcher(
        study.settings.searcher, space.choices, seeds=seeds, budget=budget, seed=study.settings.seed
    )
    past = [(p["widths"], p["objectives"]) for p in study.folder.all("proposal").values()]
    searcher.replay(past)
    told = [Allocation(o[1], o[0], w) for w, o in past if o is not None]
    proxy = _proxy(study, space)
    with study.progress.stage(f"search ({study.settings.searcher})", budget) as bar:
        bar.advance(len(past))
        for tried in range(len(past), budget):
            proposal = searcher.ask()
            if proposal is None:
                break
            objectives = _evaluate(study, proxy, proposal)
            searcher.tell(proposal, objectives)
            if objectives is not None:
                told.append(Allocation(objectives[1], objectives[0], proposal.widths))
            bar.advance(note=f"{tried + 1} tried")
    if not told:
        raise PruneError("the searcher found nothing that could be evaluated; see the failures in the journal")
    return told


def _proxy(study: Study, space: Space) -> Callable[[Mapping[str, int]], tuple[float, float]]:
    reference = study.reference

    def evaluate(widths: Mapping[str, int]) -> tuple[float, float]:
        plan = space.plan(study, widths)
        cut = graphs.cut(study.traced, plan)
        recover_cut(study.traced, cut, study.grams, study.calibration)
        put_zeros(cut.program, plan.sparsity, study.calibration)
        return reference.divergence(cut.program), space.model.share(widths)

    return evaluate


def _evaluate(
    study: Study, proxy: Callable[[Mapping[str, int]], Any], proposal: Proposal
) -> tuple[float, float] | None:
    objectives: tuple[float, float] | None
    try:
        with study.timed("proxy"):
            objectives = proxy(proposal.widths)
    except PruneError as error:
        # A process that died before the proposal was recorded asks for it again.
        study.folder.record(
            "failure",
            f"proposal {proposal.number}",
            {"cause": str(error), "type": type(error).__name__},
            replace=True,
        )
        objectives = None
    payload: dict[str, Any] = {
        "widths": dict(proposal.widths),
        "objectives": None if objectives is None else list(objectives),
    }
    study.folder.record("proposal", study.next_key("proposal"), payload)
    return objectives


def _undominated(told: Sequence[Allocation]) -> list[Allocation]:
    """Cheapest first, each with less error than all cheaper ones."""
    front: list[Allocation] = []
    for one in sorted(told, key=lambda a: (a.cost, a.error)):
        if not front or one.error < front[-1].error:
            front.append(one)
    return front

"""Recovery of all candidates of a search at once: reconstructed one by one, then trained as one nested network."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from paretoprune import graph as graphs
from paretoprune.core.errors import PruneError, StoreError
from paretoprune.core.plan import Plan
from paretoprune.pipeline import candidates, files
from paretoprune.pipeline.nesting import distill_nested
from paretoprune.pipeline.prune import copy_tensors
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.space import Space
from paretoprune.pipeline.study import Study
from paretoprune.recover.nested import BETWEEN

POLISH_SHARE = 0.25
"""Of a candidate's steps, those that it is trained alone in the end."""


def recover_together(study: Study, space: Space, chosen: Sequence[Mapping[str, int]], steps: int) -> None:
    """The networks of all candidates, with the forwards that `steps` of each alone would take.

    What it needs to go on after a kill is in the folder `nested`, which goes when the networks are there. Where the
    training fails, the candidates are left to be recovered alone, and the run folder says why.
    """
    plans = {f"c{n:02d}": space.plan(study, widths) for n, widths in enumerate(chosen, 1)}
    work = study.folder.path / "nested"
    missing = [n for n in plans if not study.folder.has("network", n) and not study.folder.has("failure", n)]
    if missing and not study.folder.has("nested", "failure"):
        _recover(study, plans, work, steps)
    shutil.rmtree(work, ignore_errors=True)


def _recover(study: Study, plans: Mapping[str, Plan], work: Path, steps: int) -> None:
    """All that did not fail, also those that are recorded already: the training is resumed, not made anew."""
    left = {n: plan for n, plan in plans.items() if not study.folder.has("failure", n)}
    starts = {n: start for n, plan in left.items() if (start := _start(study, work / n, n, plan)) is not None}
    if len(starts) > 1:
        try:
            _train(study, starts, steps, work / "training")
        except StoreError:
            raise
        except PruneError as error:
            study.folder.record("nested", "failure", {"cause": str(error), "type": type(error).__name__})


def _start(study: Study, place: Path, name: str, plan: Plan) -> Pruned | None:
    """The reconstructed candidate, the same bits before and after a kill; None where it failed, which is recorded."""
    try:
        if not (place / files.MANIFEST).exists():
            files.save(candidates.reconstructed(study, plan), place)
        kept, cut = files.load(place), graphs.cut(study.traced, plan)
    except StoreError:
        raise
    except PruneError as error:
        study.folder.record("failure", name, {"cause": str(error), "type": type(error).__name__})
        return None
    copy_tensors(kept.model, cut.program.module)
    return replace(kept, model=cut.program.module, program=cut.program, kept=cut.kept, plan=plan)


def _train(study: Study, starts: Mapping[str, Pruned], steps: int, checkpoint: Path) -> None:
    polish = round(POLISH_SHARE * steps)
    at_once = min(len(starts), BETWEEN + 2)
    together = max(1, (steps - polish) * len(starts) // at_once)
    with study.timed("distil"), study.progress.stage("nested network", together + polish * len(starts)) as bar:
        trained = distill_nested(
            list(starts.values()),
            study.traced.program.module,
            study.checked.data.train,
            task=study.task,
            steps=together,
            polish=polish,
            lr=study.settings.learning_rate,
            device=study.device,
            seed=study.settings.seed,
            checkpoint=checkpoint,
            on_step=lambda step, loss: bar.advance(note=f"loss {loss:.3f}"),
        )
    how = f"{together} steps of a nested network of {len(starts)} and {polish} alone"
    for (name, start), found in zip(starts.items(), trained, strict=True):
        if not study.folder.has("network", name):
            pruned, told = candidates.better(study, found, start, how)
            candidates.keep(study, name, pruned, steps, told)

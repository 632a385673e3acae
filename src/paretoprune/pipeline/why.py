"""From the journal to an explanation of one member. What an older journal does not hold is said to be unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paretoprune.core.plan import Plan
from paretoprune.core.sparsity import told
from paretoprune.core.why import AxisWhy, ClassWhy, Why
from paretoprune.pipeline.study import Study
from paretoprune.store.run import RunView

_OLDER = "the run was measured by a version that did not record"


def record_cuts(study: Study, network: str, plan: Plan) -> None:
    """What goes with each cut axis alone, and what the whole plan leaves; once per network, whatever its files."""
    traced = study.traced
    widths = {axis: len(kept) for axis, kept in plan.kept.items()}
    parameters, macs = traced.parameters(), traced.macs()

    def found() -> dict[str, Any]:
        alone = {
            axis: {
                "parameters": parameters - traced.parameters({axis: width}),
                "macs": macs - traced.macs({axis: width}),
            }
            for axis, width in widths.items()
        }
        return {
            "axes": alone,
            "parameters": [traced.parameters(widths, plan.blocks), parameters],
            "macs": [traced.macs(widths, plan.blocks), macs],
        }

    study.folder.once("cuts", network, found)


def explain(view: RunView, name: str) -> Why:
    """Why the candidate `name` of this run is what it is."""
    record, about = view.done("candidate", name) or {}, view.done("about", "run") or {}
    plan, unknown = Plan.from_json(record["plan"]), []
    network = view.done("network", record["network"]) or {}
    cuts = view.done("cuts", record["network"]) or {}
    sizes: Mapping[str, int] = about.get("axes", {})
    axes = _axes(plan, sizes, cuts.get("axes", {}), _curves(view))
    if axes and not cuts:
        unknown.append(f"what went with each axis: {_OLDER} it")
    if axes and not any(a.curve for a in axes):
        unknown.append(f"the sensitivity curves: {_OLDER} their widths")
    classes, why = _classes(view, record)
    unknown += [why] if why else []
    return Why(
        name,
        record["precision"],
        record["original"],
        _pair(cuts.get("parameters")),
        _pair(cuts.get("macs")),
        axes,
        sum(axis not in plan.kept for axis in sizes),
        plan.blocks,
        classes,
        network.get("recovery", ""),
        tuple(network.get("notes", ())),
        tuple(unknown),
        tuple(told(plan.sparsity)),
    )


def _pair(found: Sequence[int] | None) -> tuple[int, int] | None:
    return (int(found[0]), int(found[1])) if found else None


def _curves(view: RunView) -> dict[str, tuple[tuple[int, float], ...]]:
    widths, errors = view.done("widths", "axes") or {}, view.done("error curves", "kl") or {}
    return {
        axis: tuple(zip(widths[axis], curve, strict=True))
        for axis, curve in errors.items()
        if len(widths.get(axis, ())) == len(curve)
    }


def _axes(
    plan: Plan, sizes: Mapping[str, int], alone: Mapping[str, Any], curves: Mapping[str, Any]
) -> tuple[AxisWhy, ...]:
    found = [
        AxisWhy(
            axis,
            len(kept),
            sizes.get(axis),
            alone.get(axis, {}).get("parameters"),
            alone.get(axis, {}).get("macs"),
            curves.get(axis, ()),
        )
        for axis, kept in plan.kept.items()
    ]
    return tuple(sorted(found, key=lambda a: (-(a.macs or 0), a.axis)))


def _classes(view: RunView, record: Mapping[str, Any]) -> tuple[tuple[ClassWhy, ...], str]:
    """(classes that lost recall, why that is not known)."""
    if record["original"]:
        return (), ""
    mine, base = record.get("classes"), (view.done("candidate", "original") or {}).get("classes")
    if not mine or not base or mine["samples"] != base["samples"]:
        why = (record.get("absent") or {}).get("macro_recall") or f"{_OLDER} the counts per class"
        return (), f"which classes lost most: {why}"
    counted = zip(mine["samples"], base["hits"], mine["hits"], strict=True)
    found = [
        ClassWhy(label, n, before, after, _taken_for(label, base.get("matrix"), mine.get("matrix")))
        for label, (n, before, after) in enumerate(counted)
        if after < before
    ]
    return tuple(sorted(found, key=lambda c: (-c.lost, c.label))), ""


def _taken_for(
    label: int, before: Sequence[Sequence[int]] | None, after: Sequence[Sequence[int]] | None
) -> tuple[int, int, int] | None:
    """The other class whose count grew most."""
    if before is None or after is None:
        return None
    grown = [
        (now - then, k) for k, (then, now) in enumerate(zip(before[label], after[label], strict=True)) if k != label
    ]
    most, other = max(grown[:-1], key=lambda g: (g[0], -g[1]))  # the last column is "no number"
    return (other, before[label][other], after[label][other]) if most > 0 else None

"""From axes and parameters to scores: the part that no criterion has to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretoprune.core.axis import Axis, AxisMember, Role, Scores
from paretoprune.core.errors import DataError, ModelError, PruneError, UsageError
from paretoprune.core.evidence import Evidence
from paretoprune.core.protocols import Criterion, View

_BLOCK = 1 << 20
"""Elements that are copied at a time: a network that just fits leaves no room for copies of its largest weight."""
FALLBACK: tuple[Role, ...] = ("out", "in", "each")
"""Where an axis has no member of the criterion's role, the next role that it has is looked at."""


def score_axes(
    axes: Sequence[Axis],
    tensors: Mapping[str, Tensor],
    criterion: Criterion,
    evidence: Evidence | None = None,
) -> Scores:
    """Scores of every given axis, >= 0 and larger for what is kept; with gradients, the mean over the batches' scores.

    `tensors` are the parameters and buffers by name. A criterion that removes what is high has its scores taken from
    the axis's highest, and an axis with negative scores is moved up to 0. Raises UsageError for an axis that stands in
    no floating-point tensor or that nothing was seen of, DataError without gradients, PruneError for a score that is
    unfit.
    """
    evidence = evidence or Evidence()
    total: dict[str, NDArray[np.float64]] = {}
    batches = 0
    for gradients in evidence.gradients if "gradients" in criterion.needs else (None,):
        batches += 1
        for axis in axes:
            found = _score(axis, tensors, criterion, gradients, evidence)
            total[axis.id] = total[axis.id] + found if axis.id in total else found
    if batches == 0:
        raise DataError(
            f"criterion {criterion.name!r} needs gradients and got none: give calibration batches with labels"
        )
    kept = {axis: _larger_is_kept(value / batches, criterion.remove) for axis, value in total.items()}
    return Scores(kept, criterion.name)


def _larger_is_kept(raw: NDArray[np.float64], remove: str) -> NDArray[np.float64]:
    result: NDArray[np.float64] = raw.max() - raw if remove == "high" else raw - min(0.0, float(raw.min()))
    return result


def _score(
    axis: Axis,
    tensors: Mapping[str, Tensor],
    criterion: Criterion,
    gradients: Mapping[str, Tensor] | None,
    evidence: Evidence,
) -> NDArray[np.float64]:
    """The mean over the axis's views."""
    found = []
    for view in _views(axis, tensors, criterion, gradients, evidence):
        score = criterion.score(view)
        if tuple(score.shape) != (axis.size,):
            raise PruneError(
                f"criterion {criterion.name!r} gave shape {tuple(score.shape)} for axis {axis.id!r}; "
                f"expected ({axis.size},)"
            )
        if not bool(torch.isfinite(score).all()):
            raise PruneError(
                f"criterion {criterion.name!r} gave an infinite or NaN score for axis {axis.id!r}: "
                "scores must be finite"
            )
        found.append(score.detach().double().cpu().numpy())
    mean: NDArray[np.float64] = np.mean(found, axis=0)
    return mean


def _views(
    axis: Axis,
    tensors: Mapping[str, Tensor],
    criterion: Criterion,
    gradients: Mapping[str, Tensor] | None,
    evidence: Evidence,
) -> Iterator[View]:
    """One view; with activations, one for each contraction that sums over the axis."""
    needs = criterion.needs
    members = _members(axis, criterion, tensors, gradients, evidence)
    view = View(_matrix(members, tensors, "weight"), axis=axis.id)
    if gradients is not None:
        view = replace(view, grad=_matrix(members, gradients, "gradient"))
    if "inputs" in needs:
        view = replace(view, inputs=_matrix(members, evidence.inputs, "input"))
    if "scales" in needs:
        view = replace(view, scale=_scale(axis, tensors, criterion, evidence))
    if "gates" in needs:
        view = replace(view, gates=_gates(_seen(axis, criterion, evidence.gates), evidence.gates))
    if "elimination" in needs:
        view = replace(view, losses=_losses(axis, criterion, evidence))
    if "activations" not in needs:
        yield view
        return
    for member in _seen(axis, criterion, evidence.activations):
        yield replace(view, activations=_maps(member, evidence.activations[member.name]))


def _members(
    axis: Axis,
    criterion: Criterion,
    tensors: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor] | None,
    evidence: Evidence,
) -> Sequence[AxisMember]:
    """The axis's members of the criterion's role, or of the first role in FALLBACK that it has."""
    if "inputs" in criterion.needs:
        return _seen(axis, criterion, evidence.inputs)
    known = tensors if gradients is None else gradients
    usable = [m for m in axis.members if m.name in tensors and m.name in known and tensors[m.name].is_floating_point()]
    for role in (criterion.members, *FALLBACK):
        found = [m for m in usable if m.role == role]
        if found:
            return found
    what = "gradient" if gradients is not None and axis.members else "floating-point parameter"
    raise UsageError(
        f"axis {axis.id!r} has no {what} that criterion {criterion.name!r} could look at; add the axis to ignore"
    )


def _seen(axis: Axis, criterion: Criterion, known: Mapping[str, Tensor]) -> list[AxisMember]:
    """What sums over the axis and was seen; at least one."""
    found = [m for m in axis.members if m.role == "in" and m.name in known]
    if not found:
        raise UsageError(
            f"criterion {criterion.name!r} looks at what enters the layers that sum over axis {axis.id!r}, and none of "
            "them can be observed: add the axis to ignore, or take a criterion of weights or gradients"
        )
    return found


def _gates(members: Sequence[AxisMember], gates: Mapping[str, Tensor]) -> Tensor:
    """(positions, samples): the derivative by a gate is the sum over all that it opens."""
    parts = [gates[m.name][torch.from_numpy(m.entries)].sum(dim=1) for m in members]
    samples = min(p.shape[1] for p in parts)
    return torch.stack([p[:, :samples] for p in parts]).sum(dim=0)


def _maps(member: AxisMember, seen: Tensor) -> Tensor:
    """(positions, samples, repeats × rows, columns) from (inputs, samples, rows, columns)."""
    taken = seen[torch.from_numpy(member.entries)].transpose(1, 2)
    return taken.reshape(*taken.shape[:2], -1, taken.shape[-1])


def _scale(axis: Axis, tensors: Mapping[str, Tensor], criterion: Criterion, evidence: Evidence) -> Tensor:
    found = [m for m in axis.members if m.name in evidence.scales]
    if not found:
        raise UsageError(
            f"axis {axis.id!r} has no batch norm with factors, which criterion {criterion.name!r} looks at: "
            "add the axis to ignore, or take another criterion"
        )
    return _matrix(found, tensors, "weight")


def _losses(axis: Axis, criterion: Criterion, evidence: Evidence) -> Tensor:
    if axis.id not in evidence.losses:
        raise UsageError(
            f"criterion {criterion.name!r} eliminates from the layers that sum over axis {axis.id!r}, and of none of "
            "them is there a Gram matrix: add the axis to ignore, or take another criterion"
        )
    return evidence.losses[axis.id]


def _matrix(members: Sequence[AxisMember], tensors: Mapping[str, Tensor], what: str) -> Tensor:
    """(positions, rest) of all members side by side, in at least single precision."""
    given = [tensors[m.name] for m in members]
    count = len(members[0].entries)
    widths = [t.numel() // max(t.shape[m.dim], 1) * m.entries.shape[1] for m, t in zip(members, given, strict=True)]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in given) else torch.float32
    result = torch.empty((count, sum(widths)), dtype=dtype, device=given[0].device)
    for member, tensor, into in zip(members, given, result.split(widths, 1), strict=True):  # type: ignore[no-untyped-call]
        step = max(1, _BLOCK * count // max(tensor.numel(), 1))
        for start in range(0, count, step):
            view = member.view(tensor, slice(start, start + step))
            if not bool(torch.isfinite(view).all()):
                raise ModelError(
                    f"the {what} of {member.name!r} holds NaN or infinite values: repair it before pruning"
                )
            into[start : start + step] = view
    return result

"""From axes and parameters to scores: the part that no criterion has to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretoprune.core.axis import Axis, AxisMember, Role, Scores
from paretoprune.core.errors import DataError, ModelError, PruneError, UsageError
from paretoprune.core.protocols import Criterion, View

_BLOCK = 1 << 20
"""Elements that are copied at a time: a network that just fits leaves no room for copies of its largest weight."""
FALLBACK: tuple[Role, ...] = ("out", "in", "each")
"""Where an axis has no member of the criterion's role, the next role that it has is looked at."""


def score_axes(
    axes: Sequence[Axis],
    tensors: Mapping[str, Tensor],
    criterion: Criterion,
    gradients: Iterable[Mapping[str, Tensor]] | None = None,
) -> Scores:
    """Scores of every given axis; with gradients, the mean over the batches' scores.

    `tensors` are the parameters and buffers by name; each item of `gradients` those of one batch. Raises UsageError for
    an axis that stands in no floating-point tensor, DataError without gradients, PruneError for a score that is unfit.
    """
    if not criterion.needs_gradients:
        scores = {axis.id: _score(axis, tensors, criterion, None) for axis in axes}
        return Scores(scores, criterion.name)
    total: dict[str, NDArray[np.float64]] = {}
    batches = 0
    for batch in gradients or ():
        batches += 1
        for axis in axes:
            found = _score(axis, tensors, criterion, batch)
            total[axis.id] = total[axis.id] + found if axis.id in total else found
    if batches == 0:
        raise DataError(
            f"criterion {criterion.name!r} needs gradients and got none: give calibration batches with labels"
        )
    return Scores({axis: value / batches for axis, value in total.items()}, criterion.name)


def _score(
    axis: Axis, tensors: Mapping[str, Tensor], criterion: Criterion, gradients: Mapping[str, Tensor] | None
) -> NDArray[np.float64]:
    members = _members(axis, criterion, tensors, gradients)
    weight = _matrix(members, tensors, "weight")
    grad = None if gradients is None else _matrix(members, gradients, "gradient")
    score = criterion.score(View(weight, grad))
    if tuple(score.shape) != (axis.size,):
        raise PruneError(
            f"criterion {criterion.name!r} gave shape {tuple(score.shape)} for axis {axis.id!r}; "
            f"expected ({axis.size},)"
        )
    if not bool((torch.isfinite(score) & (score >= 0)).all()):
        raise PruneError(
            f"criterion {criterion.name!r} gave a negative, infinite or NaN score for axis {axis.id!r}: "
            "scores must be finite and >= 0"
        )
    return score.detach().double().cpu().numpy()


def _members(
    axis: Axis, criterion: Criterion, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None
) -> list[AxisMember]:
    """The axis's members of the criterion's role, or of the first role in FALLBACK that it has."""
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

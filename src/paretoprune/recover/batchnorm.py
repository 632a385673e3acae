"""Running statistics of batch normalisations, taken anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from paretoprune.core.data import take
from paretoprune.core.errors import DataError
from paretoprune.core.graph import BatchNorm, Program
from paretoprune.recover.inputs import device_of, several, to_device


class Moments:
    """Pooled mean and squared deviations per channel (dimension 1), double precision, on the CPU (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.deviation = torch.zeros(())

    def add(self, entering: Tensor) -> None:
        values = values_per_channel(entering)
        dims = [d for d in range(entering.ndim) if d != 1]
        single = entering.detach()
        single = single if single.dtype == torch.float64 else single.float()
        variance, mean = torch.var_mean(single, dim=dims, correction=0)
        variance, mean = variance.double().cpu(), mean.double().cpu()
        total = self.count + values
        off = mean - self.mean
        self.deviation = self.deviation + variance * values + off.square() * (self.count * values / total)
        self.mean = self.mean + off * (values / total)
        self.count = total


def values_per_channel(entering: Tensor) -> int:
    return entering.numel() // entering.shape[1]


class _Watched(Moments):
    """Those of what enters a batch norm that normalises by the batch: a batch must have a variance."""

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        self.norm = norm

    def add(self, entering: Tensor) -> None:
        if values_per_channel(entering) < 2:
            raise DataError(
                f"batch norm {self.norm.node!r} sees one value per channel: no variance can be estimated from a "
                "batch of one sample; give batches of at least 2"
            )
        super().add(entering)


def recalibrate(program: Program, batches: Iterable[Any], samples: int = 1024) -> tuple[str, ...]:
    """Write the mean and unbiased variance over about `samples` samples into every batch norm's running statistics.

    Every layer is fed by the batch statistics of those before it. Batches of one sample are left out once larger ones
    were seen. Returns the nodes that were written. Raises DataError for no batches, for one value per channel, or for
    values that are not finite (nothing is written then).
    """
    if not program.batch_norms:
        return ()
    found = [_Watched(norm) for norm in program.batch_norms]
    watch: dict[str, Callable[[Tensor], None]] = {one.norm.node: one.add for one in found}
    device = device_of(program.module)
    seen = False
    for inputs, _ in several(take(batches, samples)):
        program.observe(to_device(inputs, device), watch, batch_statistics=True)
        seen = True
    if not seen:
        raise DataError("no calibration batch: batch norms cannot be recalibrated")
    reached = [one for one in found if one.count]
    for one in reached:
        if not bool(torch.isfinite(one.mean).all() & torch.isfinite(one.deviation).all()):
            raise DataError(f"what enters batch norm {one.norm.node!r} is not finite: check inputs and weights")
    buffers = dict(program.module.named_buffers(remove_duplicate=False))
    for one in reached:
        buffers[one.norm.mean].copy_(one.mean)
        buffers[one.norm.var].copy_(one.deviation / (one.count - 1))
    return tuple(one.norm.node for one in reached)

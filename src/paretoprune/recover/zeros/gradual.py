"""Zeros that come in while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from paretoprune.core.errors import UsageError
from paretoprune.recover.sparse.schedule import Schedule, schedule_of
from paretoprune.recover.zeros.masked import Masked

Choose = Callable[[str, Tensor, float], Tensor]
"""From a weight's name, its values and the share of the way (0 to 1) to its mask, True where it stays."""
UPDATES = 50
"""How many times masks are chosen anew on the way, at most."""


class Gradual(Masked):
    """Zhu & Gupta 2017, "To prune, or not to prune" (arXiv:1710.01878), eq. 1, from no zeros to all that are asked for.

    Every `every` steps, up to the share `until` of the training, masks are chosen anew; what is zero stays so. The rest
    of the training has the final masks. By default there are up to 50 choices.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Iterable[str],
        choose: Choose,
        *,
        schedule: str | Schedule = "cubic",
        every: int | None = None,
        until: float = 0.75,
    ) -> None:
        super().__init__(module, names)
        self.choose, self.schedule, self.every, self.until = choose, schedule_of(schedule), every, check_until(until)
        check_every(every)

    def after_step(self, step: int, steps: int) -> None:
        super().after_step(step, steps)
        last = max(1, round(self.until * steps))
        done, every = step + 1, self.every or max(1, last // UPDATES)
        if done > last or (done % every and done < last):
            return
        way = self.schedule(done / last) if done < last else 1.0
        self.put({n: self.masks[n] & self._chosen(n, way) for n in self.parameters})

    def _chosen(self, name: str, way: float) -> Tensor:
        mask = self.masks[name]
        return self.choose(name, self.parameters[name].detach(), way).to(mask.device)


def check_until(until: float) -> float:
    if isinstance(until, bool) or not isinstance(until, (int, float)) or not 0 < until <= 1:
        raise UsageError(f"until={until!r}: give the share of the training with changes, above 0 and at most 1")
    return float(until)


def check_every(every: int | None) -> None:
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise UsageError(f"every={every!r}: give a whole number of steps, at least 1")

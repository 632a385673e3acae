"""Points drawn evenly: the baseline that every other searcher must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paretoprune.search.ask_tell import AskTell

if TYPE_CHECKING:
    import optuna


class RandomSearch(AskTell):
    """Each width evenly and on its own."""

    name = "random"

    def sampler(self, seed: int, budget: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.RandomSampler(seed=seed)

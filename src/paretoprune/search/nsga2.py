"""NSGA-II (Deb et al., "A fast and elitist multiobjective genetic algorithm", IEEE TEVC 2002) through Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paretoprune.search.ask_tell import AskTell

if TYPE_CHECKING:
    import optuna


class NSGA2(AskTell):
    """Evolves the seeds. The population is a sixth of the budget, within 8 to 50, so that there are generations."""

    name = "nsga2"

    def sampler(self, seed: int, budget: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.NSGAIISampler(population_size=min(50, max(8, budget // 6)), seed=seed)

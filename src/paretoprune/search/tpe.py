"""Multi-objective TPE (Ozaki et al., "Multiobjective tree-structured Parzen estimator", JAIR 2022) through Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paretoprune.search.ask_tell import AskTell

if TYPE_CHECKING:
    import optuna


class TPE(AskTell):
    """Models all axes together: widths of one network depend on each other."""

    name = "tpe"

    def sampler(self, seed: int, budget: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.TPESampler(multivariate=True, seed=seed)

"""What the searchers through Optuna share. Each of them only says which sampler it uses.

The study lives in memory and holds nothing that a list of (widths, objectives) cannot rebuild: our journal is the
truth. The sampler is made anew for every proposal, seeded by its number, so that what comes next depends on the past
alone and a resumed search goes on as if it had never stopped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from paretoprune.core.protocols import Choice, Proposal
from paretoprune.search.ledger import Ledger, checked
from paretoprune.search.space import Key

if TYPE_CHECKING:
    import optuna

TRIES = 16
"""So often a sampler may repeat known points before one is drawn for it."""


class AskTell(ABC):
    """A searcher over an Optuna sampler; minimises (error, cost), starts from `seeds`, proposes no point twice."""

    name: str

    def __init__(
        self, choices: Sequence[Choice], *, seeds: Sequence[Mapping[str, int]] = (), budget: int = 200, seed: int = 0
    ) -> None:
        self._ledger = Ledger(choices, seeds, budget)
        self._seed = seed
        self._trials: dict[int, optuna.Trial] = {}
        import optuna

        with _quiet():
            self._study = optuna.create_study(directions=["minimize", "minimize"])

    @abstractmethod
    def sampler(self, seed: int, budget: int) -> optuna.samplers.BaseSampler:
        """A fresh sampler; whatever it must remember stands in the study."""

    @property
    def told(self) -> tuple[tuple[Proposal, tuple[float, float] | None], ...]:
        """Every answer so far."""
        return tuple(self._ledger.told)

    def ask(self) -> Proposal | None:
        if self._ledger.spent:
            return None
        with _quiet():
            trial, key = self._new_point()
        return self._open(trial, key)

    def tell(self, proposal: Proposal, objectives: Sequence[float] | None) -> None:
        pair = self._ledger.close(proposal, objectives)
        self._finish(self._trials.pop(proposal.number), pair)

    def replay(self, past: Iterable[tuple[Mapping[str, int], Sequence[float] | None]]) -> None:
        """Take up what an earlier run was told, in that order. It counts as spent; a repeated point counts once."""
        for widths, objectives in past:
            pair = checked(objectives)
            key = self._ledger.space.key(widths)
            if key not in self._ledger.seen:
                with _quiet():
                    trial = self._given(key)
                self.tell(self._open(trial, key), pair)

    def _open(self, trial: optuna.Trial, key: Key) -> Proposal:
        proposal = self._ledger.open(key)
        self._trials[proposal.number] = trial
        return proposal

    def _new_point(self) -> tuple[optuna.Trial, Key]:
        """A seed, what the sampler proposes, or, if that keeps repeating itself, any point not seen."""
        seed = self._ledger.next_seed()
        if seed is not None:
            return self._given(seed), seed
        for attempt in range(TRIES):
            trial = self._trial(attempt)
            key = self._suggest(trial)
            if key not in self._ledger.seen:
                return trial, key
            self._finish(trial, None)  # a failed trial leaves no trace in any sampler
        drawn = self._ledger.space.unseen(self._ledger.seen, np.random.default_rng(self._seeds(TRIES)))
        if drawn is None:
            raise RuntimeError("the space is used up")  # `spent` rules it out
        return self._given(drawn), drawn

    def _given(self, key: Key) -> optuna.Trial:
        """A trial at a point that the sampler did not choose."""
        self._study.enqueue_trial(dict(zip(self._ledger.space.axes, key, strict=True)))
        trial = self._trial(TRIES)
        # Read for its effect: only sampling puts a trial into a generation, and a trial whose parameters are all
        # given is never sampled, so that genetic samplers would not see it.
        _ = trial.relative_params
        self._suggest(trial)
        return trial

    def _trial(self, attempt: int) -> optuna.Trial:
        state = np.random.SeedSequence(self._seeds(attempt)).generate_state(1)
        self._study.sampler = self.sampler(int(state[0]), self._ledger.budget)
        return self._study.ask()

    def _seeds(self, attempt: int) -> tuple[int, int, int]:
        return self._seed, self._ledger.asked, attempt

    def _suggest(self, trial: optuna.Trial) -> Key:
        return tuple(trial.suggest_int(c.axis, 0, len(c.widths) - 1) for c in self._ledger.space.choices)

    def _finish(self, trial: optuna.Trial, objectives: tuple[float, float] | None) -> None:
        import optuna

        with _quiet():
            if objectives is None:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, list(objectives))


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log at warnings or above, for as long as we are in there."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)

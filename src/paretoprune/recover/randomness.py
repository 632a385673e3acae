"""Random states of torch, numpy and Python: private to a training, saved with it, and put back."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from paretoprune.recover.inputs import Batch, rounds


def random_state(place: torch.device) -> dict[str, Any]:
    """What the generators stand at; tensors, numbers and strings only."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (kind, keys.tolist(), *rest),  # type: ignore[union-attr]
        "python": random.getstate(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(place)} if place.type == "cuda" else {})


def set_random_state(state: Mapping[str, Any], place: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if place.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], place)


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def private_randomness(seed: int, place: torch.device) -> Iterator[None]:
    """Seeded inside; the caller's states are as before when the block is left."""
    before = random_state(place)
    try:
        seed_everything(seed)
        yield
    finally:
        set_random_state(before, place)


CPU = torch.device("cpu")


class Stream:
    """Batches that are read under a random state of their own.

    What shuffles and augments them then depends on the seed and on how many were read, not on what the network draws:
    a resumed training reads as many again and stands where it was.
    """

    def __init__(self, batches: Iterable[Any], seed: int, name: str) -> None:
        self.batches = rounds(batches, seed, name)
        with private_randomness(seed, CPU):
            self.state = random_state(CPU)

    def next(self) -> Batch:
        before = random_state(CPU)
        try:
            set_random_state(self.state, CPU)
            return next(self.batches)
        finally:
            self.state = random_state(CPU)
            set_random_state(before, CPU)

    def skip(self, count: int) -> None:
        for _ in range(count):
            self.next()

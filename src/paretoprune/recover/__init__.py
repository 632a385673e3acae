"""What gives a pruned network its accuracy back."""

from __future__ import annotations

from paretoprune.recover.apply import Reconstructed, reconstruct_program
from paretoprune.recover.batchnorm import recalibrate
from paretoprune.recover.distill import distill
from paretoprune.recover.elimination import Elimination, Order, order_by_error, order_jointly
from paretoprune.recover.gram import Gram, collect_grams
from paretoprune.recover.least_squares import Reconstruction, reconstruct, reconstruction_error
from paretoprune.recover.sequential import Sequential, reconstruct_sequentially

__all__ = [
    "Elimination",
    "Gram",
    "Order",
    "Reconstructed",
    "Reconstruction",
    "Sequential",
    "collect_grams",
    "distill",
    "order_by_error",
    "order_jointly",
    "recalibrate",
    "reconstruct",
    "reconstruct_program",
    "reconstruct_sequentially",
    "reconstruction_error",
]

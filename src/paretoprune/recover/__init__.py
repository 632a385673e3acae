"""What gives a pruned network its accuracy back."""

from __future__ import annotations

from paretoprune.recover.apply import Reconstructed, reconstruct_program
from paretoprune.recover.batchnorm import recalibrate
from paretoprune.recover.distill import distill
from paretoprune.recover.elimination import Elimination, Order, order_by_error, order_jointly
from paretoprune.recover.gram import Gram, collect_grams
from paretoprune.recover.hidden import Hidden, look_by_module
from paretoprune.recover.inputs import Batch
from paretoprune.recover.least_squares import Reconstruction, reconstruct, reconstruction_error
from paretoprune.recover.loop import Trained
from paretoprune.recover.losses import SoftTargets, frozen_copy, own_loss, own_step, task_loss
from paretoprune.recover.low_rank import (
    Factors,
    factorise,
    factorise_program,
    factorise_space,
    program_errors,
    rank_errors,
)
from paretoprune.recover.nested import Nested, Sandwich
from paretoprune.recover.sequential import Sequential, reconstruct_sequentially
from paretoprune.recover.training import Training, train
from paretoprune.recover.zeros import Gradual, Masked, RigL, Units

__all__ = [
    "Batch",
    "Elimination",
    "Factors",
    "Gradual",
    "Gram",
    "Hidden",
    "Masked",
    "Nested",
    "Order",
    "Reconstructed",
    "Reconstruction",
    "RigL",
    "Sandwich",
    "Sequential",
    "SoftTargets",
    "Trained",
    "Training",
    "Units",
    "collect_grams",
    "distill",
    "factorise",
    "factorise_program",
    "factorise_space",
    "frozen_copy",
    "look_by_module",
    "order_by_error",
    "order_jointly",
    "own_loss",
    "own_step",
    "program_errors",
    "rank_errors",
    "recalibrate",
    "reconstruct",
    "reconstruct_program",
    "reconstruct_sequentially",
    "reconstruction_error",
    "task_loss",
    "train",
]

"""What a batch means: loss, score and checks; the checks of the batches; and the figures of a network's answers."""

from __future__ import annotations

from paretoprune.tasks.batches import Batches, fitted, prepare
from paretoprune.tasks.check import CheckedData, check_data
from paretoprune.tasks.evaluate import evaluate, wilson
from paretoprune.tasks.figures import Answers, against_original, answers, train_scores, with_gap
from paretoprune.tasks.one_input import check_shift, input_range
from paretoprune.tasks.robustness import EPS, SAMPLES, Shifting
from paretoprune.tasks.table import TASKS, task_of

__all__ = [
    "EPS",
    "SAMPLES",
    "TASKS",
    "Answers",
    "Batches",
    "CheckedData",
    "Shifting",
    "against_original",
    "answers",
    "check_data",
    "check_shift",
    "evaluate",
    "fitted",
    "input_range",
    "prepare",
    "task_of",
    "train_scores",
    "wilson",
    "with_gap",
]

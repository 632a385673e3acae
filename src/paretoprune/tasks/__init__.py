"""What a batch means: loss, score and checks; and the checks of the batches themselves."""

from __future__ import annotations

from paretoprune.tasks.batches import Batches, fitted, prepare
from paretoprune.tasks.check import CheckedData, check_data
from paretoprune.tasks.evaluate import evaluate, wilson
from paretoprune.tasks.table import TASKS, task_of

__all__ = ["TASKS", "Batches", "CheckedData", "check_data", "evaluate", "fitted", "prepare", "task_of", "wilson"]

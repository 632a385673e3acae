"""Capture, axes, surgery and the self-check."""

from __future__ import annotations

from paretoprune.graph.model import check_model
from paretoprune.graph.rebuild import rebuild
from paretoprune.graph.reference import check, randomised
from paretoprune.graph.serialize import dump, load
from paretoprune.graph.surgery import Cut, cut, slice_tensor
from paretoprune.graph.traced import TracedGraph, tensors_of, trace

__all__ = [
    "Cut",
    "TracedGraph",
    "check",
    "check_model",
    "cut",
    "dump",
    "load",
    "randomised",
    "rebuild",
    "slice_tensor",
    "tensors_of",
    "trace",
]

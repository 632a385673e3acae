"""Capture, axes, surgery and the self-check."""

from __future__ import annotations

from paretoprune.graph.activations import activated, put_activations
from paretoprune.graph.flat import captured, flat
from paretoprune.graph.fold_norms import fold_norms
from paretoprune.graph.gates import gate_derivatives
from paretoprune.graph.influence import influences
from paretoprune.graph.low_rank import Split
from paretoprune.graph.model import check_model, check_sound, private_copy
from paretoprune.graph.rebuild import Rebuilt, put_tensors, rebuild, rebuilt
from paretoprune.graph.rebuild_blocks import put_identities
from paretoprune.graph.rebuild_compare import Difference, difference, figures, outputs_differ
from paretoprune.graph.rebuild_edits import Edits, apply_edits
from paretoprune.graph.rebuild_thin import put_thin, rebuilt_thin
from paretoprune.graph.reference import check, randomised
from paretoprune.graph.serialize import dump, load
from paretoprune.graph.surgery import Cut, Pieces, cut, pieces_of, slice_tensor
from paretoprune.graph.taps import hidden_nodes, kept_at, new_parameters, selected, tapped
from paretoprune.graph.thin import ThinNames, names_of, thinned
from paretoprune.graph.thin_check import check_thin
from paretoprune.graph.traced import TracedGraph, tensors_of, trace
from paretoprune.graph.weights import LayerWeights, layer_weights

__all__ = [
    "Cut",
    "Difference",
    "Edits",
    "LayerWeights",
    "Pieces",
    "Rebuilt",
    "Split",
    "ThinNames",
    "TracedGraph",
    "activated",
    "apply_edits",
    "captured",
    "check",
    "check_model",
    "check_sound",
    "check_thin",
    "cut",
    "difference",
    "dump",
    "figures",
    "flat",
    "fold_norms",
    "gate_derivatives",
    "hidden_nodes",
    "influences",
    "kept_at",
    "layer_weights",
    "load",
    "names_of",
    "new_parameters",
    "outputs_differ",
    "pieces_of",
    "private_copy",
    "put_activations",
    "put_identities",
    "put_tensors",
    "put_thin",
    "randomised",
    "rebuild",
    "rebuilt",
    "rebuilt_thin",
    "selected",
    "slice_tensor",
    "tapped",
    "tensors_of",
    "thinned",
    "trace",
]

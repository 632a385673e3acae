"""The sparse kernels as operators of OpenVINO: a library that its runtime loads, and networks in which they stand."""

from __future__ import annotations

from paretoprune.sparsity.openvino_ops.choice import Choice, choose
from paretoprune.sparsity.openvino_ops.read import read
from paretoprune.sparsity.openvino_ops.replace import Replaced, replace

__all__ = ["replace", "Replaced", "choose", "Choice", "read"]

"""Runtimes: export, load and run networks on them, and measure what they cost there."""

from __future__ import annotations

from paretoprune.core.layers import LayerSpec
from paretoprune.targets.align import Staircase, staircase
from paretoprune.targets.cost import CostTable, conv_cost, measure_layer
from paretoprune.targets.energy import AnalyticEstimate, CpuSecondsEstimate
from paretoprune.targets.fingerprint import fingerprint_id
from paretoprune.targets.latency import (
    Clock,
    Comparison,
    Latency,
    Timing,
    compare,
    compare_fresh,
    measure_latency,
    measure_latency_fresh,
)
from paretoprune.targets.macs import Workload, macs_of_file, workload_of_file
from paretoprune.targets.measure import compare_files, maker, measure_file
from paretoprune.targets.memory import peak_memory
from paretoprune.targets.meters import Reader, open_meter
from paretoprune.targets.ort import OnnxRuntime
from paretoprune.targets.serving import serving
from paretoprune.targets.session import OrtRunner
from paretoprune.targets.size import size_bytes
from paretoprune.targets.table import TARGETS, find_target
from paretoprune.targets.tokens import token_latency
from paretoprune.targets.zeus import ZeusReader

__all__ = [
    "TARGETS",
    "AnalyticEstimate",
    "Clock",
    "Comparison",
    "CostTable",
    "CpuSecondsEstimate",
    "Latency",
    "LayerSpec",
    "OnnxRuntime",
    "OrtRunner",
    "Reader",
    "Staircase",
    "Timing",
    "Workload",
    "ZeusReader",
    "compare",
    "compare_files",
    "compare_fresh",
    "conv_cost",
    "find_target",
    "fingerprint_id",
    "macs_of_file",
    "maker",
    "measure_file",
    "measure_latency",
    "measure_latency_fresh",
    "measure_layer",
    "open_meter",
    "peak_memory",
    "serving",
    "size_bytes",
    "staircase",
    "token_latency",
    "workload_of_file",
]

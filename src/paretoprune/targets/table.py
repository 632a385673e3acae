"""The targets on offer. One that is not here does not exist yet."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import Target
from paretoprune.targets.cuda import Cuda
from paretoprune.targets.executorch import ExecuTorch
from paretoprune.targets.graph_file import Graphs
from paretoprune.targets.openvino import OpenVino
from paretoprune.targets.openvino_sparse import OpenVinoSparse
from paretoprune.targets.ort import OnnxRuntime
from paretoprune.targets.ort_gpu import OnnxRuntimeCuda, OnnxRuntimeTensorRt
from paretoprune.targets.sparse_cpu import Packing, SparseCpu
from paretoprune.targets.torch_target import Torch, TorchCompile

TARGETS: Mapping[str, Callable[[int], Target]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "executorch": ExecuTorch,
    "onnxruntime-cuda": OnnxRuntimeCuda,
    "onnxruntime-tensorrt": OnnxRuntimeTensorRt,
}
GRAPH_TARGETS: Mapping[str, Callable[[int, Graphs], Target]] = {
    "torch": Torch,
    "torch-compile": TorchCompile,
    "cuda": Cuda,
}
"""Those whose files hold a graph of ours; `pipeline.targets.find_target` brings what reads and writes it."""

PACKED_TARGETS: Mapping[str, Callable[[int, Any], Target]] = {
    "sparse-cpu": SparseCpu,
    "openvino-sparse": OpenVinoSparse,
}
"""Those whose files hold packed weights; likewise."""

_METHODS = ("fingerprint", "export", "load")


def find_target(
    given: str | Target, threads: int = 1, graphs: Graphs | None = None, packing: Packing | None = None
) -> Target:
    """A target by name, by reference ("package.module:Class") or as it is. Raises UsageError for anything else.

    `threads` is for targets by name; one that comes as it is has its own, and is refused if others were asked for.
    """
    if isinstance(given, str) and given in TARGETS:
        return TARGETS[given](threads)
    if isinstance(given, str) and given in GRAPH_TARGETS:
        if graphs is None:
            raise UsageError(f"target {given!r} needs what reads graphs: use paretoprune.pipeline.targets.find_target")
        return GRAPH_TARGETS[given](threads, graphs)
    if isinstance(given, str) and given in PACKED_TARGETS:
        if packing is None:
            raise UsageError(f"target {given!r} needs what packs weights: use paretoprune.pipeline.targets.find_target")
        return PACKED_TARGETS[given](threads, packing)
    target = _own(given)
    if threads not in (1, target.threads):
        raise UsageError(f"target {given!r} runs with threads={target.threads}, not {threads}: set them on the target")
    return target


def _own(given: str | Target) -> Target:
    if not isinstance(given, str):
        return _checked(given, repr(given))
    offered = ", ".join((*TARGETS, *GRAPH_TARGETS, *PACKED_TARGETS))
    if given.lower() == "tpu":
        raise UsageError(f"TPUs are not offered: nothing here can measure on one; offered: {offered}")
    if ":" not in given:
        raise UsageError(f"unknown target {given!r}; offered: {offered}, or your own as 'package.module:Class'")
    module_name, _, name = given.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"target {given!r} cannot be imported: {error}") from error
    return _checked(factory() if callable(factory) else factory, given)


def _checked(target: Target, given: str) -> Target:
    missing = [m for m in _METHODS if not callable(getattr(target, m, None))]
    missing += [a for a in ("name", "threads", "precisions") if not hasattr(target, a)]
    if missing:
        raise UsageError(f"{given} is not a target: it has no {', '.join(missing)}")
    return target

"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from paretoprune.targets.fingerprint import machine_facts, version_of
from paretoprune.targets.onnx_target import Maker, OnnxTarget
from paretoprune.targets.session import OrtRunner


class OnnxRuntime(OnnxTarget):
    """Implements core.protocols.Target."""

    name = "onnxruntime"
    precisions: tuple[str, ...] = ("fp32", "int8", "int8-dynamic", "int8-weights", "fp16")

    def fingerprint(self) -> Mapping[str, str]:
        versions = {package: version_of(package) for package in ("onnxruntime", "onnx", "torch")}
        return {"target": self.name, "threads": str(self.threads), **machine_facts(), **versions}

    def load(self, path: Path) -> OrtRunner:
        return OrtRunner.open(Path(path), self.threads)

    def makers(self) -> Mapping[str, Maker]:
        from paretoprune.targets.int8 import quantize_dynamically, quantize_statically

        return {"int8": quantize_statically, "int8-dynamic": quantize_dynamically}

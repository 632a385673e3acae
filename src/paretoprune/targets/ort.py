"""ONNX Runtime on the CPU, fp32 and static int8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from paretoprune.targets.fingerprint import machine_facts, version_of
from paretoprune.targets.onnx_target import OnnxTarget
from paretoprune.targets.session import OrtRunner

if TYPE_CHECKING:
    from paretoprune.targets.feeds import Feed


class OnnxRuntime(OnnxTarget):
    """Implements core.protocols.Target."""

    name = "onnxruntime"

    def fingerprint(self) -> Mapping[str, str]:
        versions = {package: version_of(package) for package in ("onnxruntime", "onnx", "torch")}
        return {"target": self.name, "threads": str(self.threads), **machine_facts(), **versions}

    def load(self, path: Path) -> OrtRunner:
        return OrtRunner.open(Path(path), self.threads)

    def quantized(self, fp32: Path, path: Path, calibration: Iterable[Feed]) -> Path:
        from paretoprune.targets.int8 import quantize_file

        return quantize_file(fp32, path, calibration, self.threads)

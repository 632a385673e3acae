"""ONNX Runtime on the CPU, fp32 and static int8."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from paretoprune.core.errors import TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.targets.fingerprint import machine_facts, version_of
from paretoprune.targets.session import OrtRunner

if TYPE_CHECKING:
    from torch import nn


class OnnxRuntime:
    """Implements core.protocols.Target."""

    name = "onnxruntime"
    precisions: tuple[str, ...] = ("fp32", "int8")

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads={threads}: at least one thread is needed")
        self.threads = threads

    def fingerprint(self) -> Mapping[str, str]:
        versions = {package: version_of(package) for package in ("onnxruntime", "onnx", "torch")}
        return {"target": self.name, "threads": str(self.threads), **machine_facts(), **versions}

    def export(
        self,
        module: nn.Module,
        example: Example,
        path: Path,
        precision: str = "fp32",
        calibration: Iterable[Example] | None = None,
    ) -> Path:
        """Write one ONNX file, reload it and compare it with `module` at two batch sizes. Returns `path`.

        Raises ExportMismatchError with the largest error if they disagree, TargetError if the export is impossible.
        """
        from paretoprune.targets.export import export_fp32
        from paretoprune.targets.feeds import feed_of
        from paretoprune.targets.int8 import quantize_file

        if precision == "fp32":
            return export_fp32(self.load, module, example, Path(path))
        if precision == "int8":
            if calibration is None:
                raise TargetError("int8 needs calibration batches to learn the ranges; give calibration=")
            with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder:
                fp32 = export_fp32(self.load, module, example, Path(folder) / "fp32.onnx")
                return quantize_file(fp32, Path(path), (feed_of(inputs) for inputs in calibration), self.threads)
        raise UsageError(f"precision {precision!r} is not offered by {self.name}; use {' or '.join(self.precisions)}")

    def load(self, path: Path) -> OrtRunner:
        return OrtRunner.open(Path(path), self.threads)

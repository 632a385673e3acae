"""What targets that run ONNX files share: threads, and an export that is checked on the runtime itself."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from paretoprune.core.errors import TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.targets.session import FileRunner

if TYPE_CHECKING:
    from torch import nn

    from paretoprune.targets.feeds import Feed
    from paretoprune.targets.template import Templates


class OnnxTarget:
    """Implements core.protocols.Target but for `fingerprint`, `load` and `quantized`."""

    name: str
    threads: int
    precisions: tuple[str, ...] = ("fp32", "int8")
    _passes: tuple[str, ...] | None = None
    _templates: Templates | None = None

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads={threads}: at least one thread is needed")
        self.threads = threads

    def export(
        self,
        module: nn.Module,
        example: Example,
        path: Path,
        precision: str = "fp32",
        calibration: Iterable[Example] | None = None,
    ) -> Path:
        """Write one ONNX file, reload it here and compare it with `module` at two batch sizes. Returns `path`.

        int8 is compared with the fp32 file. Raises ExportMismatchError with the largest error if they disagree,
        TargetError if the export is impossible.
        """
        from paretoprune.targets.feeds import feed_of

        if precision == "fp32":
            return self._exported(module, example, Path(path))
        if precision not in self.precisions:
            raise UsageError(
                f"precision {precision!r} is not offered by {self.name}; use {' or '.join(self.precisions)}"
            )
        if calibration is None:
            raise TargetError("int8 needs calibration batches to learn the ranges; give calibration=")
        with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder:
            fp32 = self._exported(module, example, Path(folder) / "fp32.onnx")
            return self.quantized(fp32, Path(path), (feed_of(inputs) for inputs in calibration))

    def cleaning(self, passes: Sequence[str]) -> Self:
        """The same target, whose files go through these passes of `targets.clean` alone. Raises UsageError."""
        from paretoprune.targets.clean import PASSES

        if isinstance(passes, str) or (unknown := [name for name in passes if name not in PASSES]):
            given = passes if isinstance(passes, str) else unknown[0]
            raise UsageError(f"cleanup: {given!r} is no list of passes; there are {', '.join(map(repr, PASSES))}")
        other = copy.copy(self)
        other._passes = tuple(name for name in PASSES if name in passes)
        return other

    def cutting(self, templates: Templates) -> Self:
        """The same target; what it exports is cut from `templates` where that is right, and adds to them."""
        other = copy.copy(self)
        other._templates = templates
        return other

    def _exported(self, module: nn.Module, example: Example, path: Path) -> Path:
        from paretoprune.targets.export import export_fp32

        return export_fp32(self.load, module, example, path, self._passes, self._templates)

    def load(self, path: Path) -> FileRunner:
        raise NotImplementedError

    def quantized(self, fp32: Path, path: Path, calibration: Iterable[Feed]) -> Path:
        """Write the int8 form of an exported file to `path` and check it. Raises what `export` does."""
        raise NotImplementedError

"""What targets that run ONNX files share: threads, and an export that is checked on the runtime itself."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from paretoprune.core.errors import TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.precision import PRECISIONS, check_offered
from paretoprune.targets.session import FileRunner

if TYPE_CHECKING:
    from torch import nn

    from paretoprune.targets.feeds import Feed
    from paretoprune.targets.template import Templates

ALIKE_SAMPLES = 31


Maker = Callable[[Path, Path, "Sequence[Feed]", Collection[str]], None]
"""(fp32 file, file to write, feeds to learn ranges from, names of initializers whose layers stay as they are)."""


class OnnxTarget:
    """Implements core.protocols.Target but for `fingerprint`, `load` and `makers`."""

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
        bits: Mapping[str, str] | None = None,
    ) -> Path:
        """Write one ONNX file, reload it here and compare it with `module` at two batch sizes. Returns `path`.

        Other precisions are compared with the fp32 file. `bits`: by weight name or pattern, another precision of single
        layers. Raises ExportMismatchError with the largest error if they disagree, TargetError if the export is
        impossible, PlanError for `bits` that fit nothing.
        """
        from paretoprune.targets.feeds import feed_of

        self.check(precision)
        if precision == "fp32" and not bits:
            return self._exported(module, example, Path(path))
        if calibration is None and PRECISIONS[precision].calibrated:
            raise TargetError(f"{precision} needs calibration batches to learn the ranges; give calibration=")
        with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder:
            fp32 = self._exported(module, example, Path(folder) / "fp32.onnx")
            feeds = alike(example) if calibration is None else (feed_of(inputs) for inputs in calibration)
            return self.quantized(fp32, Path(path), feeds, precision, bits)

    def check(self, precision: str) -> None:
        """Raises UsageError for a precision that is not offered here, TargetError for one that this machine lacks."""
        check_offered(precision, self.precisions, self.name)

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

    def quantized(
        self,
        fp32: Path,
        path: Path,
        calibration: Iterable[Feed],
        precision: str = "int8",
        bits: Mapping[str, str] | None = None,
    ) -> Path:
        """Write another precision of an exported file to `path` and check it. Raises what `export` does."""
        from paretoprune.targets.quantized import write_quantized

        return write_quantized(self, fp32, path, calibration, precision, bits or {})

    def makers(self) -> Mapping[str, Maker]:
        """How files are made whose activations are quantized; in others only weights are stored differently."""
        raise NotImplementedError


def alike(example: Example) -> list[dict[str, NDArray[Any]]]:
    """Feeds of random values like the example's, to compare files on where there are no calibration batches."""
    import torch

    from paretoprune.targets.feeds import array_of, randomised, resized, signature_of

    signature, tensors = signature_of(example)
    generator = torch.Generator().manual_seed(0)
    feeds = []
    for batch in (ALIKE_SAMPLES, 1):
        fresh = [resized(t, batch) if b else t for t, b in zip(tensors, signature.batched, strict=True)]
        values = [array_of(randomised(t, generator)) for t in fresh]
        feeds.append(dict(zip(signature.names, values, strict=True)))
    return feeds

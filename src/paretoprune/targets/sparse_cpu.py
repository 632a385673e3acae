"""Networks with packed sparse weights on the CPU: ONNX Runtime for what is dense, our kernels for the rest.

The file is ONNX in which some layers are operators of the domain "paretoprune" that hold their packed weight; other
runtimes refuse it. Layers are laid out for the processor when the file is loaded, so a file is for none in particular.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from numpy.typing import NDArray

from paretoprune.core.errors import TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.layers import LayerSpec
from paretoprune.targets.fingerprint import machine_facts, version_of
from paretoprune.targets.onnx_target import OnnxTarget

if TYPE_CHECKING:
    from torch import nn

    from paretoprune.targets.sparse_runner import SparseRunner
    from paretoprune.targets.template import Templates

Array = NDArray[Any]
Kernel = Callable[..., Array]
"""(x, residual or None, out or None) -> y."""

Keep = Literal["measured", "all"]
DOMAIN = "paretoprune"
LINEAR, CONV = "SparseLinear", "SparseConv"


@dataclass(frozen=True)
class LayerParts:
    """What a file says of one packed layer; checked by whoever makes the kernel."""

    pattern: str
    coding: str
    shape: tuple[int, ...]
    activation: str
    grid: tuple[float, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    value: Array
    at: Array
    scale: Array | None
    bias: Array | None


@dataclass(frozen=True)
class HowToPack:
    """`sample`: inputs of the size that is measured. `rival`: a call that runs a layer (pipeline.packed_race.Case)
    densely; a layer is left dense where that is more than `margin` times as fast. `known`: choices of an earlier
    packing, whose times are taken over. With `keep` "all" nothing is timed."""

    sample: Example
    rival: Callable[[Any], Callable[[], Any]]
    threads: int = 1
    precision: str = "fp32"
    calibration: Iterable[Any] | None = None
    keep: Keep = "measured"
    margin: float = 1.0
    known: Sequence[Any] = ()


class Packing(Protocol):
    """What the pipeline gives to this target, which knows neither graphs nor kernels."""

    reopen: str

    def instruction_set(self) -> str:
        """Raises TargetError where the kernels were not compiled."""
        ...

    def kernel(self, parts: LayerParts, threads: int) -> Kernel:
        """Raises FileError for parts that do not fit together."""
        ...

    def sparse_layers(self, spec: LayerSpec, copies: int, precision: str, threads: int) -> list[Kernel]:
        """Layers of this shape on random weights with the spec's zeros."""
        ...

    def pack(self, module: nn.Module, example: Example, how: HowToPack) -> nn.Module:
        """The network with operators that hold packed weights. It has `choices`, one for each layer."""
        ...


class SparseCpu(OnnxTarget):
    """Implements core.protocols.Target.

    fp32 and int8: weights and inputs of packed layers in 8 bits, all others stay in fp32. Layers are packed where that
    is faster than ONNX Runtime's dense one, measured at the export on one sample; a file of which no layer is faster is
    a plain ONNX file. `keep="all"` packs whatever can be packed, unmeasured.
    """

    name = "sparse-cpu"
    precisions: tuple[str, ...] = ("fp32", "int8")
    gains_from_zeros = True

    def __init__(self, threads: int, packing: Packing, keep: Keep = "measured") -> None:
        super().__init__(threads)
        self._packing, self._keep = packing, keep
        self.reopen: str = packing.reopen
        packing.instruction_set()

    def fingerprint(self) -> Mapping[str, str]:
        versions = {package: version_of(package) for package in ("onnxruntime", "onnx", "torch", "paretoprune")}
        facts = {"threads": str(self.threads), "kernels": self._packing.instruction_set()}
        return {"target": self.name, **facts, **machine_facts(), **versions}

    def describe(self) -> Mapping[str, str]:
        return {"kernels": self._packing.instruction_set(), "dense layers": "ONNX Runtime"}

    def export(  # type: ignore[override]
        self,
        module: nn.Module,
        example: Example,
        path: Path,
        precision: str = "fp32",
        calibration: Iterable[Example] | None = None,
    ) -> Path:
        """Write one file, reload it here and compare it with `module` at two batch sizes. Returns `path`.

        int8 is compared by its signal-to-noise ratio. Raises what OnnxTarget.export does.
        """
        self.check(precision)
        if precision == "int8" and calibration is None:
            raise TargetError("int8 needs calibration batches to learn the ranges; give calibration=")
        batches = None if calibration is None else list(calibration)
        from paretoprune.targets.sparse_export import export_packed, one_sample

        how = HowToPack(one_sample(example), self._rival, self.threads, precision, batches, self._keep)
        return export_packed(self.load, self._packing.pack, module, example, Path(path), how, self._passes)

    def _rival(self, case: Any) -> Callable[[], Any]:
        from paretoprune.targets.sparse_export import dense_layer

        return dense_layer(case, self.threads)

    def layer(self, spec: LayerSpec, copies: int, precision: str) -> Callable[[], Any]:
        """A call that runs copies of one layer, for the cost table; a dense one in fp32, as in the files."""
        if not spec.zeros:
            from paretoprune.targets.layers import layer_model
            from paretoprune.targets.session import OrtRunner, open_session

            model = layer_model(spec, copies).SerializeToString()
            runner, feed = OrtRunner(open_session(model, self.threads, f"{spec}"), f"{spec}"), {"x": spec.example()}
            return lambda: runner(feed)
        kernels = self._packing.sparse_layers(spec, copies, precision, self.threads)
        x = spec.example()
        buffers = [kernel(x, None, None) for kernel in kernels]
        return lambda: [kernel(x, None, y) for kernel, y in zip(kernels, buffers, strict=True)]

    def cutting(self, templates: Templates) -> Self:
        """Which layers are packed depends on their zeros, so no file is cut from another."""
        return copy.copy(self)

    def quantized(self, fp32: Path, path: Path, *_: Any, **__: Any) -> Path:
        raise UsageError(f"target {self.name}: give precision='int8' to export; its fp32 files are not quantized")

    def load(self, path: Path) -> SparseRunner:
        """Raises FileError for a file that cannot be trusted or read, TargetError if it does not run here."""
        from paretoprune.targets.sparse_runner import SparseRunner

        return SparseRunner.open(Path(path), self._packing, self.threads)

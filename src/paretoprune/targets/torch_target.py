"""PyTorch itself on the CPU: eager, and through `torch.compile` (inductor).

The file is one of `graph_file`: a graph of tensor operators that is read without unpickling, with the batch dynamic.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretoprune.core.errors import TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.layers import LayerSpec
from paretoprune.core.precision import check_offered
from paretoprune.targets.fingerprint import machine_facts, version_of
from paretoprune.targets.graph_file import SUFFIX, GraphFile, Graphs, read
from paretoprune.targets.traits import checked_suffix

if TYPE_CHECKING:
    from torch import nn

    from paretoprune.targets.torch_runner import TorchRunner

DTYPES: Mapping[str, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""A precision, and the type that everything in the network with a fraction has."""


class Torch:
    """Implements core.protocols.Target. Any batch; on one thread it computes on the calling one.

    In bf16 and fp16 the whole network is converted, and its inputs and outputs stay float32 arrays. A type is offered
    where this CPU computes it, be it slowly: what it costs is measured.
    """

    name = "torch"
    suffix = SUFFIX
    device = "cpu"
    compiles = False

    def __init__(self, threads: int, graphs: Graphs) -> None:
        if threads < 1:
            raise UsageError(f"threads={threads}: at least one thread is needed")
        self.threads, self._graphs = threads, graphs
        self.reopen: str = graphs.reopen

    @property
    def precisions(self) -> tuple[str, ...]:
        return computed_here()

    def fingerprint(self) -> Mapping[str, str]:
        return {
            "target": self.name,
            "threads": str(self.threads),
            **machine_facts(),
            "torch": version_of("torch"),
        }

    def export(
        self,
        module: nn.Module,
        example: Example,
        path: Path,
        precision: str = "fp32",
        calibration: Iterable[Example] | None = None,
    ) -> Path:
        """Write one file, load it here and compare it with `module` at two batch sizes. Returns `path`.

        bf16 and fp16 are compared by their signal-to-noise ratio. Raises ExportMismatchError with the largest error,
        TargetError for a network of another type than `precision`, CaptureError where there is no graph of it.
        """
        from paretoprune.targets.torch_export import export

        check_offered(precision, self.precisions, self.name)
        return export(
            self.load, self._graphs, module, example, checked_suffix(self.name, Path(path), SUFFIX), precision
        )

    def load(self, path: Path) -> TorchRunner:
        """Raises FileError for a file that cannot be trusted or read."""
        from paretoprune.targets.torch_runner import TorchRunner

        held = read(Path(path))
        return TorchRunner(self._call(held, str(path)), held, str(path), self.device, self.threads, self.compiles)

    def _call(self, held: GraphFile, name: str) -> Callable[..., Any]:
        from paretoprune.targets.torch_runner import loaded

        return loaded(self._graphs.load(held.graph, held.tensors), self.device)

    def layer(self, spec: LayerSpec, copies: int, precision: str) -> Callable[[], Any]:
        """A call that runs copies of one layer, for the cost table. In eager mode, also where the target compiles."""
        import torch

        from paretoprune.targets.torch_layers import Copies
        from paretoprune.targets.torch_runner import FAILURES, loaded, settings

        dtype = getattr(torch, DTYPES[precision])
        module, x = loaded(Copies(spec, copies).to(dtype), self.device), torch.from_numpy(spec.example())
        x = x.to(self.device, dtype)

        def work() -> Any:
            with settings(self.threads, self.device):
                return module(x)

        try:
            work()
        except FAILURES as error:
            raise TargetError(f"{self.name} cannot run {spec} in {precision}: {error}") from error
        return work


class TorchCompile(Torch):
    """`torch.compile` with inductor and frozen weights: two compilations a file, of batch 1 and of all larger batches.

    A graph that would fall back to eager mode in part is an error. A compiled file is kept for as long as it is among
    the last few in use, so measuring does not load it afresh. The cost table of a search is taken in eager mode:
    convolutions and linear layers are the same library's kernels, and compiling every width would take minutes.
    """

    name = "torch-compile"
    compiles = True

    def __init__(self, threads: int, graphs: Graphs) -> None:
        super().__init__(threads, graphs)
        check_compiler()
        self._kept: OrderedDict[str, Callable[..., Any]] = OrderedDict()

    def fingerprint(self) -> Mapping[str, str]:
        return {**super().fingerprint(), "compiler": compiler()}

    def describe(self) -> Mapping[str, str]:
        return {"mode": "inductor, weights frozen; compiled once for batch 1 and once for larger ones"}

    def _call(self, held: GraphFile, name: str) -> Callable[..., Any]:
        import torch

        if held.digest not in self._kept:
            module = super()._call(held, name)
            options: dict[str, Any] = {"freezing": True, "compile_threads": 1}
            self._kept[held.digest] = torch.compile(module, fullgraph=True, options=options)
        self._kept.move_to_end(held.digest)
        while len(self._kept) > COMPILED_KEPT:
            self._kept.popitem(last=False)
        return self._kept[held.digest]


COMPILED_KEPT = 3


def compiler() -> str:
    """The C++ compiler that inductor calls: $CXX, else the system's usual one."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return os.environ.get("CXX") or usual


def check_compiler() -> None:
    if shutil.which(compiler().split()[0]) is None:
        raise UsageError(
            f"target 'torch-compile' needs a C++ compiler, and {compiler()!r} is not there: install one (Debian: apt "
            "install g++), name it in the variable CXX, or use target='torch'"
        )


@cache
def computed_here(device: str = "cpu") -> tuple[str, ...]:
    """The precisions in which this device runs a convolution and a linear layer."""
    import torch
    from torch.nn import functional

    def runs(dtype: torch.dtype) -> bool:
        x, weight = (torch.ones(1, 4, 4, 4, device=device, dtype=dtype) for _ in range(2))
        try:
            with torch.no_grad():
                functional.linear(functional.conv2d(x, weight).flatten(1), weight.flatten()[None, :1])
        except RuntimeError:
            return False
        return True

    return tuple(name for name, dtype in DTYPES.items() if runs(getattr(torch, dtype)))

"""Networks with packed sparse weights on OpenVINO: our kernels as its operators, all the rest is that runtime's.

The files are those of target `sparse-cpu` in fp32; which layers are packed is measured against OpenVINO's dense ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paretoprune.core.layers import LayerSpec
from paretoprune.targets.fingerprint import version_of
from paretoprune.targets.openvino import OpenVinoRunner, library
from paretoprune.targets.sparse_cpu import Keep, Packing, SparseCpu

if TYPE_CHECKING:
    pass


class OpenVinoPacking(Packing, Protocol):
    """What the pipeline gives to this target beyond that."""

    def openvino_model(self, data: bytes, name: str, threads: int) -> Any:
        """The openvino.Model of a file; packed layers are our operators. Raises FileError for damaged ones."""
        ...


class OpenVinoSparse(SparseCpu):
    """Implements core.protocols.Target, in fp32. See SparseCpu; in the place of ONNX Runtime stands OpenVINO.

    Loading the first file compiles the operators, once for each version of OpenVINO: a C++ compiler must be there.
    Raises UsageError where openvino is not installed.
    """

    name = "openvino-sparse"
    precisions: tuple[str, ...] = ("fp32",)

    def __init__(self, threads: int, packing: OpenVinoPacking, keep: Keep = "measured") -> None:
        library("openvino")
        super().__init__(threads, packing, keep)
        self._reading = packing

    def fingerprint(self) -> Mapping[str, str]:
        return {**super().fingerprint(), "openvino": version_of("openvino")}

    def describe(self) -> Mapping[str, str]:
        return {**super().describe(), "dense layers": "OpenVINO"}

    def _rival(self, case: Any) -> Callable[[], Any]:
        from paretoprune.targets.sparse_export import dense_layer

        return dense_layer(case, self.threads, self._dense)

    def layer(self, spec: LayerSpec, copies: int, precision: str) -> Callable[[], Any]:
        if spec.zeros:
            return super().layer(spec, copies, precision)
        from paretoprune.targets.layers import layer_model

        runner, feed = self._dense(layer_model(spec, copies).SerializeToString()), {"x": spec.example()}
        return lambda: runner(feed)

    def load(self, path: Path) -> OpenVinoRunner:  # type: ignore[override]
        """Raises FileError for a file that cannot be trusted or read, TargetError if it does not run here."""

        def read(data: bytes) -> Any:
            return self._reading.openvino_model(data, str(path), self.threads)

        return OpenVinoRunner.open(Path(path), self.threads, read)

    def _dense(self, model: bytes) -> OpenVinoRunner:
        return OpenVinoRunner.of(model, self.threads, "a layer")

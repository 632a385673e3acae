"""ExecuTorch with XNNPACK on the CPU, fp32 and static int8: `.pte` files, as phones run them.

The extra `executorch` installs it, and torchao, whose steps quantize for it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretoprune.core.errors import UsageError
from paretoprune.core.graph import Example
from paretoprune.core.precision import check_offered
from paretoprune.targets.fingerprint import machine_facts, version_of
from paretoprune.targets.traits import checked_suffix

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from paretoprune.core.layers import LayerSpec
    from paretoprune.targets.executorch_runner import ExecuTorchRunner

SUFFIX = ".pte"
MOST = 32
"""The largest batch of a file: its memory is planned for it. Larger ones are run in pieces."""


class ExecuTorch:
    """Implements core.protocols.Target. Raises UsageError where ExecuTorch is not installed.

    The batch is dynamic up to 32, for which the memory of inputs and outputs is set aside; a larger batch is run in
    pieces of 32. Threads are a setting of the whole process, made at each call.
    """

    name = "executorch"
    suffix = SUFFIX
    precisions: tuple[str, ...] = ("fp32", "int8")
    reopen = "paretoprune.targets.executorch:loader"

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads={threads}: at least one thread is needed")
        self.threads = threads
        library("executorch.runtime")

    def fingerprint(self) -> Mapping[str, str]:
        versions = {package: version_of(package) for package in ("executorch", "torchao", "torch")}
        return {"target": self.name, "threads": str(self.threads), "backend": "xnnpack", **machine_facts(), **versions}

    def describe(self) -> Mapping[str, str]:
        return {"batch": f"1 to {MOST}; larger ones are run in pieces", "backend": "xnnpack"}

    def export(
        self,
        module: nn.Module,
        example: Example,
        path: Path,
        precision: str = "fp32",
        calibration: Iterable[Example] | None = None,
    ) -> Path:
        """Write one file, load it here and compare it with `module`, int8 by its signal-to-noise ratio.

        Raises ExportMismatchError with the largest error, TargetError where the export is impossible.
        """
        from paretoprune.targets.executorch_export import export

        check_offered(precision, self.precisions, self.name)
        path = checked_suffix(self.name, Path(path), SUFFIX)
        return export(self.load, module, example, path, precision, calibration)

    def load(self, path: Path) -> ExecuTorchRunner:
        """Raises FileError for a file that is missing, altered or not one of ours."""
        from paretoprune.targets.executorch_runner import ExecuTorchRunner

        return ExecuTorchRunner.open(Path(path), self.threads)

    def layer(self, spec: LayerSpec, copies: int, precision: str) -> Callable[[], Any]:
        """A call that runs copies of one layer, for the cost table."""
        from paretoprune.targets.executorch_export import layer_program
        from paretoprune.targets.executorch_runner import ExecuTorchRunner

        name = f"{copies} of {spec}"
        return ExecuTorchRunner.of(*layer_program(spec, copies, precision), name, self.threads).bind(
            {"input": spec.example()}
        )


def loader(name: str, threads: int) -> Callable[[Path], ExecuTorchRunner]:
    """See `targets.traits`, `reopen`."""
    from paretoprune.targets import executorch_runner

    library("executorch.runtime").Runtime.get()
    executorch_runner.set_threads(threads)
    return lambda path: executorch_runner.ExecuTorchRunner.open(path, threads)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' remarks on each other's deprecations and on kernels for other machines."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def library(name: str) -> Any:
    """The module, or UsageError that names the extra."""
    if (known := sys.modules.get(name)) is not None:
        return known
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"target 'executorch' needs {name}, which is not installed or cannot be loaded ({error}): "
            "pip install 'paretoprune[executorch]'"
        ) from error

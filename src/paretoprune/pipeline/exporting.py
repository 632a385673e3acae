"""One door to a target's export, for every precision, single layers in another one included."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from paretoprune.core.errors import UsageError
from paretoprune.core.graph import Example
from paretoprune.core.precision import MIXED, carrier, check_offered
from paretoprune.core.protocols import Target


def check_precision(target: Target, precision: str) -> None:
    """Raises UsageError that lists what the target offers, TargetError for what this machine lacks."""
    check_offered(precision, target.precisions, target.name)
    check = getattr(target, "check", None)
    if check is not None:
        check(precision)


def write(
    target: Target,
    module: nn.Module,
    example: Example,
    path: Path,
    precision: str = "fp32",
    calibration: Iterable[Example] | None = None,
    bits: Mapping[str, str] | None = None,
) -> Path:
    """`target.export` with `bits`. Raises UsageError where the target cannot write single layers in another."""
    check_precision(target, precision)
    if precision == MIXED:
        from paretoprune.pipeline.mixed import mixed_bits

        calibration = list(calibration or ())
        bits = {**(bits or {}), **mixed_bits(target, module, example, calibration)}
        precision = carrier(MIXED)
    if not bits:
        return target.export(module, example, path, precision, calibration)
    if "bits" not in inspect.signature(target.export).parameters:
        raise UsageError(
            f"bits={dict(bits)}: target {target.name} writes all layers in one precision; leave bits out, or use "
            "'onnxruntime' or 'openvino'"
        )
    return target.export(module, example, path, precision, calibration, bits=bits)  # type: ignore[call-arg]

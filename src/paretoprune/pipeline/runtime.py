"""`pp.export` and `pp.measure`: one network or file on one target."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from paretoprune import graph as graphs
from paretoprune.core.data import split_batch
from paretoprune.core.errors import FileError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Target
from paretoprune.pipeline.exporting import write
from paretoprune.pipeline.pruned import Pruned
from paretoprune.targets import find_target, measure_file, serving
from paretoprune.targets.feeds import feed_of

Exportable = nn.Module | Pruned | str | Path


def export(
    model: nn.Module | Pruned,
    example: Any,
    path: str | Path,
    target: str | Target = "onnxruntime",
    precision: str = "fp32",
    calibration: Iterable[Any] | None = None,
    bits: Mapping[str, str] | None = None,
) -> Path:
    """Write `model` as a file of the target, reload it and compare it with the model.

    `precision`: one that the target offers (`core.precision.PRECISIONS` says what each means). `calibration` batches
    are needed for int8. `bits`: by weight name or pattern, the precision of single layers, e.g. {"head.*": "fp32"} in
    an int8 file; without it, those of a Pruned's plan. Raises ModelError for NaN weights and the like, UsageError and
    PlanError for what does not exist, and ExportMismatchError with the largest error; nothing is left then.
    """
    module = model.model if isinstance(model, Pruned) else model
    graphs.check_sound(module)
    inputs = None if calibration is None else [split_batch(batch)[0] for batch in calibration]
    chosen = model.plan.bits if bits is None and isinstance(model, Pruned) else bits
    return write(find_target(target), module, Example.of(example), Path(path), precision, inputs, chosen)


def measure(
    model_or_file: Exportable,
    example: Any = None,
    target: str | Target = "onnxruntime",
    against: Exportable | None = None,
    batches: Sequence[int] | None = None,
) -> Mapping[str, Measurement]:
    """Figures of an exported file (a module is exported first), one sample at a time.

    `against` is timed in turns with it and gives "speedup". `batches`, e.g. (1, 8, 32), adds what a server cares for:
    for each batch size the wall time's median and tails ("p50_ms_b8", "p95_ms_b8", "p99_ms_b8") and the throughput in
    samples per second ("throughput_b8"), and "cold_start_ms", load and first answer in a fresh process. `example` may
    be left out for an ONNX file whose inputs have fixed shapes but for the batch.
    """
    runtime = find_target(target)
    with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder:
        file = _file(runtime, model_or_file, example, Path(folder) / "model.onnx")
        baseline = None if against is None else _file(runtime, against, example, Path(folder) / "against.onnx")
        feed = _one_sample(file, example)
        found = measure_file(runtime, file, feed, baseline, memory=True)
        return found if batches is None else {**found, **serving(runtime, file, feed, batches)}


def _file(target: Target, given: Exportable, example: Any, path: Path) -> Path:
    if isinstance(given, (str, Path)):
        if not Path(given).is_file():
            raise FileError(f"{given}: there is no such file; give an exported file or a module")
        return Path(given)
    if example is None:
        raise UsageError("measuring a module needs example=: it is exported first")
    return export(given, example, path, target)


def _one_sample(file: Path, example: Any) -> dict[str, Any]:
    if example is None:
        from paretoprune.targets.onnx_file import example_feed

        return example_feed(file)
    feed = feed_of(Example.of(example))
    return {name: array[:1] for name, array in feed.items()}

"""`pp.export` and `pp.measure`: one network or file on one target."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from paretoprune import graph as graphs
from paretoprune.core.data import split_batch, until
from paretoprune.core.errors import FileError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.core.precision import MIXED
from paretoprune.core.protocols import Meter, Target, Task
from paretoprune.pipeline.exporting import write
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.targets import find_target
from paretoprune.pipeline.verifying import SAMPLES, like_example, verify_file
from paretoprune.targets import measure_file, open_meter, serving, token_latency
from paretoprune.targets.feeds import feed_of
from paretoprune.targets.files import new_file
from paretoprune.targets.onnx_target import OnnxTarget
from paretoprune.targets.traits import checked_suffix, suffix_of
from paretoprune.tasks import task_of

Exportable = nn.Module | Pruned | str | Path


def export(
    model: nn.Module | Pruned,
    example: Any,
    path: str | Path,
    target: str | Target = "onnxruntime",
    precision: str = "fp32",
    calibration: Iterable[Any] | None = None,
    bits: Mapping[str, str] | None = None,
    *,
    check: Iterable[Any] | None = None,
    task: str | Task | None = None,
    cleanup: Sequence[str] | None = None,
    dynamic: Mapping[str, Iterable[int]] | None = None,
) -> Path:
    """Write `model` as a file of the target, reload it here and in a fresh process, and compare it with the model.

    `precision`: one that the target offers (`core.precision.PRECISIONS` says what each means), or "mixed": int8 with
    the most sensitive layers in fp32. `bits`: by weight name or pattern, the precision of single layers, e.g.
    {"head.*": "fp32"} in an int8 file; without it, those of a Pruned's plan.

    `calibration` batches are needed for int8. The fresh process answers the batches of `check`, by default those of
    `calibration`, else random ones like the example: fp32 is judged by outputs, a reduced precision by the signal-to-
    noise ratio, or by the metric of `task` where the batches have labels. `cleanup`: passes that an ONNX file goes
    through: "constants" (what depends on no input is computed), "batch norms" (go into the layers before them),
    "unread" (what no output depends on goes); by default those of the plan, or all. `dynamic`: dimensions beside the
    batch that stay open, by input name, e.g. the length of a sequence; checked at another size. Raises ModelError for
    NaN weights and the like, PlanError for `bits` that fit nothing, and ExportMismatchError with the largest error;
    what was at `path` before stands then.
    """
    module = model.model if isinstance(model, Pruned) else model
    graphs.check_sound(module)
    dims = {name: tuple(given) for name, given in (dynamic or {}).items()}
    inputs, runtime = replace(Example.of(example), dynamic=dims), _cleaning(find_target(target), model, cleanup)
    bits = model.plan.bits if bits is None and isinstance(model, Pruned) else bits
    known = None if calibration is None else list(until(calibration, SAMPLES))
    fitting = None if known is None else [split_batch(batch)[0] for batch in known]
    real = known if check is None else check
    meaning = None if task is None else task_of(task)
    if suffix_of(runtime) != ".onnx":
        checked_suffix(runtime.name, Path(path), suffix_of(runtime))
    with new_file(Path(path)) as file:
        write(runtime, module, inputs, file, precision, fitting, bits)
        batches = like_example(inputs) if real is None else real
        verify_file(runtime, file, module, batches, MIXED if bits else precision, task=meaning, name=Path(path).name)
    return Path(path)


def _cleaning(target: Target, model: nn.Module | Pruned, cleanup: Sequence[str] | None) -> Target:
    passes = model.plan.cleanup if cleanup is None and isinstance(model, Pruned) else cleanup
    if passes is None:
        return target
    if not isinstance(target, OnnxTarget):
        raise UsageError(f"cleanup={list(passes)}: the files of target {target.name!r} are not ONNX; leave it out")
    return target.cleaning(passes)


def measure(
    model_or_file: Exportable,
    example: Any = None,
    target: str | Target = "onnxruntime",
    against: Exportable | None = None,
    batches: Sequence[int] | None = None,
    meter: str | Meter | None = None,
    tokens: tuple[int, int] | None = None,
) -> Mapping[str, Measurement]:
    """Figures of an exported file (a module is exported first), one sample at a time.

    `against` is timed in turns with it and gives "speedup". `batches`, e.g. (1, 8, 32), adds what a server cares for:
    for each batch size the wall time's median and tails ("p50_ms_b8", "p95_ms_b8", "p99_ms_b8") and the throughput in
    samples per second ("throughput_b8"), and "cold_start_ms", load and first answer in a fresh process. `tokens`, e.g.
    (128, 32), adds what a language model's file is asked for, a prompt and new tokens: "first_token_ms",
    "per_token_ms", "tokens_per_s". `example` may be left out for a file whose inputs have fixed shapes but for the
    batch, and with `tokens`. MACs are those of an ONNX file or a Pruned.

    `meter` reads the energy ("pkg.mod:Meter", the class or an object with a name and `joules()` or `watts()`); without
    one the machine's counters do, where the extra "zeus" is installed and finds any; else "energy_mj" is an estimate.
    With a meter the idle power is subtracted from "energy_mj"; "energy_gross_mj" holds it and "idle_w" is it.
    """
    runtime = find_target(target)
    reader = None if meter is None else open_meter(meter)
    with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder:
        suffix = suffix_of(runtime)
        file = _file(runtime, model_or_file, example, Path(folder) / f"model{suffix}")
        baseline = None if against is None else _file(runtime, against, example, Path(folder) / f"against{suffix}")
        feed = _one_sample(runtime, file, example) if tokens is None else _prompt(runtime, file, tokens, example)
        found = measure_file(runtime, file, feed, baseline, memory=True, meter=reader)
        if isinstance(model_or_file, Pruned) and "macs" not in found:
            found["macs"] = Measurement.exact(
                model_or_file.macs, "MAC", found["latency_ms"].target, "of the traced graph"
            )
        found |= {} if tokens is None else token_latency(runtime, file, *tokens)
        return found if batches is None else {**found, **serving(runtime, file, feed, batches)}


def _file(target: Target, given: Exportable, example: Any, path: Path) -> Path:
    if isinstance(given, (str, Path)):
        if not Path(given).is_file():
            raise FileError(f"{given}: there is no such file; give an exported file or a module")
        return Path(given)
    if example is None:
        raise UsageError("measuring a module needs example=: it is exported first")
    return export(given, example, path, target)


def _prompt(target: Target, file: Path, tokens: tuple[int, int], example: Any) -> dict[str, Any]:
    from paretoprune.targets.tokens import check_counts, prompt_feed

    prompt, _ = check_counts(tokens)
    return prompt_feed(file, prompt) if example is None else _one_sample(target, file, example)


def _one_sample(target: Target, file: Path, example: Any) -> dict[str, Any]:
    if example is None and file.suffix == ".onnx":
        from paretoprune.targets.onnx_file import example_feed

        return example_feed(file)
    if example is None:
        sample = getattr(target.load(file), "sample", None)
        if sample is None:
            raise UsageError(f"{file}: what it takes cannot be read off it; give example=")
        found: dict[str, Any] = sample()
        return found
    feed = feed_of(Example.of(example))
    return {name: array[:1] for name, array in feed.items()}

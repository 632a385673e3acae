"""`pp.quantize_aware`: training with the rounding of the file that will be written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx, nn

from paretoprune import graph as graphs
from paretoprune import recover
from paretoprune.core.data import take
from paretoprune.core.errors import DataError, ExportMismatchError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.outputs import main_output
from paretoprune.core.protocols import Target, Task
from paretoprune.pipeline.exporting import check_precision
from paretoprune.pipeline.fake_graph import FakeGraph, fake_graph
from paretoprune.pipeline.opening import opened
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.zero_hooks import zero_hooks
from paretoprune.targets import find_target
from paretoprune.targets.feeds import feed_of
from paretoprune.targets.files import new_file
from paretoprune.targets.qdq import rewritten
from paretoprune.targets.verify import snr_db
from paretoprune.tasks import task_of

LR = 0.002
"""A tenth of what a pruned network is tuned with: the weights are nearly right."""
CALIBRATION_SAMPLES = 256
MIN_AGREEMENT_DB = 20.0
"""The file's answers over what they differ from the trained module's. Kernels round sums their own way."""


@dataclass(frozen=True)
class QuantizedNetwork:
    """`path`: the file. `model`: what was trained, which computes as the file does, but in floating point.

    `agreement`: share of samples of which both give the same class; None where answers are no classes. `snr_db`: signal
    to noise of the file against `model`. `notes`: what the file quantizes and `model` does not.
    """

    path: Path
    model: nn.Module = field(repr=False)
    agreement: float | None
    snr_db: float
    loss: float | None
    notes: tuple[str, ...] = ()


def quantize_aware(
    model: nn.Module | Pruned,
    example: Any,
    train: Iterable[Any],
    path: str | Path,
    *,
    steps: int,
    calibration: Iterable[Any] | None = None,
    task: str | Task | None = "classification",
    target: str | Target = "onnxruntime",
    bits: Mapping[str, str] | None = None,
    lr: float = LR,
    device: str = "cpu",
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> QuantizedNetwork:
    """Train a copy of `model` with fake quantizers where the target's int8 file quantizes, and write that file.

    The network is trained to answer like `model` (`pp.distill`'s loss) for `steps` batches of `train`, 0 for none;
    scales of activations are learned (Esser et al. 2020, arXiv:1902.08153). Ranges start from up to 256 samples of
    `calibration`, by default of `train`. The file has exactly the trained weights and scales.

    `bits`: by weight name or pattern, "fp32" for layers that are not quantized, or "binary" for weights that become
    signs times one scale per output channel. No runtime here computes with signs: the file stores them as 8 bits, and
    its size is that.

    Raises UsageError, DataError, TargetError, and ExportMismatchError where file and trained module disagree.
    """
    if steps < 0:
        raise UsageError(f"steps={steps}: give 0 for no training, or more")
    runtime, meaning = find_target(target), None if task is None else task_of(task)
    check_precision(runtime, "int8")
    module = opened(model.model if isinstance(model, Pruned) else model, example)
    traced = graphs.trace(module, example)
    seen = [inputs for inputs, _ in take(train if calibration is None else calibration, CALIBRATION_SAMPLES)]
    if not seen:
        raise DataError("no batch to learn the ranges from: give calibration=, or train batches")
    fake = fake_graph(traced, runtime, seen, bits)
    loss = None
    if steps:
        teacher = traced.program.module
        with zero_hooks(model, fake.module):
            loss = recover.distill(
                fake.module, teacher, train, meaning, steps=steps, lr=lr, device=device, seed=seed, on_step=on_step
            )
    file = write(fake, Path(path))
    agreement, ratio = agree(runtime, file, fake.module, seen)
    if not ratio >= MIN_AGREEMENT_DB:
        file.unlink()
        raise ExportMismatchError(
            f"the int8 file keeps {ratio:.1f} dB of what the trained module answers, at least {MIN_AGREEMENT_DB:g} dB "
            f"is asked for; {_missed(fake) or 'the runtime computes otherwise than it says'}"
        )
    return QuantizedNetwork(file, fake.module, agreement, ratio, loss, (m,) if (m := _missed(fake)) else ())


def write(fake: FakeGraph, path: Path) -> Path:
    """The int8 file with the weights, biases and scales that the module has now."""
    held = {name: t.detach() for name, t in graphs.tensors_of(fake.module).items()}
    scales = {a.name: float(a.scale.detach()) for a in fake.activations}
    with torch.no_grad():
        weights = {n: tuple(t.numpy() for t in f.whole(held[n])) for n, f in fake.weights.items()}
    biases = {n: t.numpy() for n, t in held.items() if t.ndim == 1 and n.endswith("bias")}
    with new_file(path) as file:
        onnx.save(rewritten(fake.file, scales, weights, biases), str(file))  # type: ignore[arg-type]
    return path


def agree(target: Target, file: Path, module: fx.GraphModule, inputs: Sequence[Example]) -> tuple[float | None, float]:
    """(share of equal classes or None, signal-to-noise ratio in dB) of a file against a module."""
    runner, ours, theirs = target.load(file), [], []
    module.eval()
    for example in itertools.islice(inputs, 8):
        with torch.no_grad():
            ours.append(main_output(module(*example.args, **example.kwargs)).numpy())
        theirs.append(runner(feed_of(example))[0])
    same = None
    if ours[0].ndim == 2 and ours[0].shape[1] > 1:
        same = float(np.mean(np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(ours, theirs, strict=True)])))
    return same, snr_db([(a,) for a in ours], [(b,) for b in theirs])


def _missed(fake: FakeGraph) -> str:
    if not fake.missed:
        return ""
    return f"the file quantizes {len(fake.missed)} tensors that the graph has not: {', '.join(fake.missed[:4])}"

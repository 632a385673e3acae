"""An exported file answers real batches in a fresh process, and is rejected where its answers are wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from paretoprune.core.data import batch_size, split_batch
from paretoprune.core.errors import DataError, ExportMismatchError
from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Target, Task
from paretoprune.targets.export import both_sizes, evaluating, output_names
from paretoprune.targets.feeds import array_of, feed_of, randomised, signature_of
from paretoprune.targets.fresh import TIMEOUT_S, Fresh, in_fresh_process, opener_of
from paretoprune.targets.memory import memory_of
from paretoprune.targets.verify import (
    MAX_DROP,
    MIN_BLIND_SNR_DB,
    check_finite,
    check_outputs,
    check_shape,
    snr_db,
)
from paretoprune.tasks import evaluate
from paretoprune.tasks.evaluate import Z_95

SAMPLES = 256
"""Real samples that a file answers: with them a drop of 10 points from 90 % has an interval of ± 4."""
MOST_BYTES = 128 << 20
"""Of outputs that are kept to compare: a language model's are large."""
SLOWER = 20
"""A file that takes this many times as long as the network itself hangs."""

Outputs = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Verified:
    """What the check found. `by`: "outputs", "metric" or "signal-to-noise"; `figure` is the largest error as a share of
    what is allowed, the drop in points, or decibels. `memory`: of the same process."""

    by: str
    figure: float
    samples: int
    process: str
    memory: Measurement | None

    def to_json(self) -> dict[str, Any]:
        figure = self.figure if math.isfinite(self.figure) else None
        return {"by": self.by, "figure": figure, "samples": self.samples, "process": self.process}


def verify_file(
    target: Target,
    file: Path,
    module: nn.Module,
    batches: Iterable[Any],
    precision: str,
    *,
    task: Task | None = None,
    sample: Mapping[str, NDArray[Any]] | None = None,
    name: str = "",
) -> Verified:
    """Compare `file` with `module` on the first SAMPLES of `batches`, read by a process that knows neither.

    fp32 by its outputs. Another precision by the task's metric, paired by sample, where there are labels and the
    network itself is right often enough that a broken file would show; else by its signal-to-noise ratio. A target
    that no other process can open is asked in this one. Raises ExportMismatchError for a wrong file, TargetError for
    one that fails, crashes or hangs.
    """
    chosen, expected, seconds = _expected(module, batches)
    feeds = [feed_of(_split(batch)[0]) for batch in chosen]
    fresh, process = _answers(target, file, sample or _first(feeds[0]), feeds, TIMEOUT_S + SLOWER * seconds)
    what = f"{name or file.name} in a fresh process" if process == "fresh" else name or file.name
    names = output_names(len(expected[0]))
    by, figure = _judged(what, names, chosen, expected, fresh.outputs, precision, task)
    samples = sum(_rows(feed) for feed in feeds)
    return Verified(by, figure, samples, process, memory_of([fresh]))


def like_example(example: Example) -> list[Example]:
    """Random batches of the example's kind, of two sizes, where there are no real ones."""
    signature, tensors = signature_of(example)
    generator = torch.Generator().manual_seed(1)
    found = []
    for fresh in both_sizes(signature, tensors):
        args, kwargs = signature.arguments(randomised(t, generator) for t in fresh)
        found.append(Example(args, kwargs))
    return found


def _expected(module: nn.Module, batches: Iterable[Any]) -> tuple[list[Any], list[Outputs], float]:
    """(batches, the network's outputs, seconds that these took), until there are SAMPLES or MOST_BYTES of outputs."""
    chosen: list[Any] = []
    expected: list[Outputs] = []
    begun, samples, held = time.perf_counter(), 0, 0
    with evaluating(module), torch.no_grad():
        for batch in batches:
            inputs, _ = _split(batch)
            chosen.append(batch)
            expected.append(_outputs(module, inputs))
            samples += batch_size(inputs)
            held += sum(array.nbytes for array in expected[-1])
            if samples >= SAMPLES or held >= MOST_BYTES:
                break
    if not chosen:
        raise DataError("there is no batch to check the file on: give at least one")
    return chosen, expected, time.perf_counter() - begun


def _split(batch: Any) -> tuple[Example, Any]:
    return (batch, None) if isinstance(batch, Example) else split_batch(batch)


def _outputs(module: nn.Module, inputs: Example) -> Outputs:
    signature, tensors = signature_of(inputs)
    place = next((p.device for p in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    args, kwargs = signature.arguments(tensor.to(place) for tensor in tensors)
    leaves = pytree.tree_leaves(module(*args, **kwargs))
    return tuple(array_of(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))


def _answers(
    target: Target, file: Path, sample: Mapping[str, NDArray[Any]], feeds: Sequence[Any], limit_s: float
) -> tuple[Fresh, str]:
    opener = opener_of(target)
    if opener is not None:
        return in_fresh_process(file, sample, feeds, opener=opener, timeout_s=limit_s), "fresh"
    runner = target.load(file)
    return Fresh(-1, -1, tuple(tuple(runner(feed)) for feed in feeds)), "this"


def _judged(
    what: str,
    names: Sequence[str],
    batches: Sequence[Any],
    expected: Sequence[Outputs],
    given: Sequence[Outputs],
    precision: str,
    task: Task | None,
) -> tuple[str, float]:
    """(by what, the figure). Raises ExportMismatchError."""
    if precision == "fp32":
        return "outputs", max(check_outputs(what, names, a, b) for a, b in zip(expected, given, strict=True))
    _check_form(what, names, expected, given)
    if task is not None and all(_split(batch)[1] is not None for batch in batches):
        ours, theirs = (_scores(task, batches, outputs) for outputs in (expected, given))
        if _lower(ours) > MAX_DROP:  # else even a file that is always wrong would pass
            return "metric", 100 * _check_drop(what, task, ours, theirs)
    ratio = snr_db(expected, given)
    if not ratio >= MIN_BLIND_SNR_DB:
        raise ExportMismatchError(
            f"{what} keeps {ratio:.1f} dB of the network's output on real batches; at least {MIN_BLIND_SNR_DB:g} dB is "
            f"asked for, so the file is rejected. Keep this network in fp32, or give more calibration data"
        )
    return "signal-to-noise", ratio


def _check_form(what: str, names: Sequence[str], expected: Sequence[Outputs], given: Sequence[Outputs]) -> None:
    for a, b in zip(expected, given, strict=True):
        if len(a) != len(b):
            raise ExportMismatchError(f"{what}: {len(b)} outputs, the network has {len(a)}; file rejected")
        for name, ours, theirs in zip(names, a, b, strict=True):
            check_shape(what, name, ours, theirs)
        check_finite(what, names, b)


def _check_drop(what: str, task: Task, ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """The mean drop, whose 95 % interval may not lie wholly beyond MAX_DROP."""
    lost = ours - theirs
    if _lower(lost) > MAX_DROP:
        raise ExportMismatchError(
            f"{what} has {100 * theirs.mean():.1f} % {task.metric} on {len(ours)} samples, the network itself "
            f"{100 * ours.mean():.1f} %; surely more than {100 * MAX_DROP:g} points are lost, so the file is rejected. "
            "Keep this network in fp32, or give more calibration data"
        )
    return float(lost.mean())


def _lower(values: NDArray[Any]) -> float:
    """Lower end of the mean's 95 % interval."""
    return float(values.mean() - Z_95 * values.std(ddof=min(1, len(values) - 1)) / math.sqrt(len(values)))


def _scores(task: Task, batches: Sequence[Any], outputs: Sequence[Outputs]) -> NDArray[Any]:
    found: list[torch.Tensor] = []
    answers = iter(outputs)
    evaluate(lambda _: next(answers), batches, task, watch=[lambda i, o, y, scores: found.append(scores)])
    return np.concatenate([scores.cpu().numpy() for scores in found])


def _first(feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    rows = _rows(feed)
    return {k: v[:1] if v.ndim and v.shape[0] == rows else v for k, v in feed.items()}


def _rows(feed: Mapping[str, NDArray[Any]]) -> int:
    return next(len(v) for v in feed.values() if v.ndim)

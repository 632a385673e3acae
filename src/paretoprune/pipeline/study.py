"""One search and everything that its stages need: the network, the data, the target and the run folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from paretoprune import graph as graphs
from paretoprune import recover
from paretoprune.core.graph import Example, Program
from paretoprune.core.limits import Limits
from paretoprune.core.progress import Progress
from paretoprune.core.protocols import Target, Task
from paretoprune.core.quality import shifts
from paretoprune.graph import TracedGraph
from paretoprune.pipeline.fake_graph import Fakes, fakes_for
from paretoprune.pipeline.outputs import Outputs
from paretoprune.pipeline.settings import Settings
from paretoprune.store.run import RunFolder
from paretoprune.targets import Reader, fingerprint_id
from paretoprune.targets.template import Templates
from paretoprune.tasks import CheckedData, Shifting, input_range

_LATER = (
    *("nested", "metrics", "robust_samples", "attack_eps"),
    *("activations", "tune_threads", "tune_batch", "score_on", "zeros", "depth"),
)
"""Settings that came after the first run folders: at their defaults they are no part of what a folder is bound to."""

RANGE_SAMPLES = 256
"""That the ranges of an int8 file are learned from."""


@dataclass(frozen=True)
class Study:
    """The stages are functions of it; what they find out goes through `folder.once`, so a second run resumes."""

    folder: RunFolder
    model: nn.Module
    traced: TracedGraph
    checked: CheckedData
    task: Task
    target: Target
    settings: Settings
    device: str
    progress: Progress
    meter: Reader | None = None

    @property
    def limits(self) -> Limits:
        return self.settings.parsed_limits

    @property
    def calibration(self) -> Iterable[Any]:
        return self.checked.data.calibrating

    @cached_property
    def grams(self) -> Mapping[str, recover.Gram]:
        """Gram matrices of the original network; taken when first needed, and again after a resume."""
        return self._collected(self.traced)

    def grams_of(self, traced: TracedGraph) -> Mapping[str, recover.Gram]:
        """Those of the network that is scored."""
        return self.grams if traced is self.traced else self._collected(traced)

    def _collected(self, traced: TracedGraph) -> Mapping[str, recover.Gram]:
        with self.timed("gram pass"), self.progress.stage("gram pass", None):
            return recover.collect_grams(
                traced.program,
                traced.program.contractions,
                self.calibration,
                samples=self.settings.calibration_samples,
            )

    @cached_property
    def templates(self) -> Templates:
        """Files of this network, from which those of its narrower ones are cut."""
        return Templates()

    @cached_property
    def exporter(self) -> Target:
        """The target, with what it exported before at hand if it is one of ours that can use it."""
        cutting = getattr(self.target, "cutting", None)
        return self.target if cutting is None else cutting(self.templates)

    @cached_property
    def fakes(self) -> Fakes | None:
        """Quantizers to score with; None where the network is scored as it is."""
        if self.settings.score_on == "fp32":
            return None
        with self.timed("fakes"), self.progress.stage("reading what int8 rounds", None):
            return fakes_for(self.traced, self.target, list(self.calibration_inputs(RANGE_SAMPLES)))

    @cached_property
    def scored(self) -> TracedGraph:
        """The network that criteria see."""
        return (
            self.traced
            if self.fakes is None
            else replace(self.traced, program=self.fakes.rounding(self.traced.program))
        )

    def judged(self, program: Program) -> Program:
        """The program whose output an error curve looks at."""
        return program if self.fakes is None else self.fakes.rounding(program)

    @cached_property
    def reference(self) -> Outputs:
        """The original's outputs on calibration inputs."""
        return Outputs.of(self.traced.program, self.calibration)

    @cached_property
    def unseen(self) -> Outputs:
        """The original's outputs on validation inputs, which no recovery was fitted to."""
        return Outputs.of(self.traced.program, self.checked.data.validation)

    @cached_property
    def shifting(self) -> Shifting | None:
        """How inputs are disturbed for the figures that were asked for; None if none was."""
        how = shifts(self.settings.asked)
        if not how:
            return None

        def read() -> list[float]:
            return list(input_range(self.checked.data.validation))

        low, high = self.folder.once("input range", "validation", read)
        return Shifting(how, low, high, self.settings.attack_eps, self.settings.robust_samples, self.settings.seed)

    @cached_property
    def one(self) -> Example:
        """One sample, batch 1: what is timed."""
        example = self.traced.example

        def first(value: Any) -> Any:
            return value[:1] if isinstance(value, torch.Tensor) else value

        from torch.utils import _pytree as pytree

        args, kwargs = pytree.tree_map(first, (example.args, dict(example.kwargs)))
        return Example(args, kwargs, dynamic=example.dynamic)

    def calibration_inputs(self, samples: int) -> Iterator[Example]:
        from paretoprune.core.data import take

        for inputs, _ in take(self.calibration, samples):
            yield inputs

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the CPU and wall seconds of a stage to the journal."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = {"stage": stage, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
            self.folder.record("seconds", self.next_key("seconds"), spent)

    def next_key(self, kind: str) -> str:
        """One above the highest number recorded: a damaged line leaves a gap, so counting would meet a used key."""
        return str(1 + max(map(int, self.folder.all(kind)), default=-1))

    def once(self, stage: str, key: str, work: Callable[[], Any]) -> Any:
        """A journaled, timed stage."""
        if self.folder.has(stage, key):
            return self.folder.done(stage, key)
        with self.timed(stage):
            return self.folder.once(stage, key, work)


def identity(
    traced: TracedGraph,
    checked: CheckedData,
    task: Task,
    target: Target,
    settings: Settings,
    meter: Reader | None = None,
) -> dict[str, Any]:
    """What a run folder is bound to: network, weights, data, recipe, machine and, if one was given, the meter."""
    return {
        "model": {"structure": traced.fingerprint, "weights": weights_digest(traced.captured)},
        "data": checked.fingerprint,
        "task": task.name,
        "target": {"name": target.name, "machine": fingerprint_id(target.fingerprint())},
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in _deciding(settings).items()},
        **({} if meter is None else {"meter": meter.name}),
    }


def _deciding(settings: Settings) -> dict[str, Any]:
    defaults = Settings()
    return {k: v for k, v in asdict(settings).items() if k not in _LATER or v != getattr(defaults, k)}


def weights_digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(graphs.tensors_of(module).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

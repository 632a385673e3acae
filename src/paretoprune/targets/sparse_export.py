"""From a network with zeros to a verified file with packed layers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from paretoprune.core.errors import TargetError
from paretoprune.core.graph import Example
from paretoprune.core.layers import LayerSpec
from paretoprune.core.storage import atomic
from paretoprune.targets.export import check_dtypes, evaluating, export_fp32, verify_half
from paretoprune.targets.feeds import feed_of, resized, signature_of
from paretoprune.targets.latency import Timing, compare
from paretoprune.targets.layers import layer_model
from paretoprune.targets.onnx_target import alike
from paretoprune.targets.quantized import check_quantized
from paretoprune.targets.session import FileRunner, OrtRunner, open_session
from paretoprune.targets.sparse_cpu import HowToPack

Pack = Callable[[nn.Module, Example, HowToPack], nn.Module]
MARGIN = 2.0
"""A dense layer among packed ones costs more than it does alone: images between them are laid out anew. So a second
network keeps packed what loses by less than this, and whole networks tell which is faster."""
RACE = Timing(margin=0.02, pairs=10, max_pairs=20, max_cpu_s=4.0)


def export_packed(
    load: Callable[[Path], FileRunner],
    pack: Pack,
    module: nn.Module,
    example: Example,
    path: Path,
    how: HowToPack,
    passes: Sequence[str] | None,
) -> Path:
    """See `SparseCpu.export`. Whole files are raced against each other: layers may win where networks lose."""
    check_dtypes(module)
    with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder, evaluating(module):
        dense = export_fp32(load, module, example, Path(folder) / "dense.onnx", passes)
        files = []
        for number, network in enumerate(_networks(pack, module, example, how)):
            file = Path(folder) / f"packed-{number}.onnx"
            # Where 8 bits round, the last bit of what enters decides: such files are held to their noise.
            check = None if how.precision == "fp32" else partial(verify_half, precision=how.precision)
            files.append(export_fp32(load, network, example, file, passes, check=check))
            if how.precision == "int8":
                check_quantized(load(dense), load(files[-1]), [feed_of(b) for b in how.calibration or ()], "int8")
        best = _fastest(load, [dense, *files], how.sample) if how.keep == "measured" else files[0]
        if how.precision == "int8" and best == dense:
            raise TargetError(f"{_NO_INT8}: as a whole it is as fast in 32 bits. Export it as fp32")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(best.read_bytes())
    return path


_NO_INT8 = "8 bits gain nothing for this network on target 'sparse-cpu' here"


def _networks(pack: Pack, module: nn.Module, example: Example, how: HowToPack) -> list[nn.Module]:
    """With the layers that win alone, and with those that hardly lose; one network where they are the same."""
    first: Any = pack(module, example, how)
    found: list[Any] = [first]
    if how.keep == "measured":
        second: Any = pack(module, example, replace(how, margin=MARGIN, known=first.choices))
        found += [second] if _packed(second) != _packed(first) else []
    if how.precision == "int8" and not any(c.packed and "int8" in c.pattern for n in found for c in n.choices):
        raise TargetError(f"{_NO_INT8}: each layer is as fast in 32 bits. Export it as fp32")
    return found


def _packed(network: Any) -> set[str]:
    return {choice.weight for choice in network.choices if choice.packed}


def _fastest(load: Callable[[Path], FileRunner], files: Sequence[Path], sample: Example) -> Path:
    """Of one sample; of two that are alike, the earlier one."""
    feed = {name: array[:1] for name, array in alike(sample)[-1].items()}
    best, *others = files
    for other in others:
        one, two = load(best), load(other)
        if compare(partial(one, feed), partial(two, feed), RACE).ratio.value > 1:
            best = other
    return best


def one_sample(example: Example) -> Example:
    """What is measured is one sample."""
    signature, tensors = signature_of(example)
    single = [resized(t, 1) if batched else t for t, batched in zip(tensors, signature.batched, strict=True)]
    return Example(*signature.arguments(single), dynamic=example.dynamic)


def dense_layer(case: Any, threads: int, opened: Callable[[bytes], FileRunner] | None = None) -> Callable[[], Any]:
    """The same layer on ONNX Runtime, or as `opened`, given the same array. `case`: of pipeline.packed."""
    site, x = case.site, case.x
    if site.image:
        outputs, inputs, *kernel = site.value.shape
        window = {"kernel": tuple(kernel), "stride": site.stride, "padding": site.padding, "spatial": x.shape[2:]}
        spec = LayerSpec("conv", inputs, outputs, **window)
    else:
        spec = LayerSpec("linear", site.value.shape[1], site.value.shape[0], rows=x.size // site.value.shape[1])
        x = x.reshape(spec.rows, -1)
    data = layer_model(spec).SerializeToString()
    runner = opened(data) if opened else OrtRunner(open_session(data, threads, "a layer"), "a layer")
    return partial(runner, {"x": x})

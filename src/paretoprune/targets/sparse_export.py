"""From a network with zeros to a verified file with packed layers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from paretoprune.core.errors import TargetError
from paretoprune.core.graph import Example
from paretoprune.core.layers import LayerSpec
from paretoprune.core.storage import atomic
from paretoprune.targets.export import check_dtypes, evaluating, export_fp32
from paretoprune.targets.feeds import feed_of, resized, signature_of
from paretoprune.targets.latency import Timing, compare
from paretoprune.targets.layers import layer_model
from paretoprune.targets.onnx_target import alike
from paretoprune.targets.quantized import check_quantized
from paretoprune.targets.session import FileRunner, OrtRunner, open_session

Pack = Callable[[nn.Module, Example, str, Sequence[Any] | None], nn.Module]
_NO_INT8 = "8 bits gain nothing for this network on target 'sparse-cpu' here"
RACE = Timing(margin=0.02, pairs=10, max_pairs=20, max_cpu_s=4.0)


def export_packed(
    load: Callable[[Path], FileRunner],
    pack: Pack,
    module: nn.Module,
    example: Example,
    path: Path,
    precision: str,
    batches: Sequence[Any] | None,
    passes: Sequence[str] | None,
    races: bool,
) -> Path:
    """See `SparseCpu.export`. The whole file is raced against the dense one too: layers may win where networks lose."""
    check_dtypes(module)
    with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder, evaluating(module):
        dense, packed = Path(folder) / "dense.onnx", Path(folder) / "packed.onnx"
        export_fp32(load, module, example, dense, passes)
        network = pack(module, example, precision, batches)
        if precision == "int8" and not any(c.packed and "int8" in c.pattern for c in getattr(network, "choices", ())):
            raise TargetError(f"{_NO_INT8}: each layer is as fast in 32 bits. Export it as fp32")
        export_fp32(load, network, example, packed, passes)
        feeds = alike(example) if batches is None else [feed_of(b) for b in batches]
        if precision == "int8":
            check_quantized(load(dense), load(packed), feeds, "int8")
        feed = {name: array[:1] for name, array in alike(one_sample(example))[-1].items()}
        best = dense if races and _slower(load, dense, packed, feed) else packed
        if precision == "int8" and best is dense:
            raise TargetError(f"{_NO_INT8}: as a whole it is as fast in 32 bits. Export it as fp32")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(best.read_bytes())
    return path


def _slower(load: Callable[[Path], FileRunner], dense: Path, packed: Path, feed: dict[str, Any]) -> bool:
    one, other = load(dense), load(packed)
    return compare(lambda: one(feed), lambda: other(feed), RACE).ratio.value < 1


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
    return lambda: runner({"x": x[: len(x)]})

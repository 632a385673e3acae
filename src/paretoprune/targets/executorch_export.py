"""From a module to a verified `.pte` file: `torch.export`, XNNPACK's partitioner and, for int8, its quantizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paretoprune.core.copies import duplicate
from paretoprune.core.errors import DataError, TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.core.layers import LayerSpec
from paretoprune.targets.executorch import MOST, library, quiet
from paretoprune.targets.executorch_runner import DTYPES, About, ExecuTorchRunner, packed
from paretoprune.targets.export import (
    TRACE_BATCH,
    _batch,
    _batched,
    _device,
    _feed,
    _Flat,
    check_dtypes,
    evaluating,
    verify,
)
from paretoprune.targets.feeds import Signature, array_of, signature_of
from paretoprune.targets.files import new_file
from paretoprune.targets.quantized import CALIBRATION_ROWS, CALIBRATION_SAMPLES, check_quantized
from paretoprune.targets.session import one_line
from paretoprune.targets.torch_layers import Copies

Load = Callable[[Path], ExecuTorchRunner]
FAILURES = (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, LookupError, NotImplementedError)
"""What the exporter and its passes raise for networks that they do not take."""


def export(
    load: Load, module: nn.Module, example: Example, path: Path, precision: str, calibration: Iterable[Example] | None
) -> Path:
    """See `ExecuTorch.export`."""
    check_dtypes(module)
    if precision == "int8" and calibration is None:
        raise TargetError("int8 needs calibration batches to learn the ranges; give calibration=")
    if any(example.dynamic.values()):
        raise UsageError(f"dynamic={dict(example.dynamic)}: the batch alone is dynamic in a .pte file; leave it out")
    signature, tensors = signature_of(example)
    tensors = [tensor.to(_device(module)).cpu() for tensor in tensors]
    with evaluating(module), new_file(path) as file:
        flat = _Flat(duplicate(module).cpu(), signature)
        traced = _batched(signature, tensors, TRACE_BATCH)
        batches = [] if calibration is None else _calibration(signature, calibration)
        if precision == "int8" and not batches:
            raise DataError("calibration gave no batch; int8 needs at least one to learn the ranges")
        file.write_bytes(packed(*_program(flat, traced, batches if precision == "int8" else None)))
        runner = load(file)
        if precision == "fp32":
            verify(runner, flat, tensors)
        else:
            feeds = [_feed(runner, signature, batch) for batch in batches]
            check_quantized(_Reference(flat, batches), runner, feeds, "int8")
    return path


class _Reference:
    """The network itself as a runner, on the calibration batches one after the other."""

    def __init__(self, flat: _Flat, batches: list[list[torch.Tensor]]) -> None:
        self._flat, self._names = flat, flat.signature.names
        self.input_names: tuple[str, ...] = tuple(self._names)
        with torch.no_grad():
            count = len(flat(*batches[0]))
        self.output_names: tuple[str, ...] = tuple(f"output_{i}" for i in range(count))

    def __call__(self, inputs: Any) -> tuple[Any, ...]:
        tensors = [torch.from_numpy(inputs[name]) for name in self._names]
        with torch.no_grad():
            return tuple(array_of(output) for output in self._flat(*tensors))


def _calibration(signature: Signature, calibration: Iterable[Example]) -> list[list[torch.Tensor]]:
    """Batches of up to CALIBRATION_ROWS rows, at least two: the exporter takes a batch of one for a constant."""
    found: list[list[torch.Tensor]] = []
    rows = 0
    for inputs in calibration:
        given, tensors = signature_of(inputs)
        if given.names != signature.names:
            raise DataError(f"a calibration batch has {', '.join(given.names)}; expected {', '.join(signature.names)}")
        size = _batch(given, tensors)
        for start in range(0, size, CALIBRATION_ROWS):
            stop = min(start + CALIBRATION_ROWS, size, start + CALIBRATION_SAMPLES - rows)
            if stop <= start:
                return found
            piece = [t[start:stop] if b else t for t, b in zip(tensors, signature.batched, strict=True)]
            found.append([t.cpu().contiguous() for t in piece])
            rows += stop - start
    return found


def _program(
    flat: _Flat, traced: list[torch.Tensor], calibration: list[list[torch.Tensor]] | None
) -> tuple[bytes, About]:
    signature = flat.signature
    for name, tensor in zip(signature.names, traced, strict=True):
        if _short(tensor.dtype) not in DTYPES:
            raise TargetError(f"{name} is {_short(tensor.dtype)}; a .pte file takes {', '.join(DTYPES)}")
    with torch.no_grad():
        outputs = flat(*traced)
    if not outputs:
        raise TargetError("the network returns no tensor, so there is nothing to export")
    batch = torch.export.Dim("batch", min=1, max=MOST)
    shapes = tuple({0: batch} if b else None for b in signature.batched)
    about = About(
        tuple(
            (n, (MOST, *t.shape[1:]) if b else tuple(t.shape), _short(t.dtype), b)
            for n, t, b in zip(signature.names, traced, signature.batched, strict=True)
        ),
        tuple(bool(o.dim()) and o.shape[0] == TRACE_BATCH for o in outputs),
        MOST,
    )
    return _lowered(flat, traced, shapes, calibration), about


def layer_program(spec: LayerSpec, copies: int, precision: str) -> tuple[bytes, About]:
    """Copies of one layer on one input "input", of fixed size."""
    x = torch.from_numpy(spec.example())
    about = About((("input", tuple(x.shape), "float32", False),), (False,), 1)
    return _lowered(Copies(spec, copies), [x], None, [[x]] if precision == "int8" else None), about


def _lowered(module: nn.Module, traced: list[torch.Tensor], shapes: Any, calibration: Any) -> bytes:
    try:
        with quiet(), torch.no_grad():
            nested = None if shapes is None else (shapes,)  # forward(*tensors) takes them as one argument
            exported = torch.export.export(module, tuple(traced), dynamic_shapes=nested, strict=False)
            if calibration is not None:
                quantized = _quantized(exported.module(), calibration)
                exported = torch.export.export(quantized, tuple(traced), dynamic_shapes=shapes, strict=False)
            return _written(exported)
    except FAILURES as error:
        raise TargetError(f"ExecuTorch cannot export the network: {one_line(error)}") from error


def _quantized(module: Any, calibration: list[list[torch.Tensor]]) -> Any:
    """Static int8 as XNNPACK takes it: activations per tensor, weights per channel."""
    steps = library("torchao.quantization.pt2e.quantize_pt2e")
    xnnpack = library("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    quantizer = xnnpack.XNNPACKQuantizer().set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    prepared = steps.prepare_pt2e(module, quantizer)
    for tensors in calibration:
        prepared(*tensors)
    converted = steps.convert_pt2e(prepared)
    if not any("quantize_per" in str(node.target) for node in converted.graph.nodes):
        raise TargetError("none of the network's operators has an int8 form here; keep it in fp32")
    return converted


def _written(exported: Any) -> bytes:
    exir = library("executorch.exir")
    partitioner = library("executorch.backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner()
    edge = exir.to_edge_transform_and_lower(exported, partitioner=[partitioner])
    _keep_bounds(edge.exported_program())
    return bytes(edge.to_executorch().buffer)


def _keep_bounds(program: Any) -> None:
    """Lowering may leave a narrower range of the batch than was exported, by which memory would be planned.

    torch picks another convolution from a batch of 16 on, and the tracer takes that for a condition; XNNPACK does not.
    """
    environments: dict[int, Any] = {}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            if isinstance(size, torch.SymInt):
                environments[id(size.node.shape_env)] = size.node.shape_env
    for environment in environments.values():
        for symbol, bounds in program.range_constraints.items():
            if symbol in environment.var_to_range:
                environment.var_to_range[symbol] = bounds


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

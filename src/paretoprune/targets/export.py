"""From a module to a verified ONNX file."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from paretoprune.core.errors import ExportMismatchError, TargetError
from paretoprune.core.graph import Example
from paretoprune.targets.branches import Place, check_one_way, python_values
from paretoprune.targets.clean import renamed, tidied
from paretoprune.targets.constants import with_constants
from paretoprune.targets.feeds import Signature, array_of, randomised, resized, signature_of
from paretoprune.targets.files import new_file
from paretoprune.targets.session import FileRunner, one_line
from paretoprune.targets.symbolic import known_operators
from paretoprune.targets.template import WRAPPER, Templates
from paretoprune.targets.verify import check_finite, check_half, check_outputs, check_varies

OPSET = 17
TRACE_BATCH = 2
"""Not 1: a batch of one hides broadcasting."""

VERIFY_BATCHES = (3, 1)
"""Neither is the batch that was traced, so a frozen batch shows."""


class _Flat(nn.Module):
    """Takes and gives flat tensors, and keeps its mode: the exporter calls `train`, which captured graphs refuse."""

    def __init__(self, module: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.module = module
        self.signature = signature

    def train(self, mode: bool = True) -> _Flat:
        return self

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = self.signature.arguments(tensors)
        leaves = pytree.tree_leaves(self.module(*args, **kwargs))
        return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


Verify = Callable[[FileRunner, _Flat, list[torch.Tensor]], None]


def export_fp32(
    load: Callable[[Path], FileRunner],
    module: nn.Module,
    example: Example,
    path: Path,
    passes: Sequence[str] | None = None,
    templates: Templates | None = None,
    check: Verify | None = None,
) -> Path:
    """Write, reload with `load`, compare at two batch sizes, then put in place. See `OnnxRuntime.export`.

    `passes`: of `clean.PASSES`, those that the file goes through; all of them by default. `templates`: files of this
    structure that were exported before, from which this one is cut where that is right. `check`: in place of `verify`.
    """
    check_dtypes(module)
    signature, tensors = signature_of(example)
    tensors = [tensor.to(_device(module)) for tensor in tensors]
    with evaluating(module), new_file(path) as file:
        flat = _Flat(module, signature)
        traced = _batched(signature, tensors, TRACE_BATCH)

        def folded() -> nn.Module:
            return with_constants(module, Example(*signature.arguments(traced)))

        if templates is not None and _cut(templates, load, flat, tensors, file, folded, passes):
            return path
        raw = write_onnx(_Flat(folded(), signature), traced, file, passes)
        (check or verify)(load(file), flat, tensors)
        if templates is not None:
            templates.learn(module, signature, raw)
    return path


def _cut(
    templates: Templates,
    load: Callable[[Path], FileRunner],
    flat: _Flat,
    tensors: list[torch.Tensor],
    file: Path,
    folded: Callable[[], nn.Module],
    passes: Sequence[str] | None,
) -> bool:
    """Was the file made from an earlier one? It was compared with the network like any other."""
    raw = templates.cut(flat.module, flat.signature, folded)
    if raw is None:
        return False
    try:
        onnx.save(tidied(raw, passes), str(file))
        verify(load(file), flat, tensors)
    except (TargetError, ValueError) as error:
        templates.refused(flat.module, flat.signature, one_line(error))
        return False
    templates.took()
    return True


def check_dtypes(module: nn.Module) -> None:
    """fp16, bf16 and double networks are refused rather than cast in silence."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32:
            raise TargetError(
                f"{name} is {str(tensor.dtype).removeprefix('torch.')}; the fp32 export takes float32 networks only. "
                "Convert it first: model.float()"
            )


def write_onnx(
    flat: _Flat, tensors: list[torch.Tensor], file: Path, passes: Sequence[str] | None = None
) -> onnx.ModelProto:
    """Trace `flat` and write opset 17 with dimension 0 dynamic. Raises TargetError naming the exporter's reason.

    Gives what the exporter made, before it was tidied.
    """
    with torch.no_grad():
        outputs = flat(*tensors)
    if not outputs:
        raise TargetError("the network returns no tensor, so there is nothing to export")
    inputs = flat.signature.names
    names = output_names(len(outputs), inputs)
    axes = _dynamic_axes(flat, tensors, outputs, names)
    try:
        with _quiet() as places, known_operators(OPSET), torch.no_grad():
            torch.onnx.export(
                flat,
                tuple(tensors),
                str(file),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(names),
                dynamic_axes=axes,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
            )
            raw = _with_names(onnx.load(str(file)))
            onnx.save(tidied(raw, passes), str(file))
    except (RuntimeError, TypeError, ValueError, NotImplementedError, torch.onnx.errors.OnnxExporterError) as error:
        raise TargetError(f"the ONNX exporter refused the network: {one_line(error)}") from error
    check_one_way(flat, type(flat.module).__name__, tensors, places)
    return raw


def _dynamic_axes(
    flat: _Flat, tensors: list[torch.Tensor], outputs: tuple[torch.Tensor, ...], names: Sequence[str]
) -> dict[str, dict[int, str]]:
    """Names of the dimensions that stay open. Those of outputs are seen by running with another size."""
    signature, batch = flat.signature, _batch(flat.signature, tensors)
    axes: dict[str, dict[int, str]] = {}
    for name, batched, moving in zip(signature.names, signature.batched, signature.moving, strict=True):
        axes[name] = ({0: "batch"} if batched else {}) | {d: f"{name}_{d}" for d in moving}
    others = outputs
    if any(signature.moving):
        with torch.no_grad():
            others = flat(*signature.shifted(tensors))
    for name, output, other in zip(names, outputs, others, strict=True):
        sizes = enumerate(zip(output.shape, other.shape, strict=True))
        moved = {d: f"{name}_{d}" for d, (a, b) in sizes if a != b}
        axes[name] = moved | ({0: "batch"} if output.dim() and output.shape[0] == batch else {})
    return {name: dims for name, dims in axes.items() if dims}


def _with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights are called as in the network, without the wrapper's prefix. Changes `model`."""
    graph = model.graph
    taken = {t.name for t in graph.initializer} | {o for n in graph.node for o in n.output}
    taken |= {v.name for v in graph.input}
    names = {t.name: t.name.removeprefix(WRAPPER) for t in graph.initializer if t.name.startswith(WRAPPER)}
    names = {old: new for old, new in names.items() if new not in taken}
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        renamed(node, names)
    return model


def verify(runner: FileRunner, flat: _Flat, tensors: list[torch.Tensor]) -> None:
    """Compare file and network on random inputs like the example, at two sizes of all that is dynamic."""
    generator = torch.Generator().manual_seed(0)
    seen = []
    for fresh in both_sizes(flat.signature, tensors):
        batch = _batch(flat.signature, fresh)
        what = f"{flat.module.__class__.__name__} at batch {batch}"
        fresh = [randomised(t, generator) if t.numel() else t for t in fresh]
        with torch.no_grad():
            expected = [array_of(output) for output in flat(*fresh)]
        check_finite(f"{what}, before export", runner.output_names, expected)
        check_outputs(what, runner.output_names, expected, _run(runner, flat.signature, fresh, batch))
        seen.append(expected)
    check_varies(flat.module.__class__.__name__, seen)


def verify_half(runner: FileRunner, flat: _Flat, tensors: list[torch.Tensor], precision: str) -> None:
    """Against the network as it was given, on random inputs like the example, at two sizes of all that is dynamic."""
    generator, kind = torch.Generator().manual_seed(0), flat.module.__class__.__name__
    pairs = []
    for sized in both_sizes(flat.signature, tensors):
        fresh = [randomised(t, generator) for t in sized]
        with torch.no_grad():
            expected = [array_of(output) for output in flat(*fresh)]
        given = runner(_feed(runner, flat.signature, fresh))
        check_finite(f"{kind}, before export", runner.output_names, expected)
        pairs.append((expected, given))
    check_half(f"{kind} in {precision}", runner.output_names, pairs)
    check_varies(kind, [expected for expected, _ in pairs])


def _run(runner: FileRunner, signature: Signature, tensors: list[torch.Tensor], batch: int) -> tuple[NDArray[Any], ...]:
    try:
        return runner(_feed(runner, signature, tensors))
    except TargetError as error:
        reason = str(error.__cause__ or error)
    try:
        runner(_feed(runner, signature, _batched(signature, tensors, TRACE_BATCH)))
    except TargetError:
        raise ExportMismatchError(f"the exported file does not run: {reason}") from None
    if any(signature.moving):
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(signature.names, tensors, strict=True))
        raise ExportMismatchError(f"the exported file runs at the example's sizes, but not with {shapes}: {reason}")
    raise ExportMismatchError(
        f"the exported file runs at batch {TRACE_BATCH}, at which it was traced, but not at batch {batch}: the batch "
        f"size became a constant in the export. Take it from the input inside forward (x.size(0)). {reason}"
    )


def _feed(runner: FileRunner, signature: Signature, tensors: list[torch.Tensor]) -> dict[str, NDArray[Any]]:
    feed = {name: array_of(tensor) for name, tensor in zip(signature.names, tensors, strict=True)}
    return {name: feed[name] for name in runner.input_names if name in feed}


def _batched(signature: Signature, tensors: list[torch.Tensor], batch: int) -> list[torch.Tensor]:
    return [resized(t, batch) if b else t for t, b in zip(tensors, signature.batched, strict=True)]


def both_sizes(signature: Signature, tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The same values at each of VERIFY_BATCHES, the last time with other sizes of what else is dynamic."""
    for batch in VERIFY_BATCHES:
        found = _batched(signature, tensors, batch)
        yield signature.shifted(found) if batch == VERIFY_BATCHES[-1] else found


def _batch(signature: Signature, tensors: list[torch.Tensor]) -> int:
    return next(t.shape[0] for t, b in zip(tensors, signature.batched, strict=True) if b)


def output_names(count: int, taken: Iterable[str] = ()) -> list[str]:
    names = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    return [f"{name}_" if name in set(taken) else name for name in names]


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in (*module.parameters(), *module.buffers())), torch.device("cpu"))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode inside; modes and random state as before after."""
    modes = [(part, part.training) for part in module.modules()]
    random_state = torch.random.get_rng_state()
    _set_mode(module, False)
    try:
        yield
    finally:
        _set_mode(module, modes[0][1])
        for part, training in modes:
            part.training = training
        torch.random.set_rng_state(random_state)


def _set_mode(module: nn.Module, training: bool) -> None:
    """Graphs captured by torch.export keep one mode for ever and refuse to switch."""
    with contextlib.suppress(NotImplementedError):
        module.train(training)


@contextlib.contextmanager
def _quiet() -> Iterator[set[Place]]:
    """Without the exporter's farewell to itself and what it prints. Gives the places that its tracer warned of."""
    with python_values() as places, contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", message="You are using the legacy TorchScript", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="The feature will be removed", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx")
        yield places

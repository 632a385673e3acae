"""A loaded graph file on PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from paretoprune.core.errors import TargetError, UsageError
from paretoprune.targets.graph_file import OPEN, GraphFile
from paretoprune.targets.semi_structured import KEY
from paretoprune.targets.session import one_line

HALF = (torch.float16, torch.bfloat16)
FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AssertionError, NotImplementedError)
"""What operators, and torch's compiler, raise for inputs or types that they do not take."""


class TorchRunner:
    """Implements core.protocols.Runner. Half-precision results are given as float32, which holds them exactly.

    `call` runs the graph on tensors: the module itself, or its `compiled` form.
    """

    def __init__(
        self, call: Callable[..., Any], held: GraphFile, name: str, device: str, threads: int, compiled: bool = False
    ) -> None:
        self._call, self._inputs, self._name = call, held.inputs, name
        self._device, self._threads, self._compiled = device, threads, compiled
        self._casts = [getattr(torch, i.cast) if i.name else None for i in self._inputs]
        self._named = {i.name: i for i in self._inputs if i.name}
        self.input_names: tuple[str, ...] = tuple(self._named)
        self.output_names: tuple[str, ...] = output_names(held.outputs)

    @property
    def notes(self) -> Mapping[str, str]:
        """Weights that obey 2:4 -> "" where they are computed sparse, else why not. Of target `cuda` alone."""
        found: Mapping[str, str] = getattr(self._call, "meta", {}).get(KEY, {})
        return found

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        return tuple(np.array(_plain(t)) for t in self._run(self._placed(inputs)))

    def bind(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], Any]:
        """A call on inputs that lie where they are computed on already; its results stay there. What is timed."""
        placed = self._placed(inputs)
        return lambda: self._run(placed)

    def sample(self) -> dict[str, NDArray[Any]]:
        """One sample by input name: seeded noise, integers zero."""
        return noise({i.name: (i.shape, i.dtype, i.batched) for i in self._named.values()})

    def _placed(self, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
        check_feed(self._name, {i.name: (i.shape, i.dtype, i.batched) for i in self._named.values()}, inputs)
        return [
            self._tensor(np.ascontiguousarray(inputs[i.name]), i.batched) if i.name else i.value for i in self._inputs
        ]

    def _tensor(self, array: NDArray[Any], batched: bool) -> torch.Tensor:
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy()).to(self._device)
        if self._compiled and batched and len(tensor) > 1:
            # Else the compiler makes one form for every size of batch; of batch 1 it always makes its own.
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return tensor

    def _run(self, placed: Sequence[Any]) -> list[torch.Tensor]:
        try:
            with settings(self._threads, self._device):
                given = self._call(*(v if c is None else v.to(c) for v, c in zip(placed, self._casts, strict=True)))
        except FAILURES as error:
            shapes = ", ".join(
                f"{i.name} {tuple(v.shape)}" for i, v in zip(self._inputs, placed, strict=True) if i.name
            )
            raise TargetError(f"{self._name} does not run on {shapes}: {one_line(error)}") from error
        return [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor)]


def loaded(module: nn.Module, device: str) -> nn.Module:
    try:
        return module.eval().requires_grad_(False).to(device)
    except RuntimeError as error:  # among them torch's own for too little memory
        raise TargetError(f"the network cannot be moved to {device}: {one_line(error)}") from error


@contextmanager
def settings(threads: int, device: str) -> Iterator[None]:
    """No gradients, so many threads, and float32 that is not rounded to TF32 on a GPU; put back afterwards."""
    before = torch.get_num_threads()
    exact = nullcontext() if device == "cpu" else _exact()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        with torch.no_grad(), exact:
            yield
    finally:
        if before != threads:
            torch.set_num_threads(before)


def _exact() -> AbstractContextManager[None]:
    cudnn = torch.backends.cudnn
    return cudnn.flags(  # type: ignore[no-untyped-call, no-any-return, unused-ignore]
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )


Expected = Mapping[str, tuple[tuple[int, ...], str, bool]]
"""By input name: shape, type, and whether dimension 0 is the batch and may have any size."""


def check_feed(name: str, expected: Expected, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Raises TargetError for other names, and for shapes and types that torch would broadcast or cast in silence."""
    if inputs.keys() != expected.keys():
        raise TargetError(f"{name} takes the inputs {', '.join(expected)}; given were {', '.join(inputs) or 'none'}")
    for key, (shape, dtype, batched) in expected.items():
        given = np.asarray(inputs[key])
        first = 1 if batched else 0
        sizes = zip(shape[first:], given.shape[first:], strict=False)
        fits = given.ndim == len(shape) and all(wanted in (OPEN, size) for wanted, size in sizes)
        if not fits or str(given.dtype) != dtype:
            named = ["any" if size == OPEN else str(size) for size in shape[first:]]
            takes = ", ".join(["batch" if batched else "", *named]).removeprefix(", ")
            raise TargetError(
                f"{name} does not run on {key} {given.shape} of {given.dtype}: it takes ({takes}) of {dtype}"
            )


def noise(expected: Expected) -> dict[str, NDArray[Any]]:
    rng, feed = np.random.default_rng(0), dict[str, NDArray[Any]]()
    for name, (shape, dtype, batched) in expected.items():
        one = (1, *shape[1:]) if batched else shape
        if OPEN in one:
            raise UsageError(f"the size of input {name!r} is open beyond the batch; give an example")
        floating = dtype.startswith("float")
        feed[name] = rng.standard_normal(one).astype(dtype) if floating else np.zeros(one, dtype)
    return feed


def output_names(count: int) -> tuple[str, ...]:
    return ("output",) if count == 1 else tuple(f"output_{i}" for i in range(count))


def _plain(tensor: torch.Tensor) -> NDArray[Any]:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype in HALF else tensor).cpu().numpy()

"""What a network of the zoo is: a name, a family, and how it is built with weights that hide nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

Built = tuple[nn.Module, Any]
"""A network and an example: a tensor, a tuple of positional inputs, or a dict of keyword inputs."""


@dataclass(frozen=True)
class Entry:
    """`make` gives (model, example); `needs` is the package that it comes from, empty for torch alone."""

    make: Callable[[], Built]
    family: str
    needs: str = ""
    single: bool = False
    """Its operators know single precision only; everything else is judged in double."""

    def build(self, seed: int = 0) -> Built:
        """The same network every time, in eval mode, with random values wherever there were constant ones."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, example = self.make()
            randomise(model, seed)
            calibrate(model.eval(), example)
        return model, example


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Replace constant parameters and running statistics: a zero gamma or layer scale would hide what is wrong."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.numel():
            with torch.no_grad():
                _randomise(name.rpartition(".")[2], tensor, generator)


def _randomise(leaf: str, tensor: Tensor, generator: torch.Generator) -> None:
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
    if leaf == "running_mean":
        tensor.copy_(0.2 * noise)
    elif leaf == "running_var":
        tensor.copy_(0.75 + 0.5 * noise.abs())
    elif not isinstance(tensor, nn.Parameter):
        return
    elif not bool((tensor == tensor.flatten()[0]).all()):
        _strengthen(tensor)
    elif abs(float(tensor.flatten()[0])) > 0.1:
        tensor.mul_(1 + 0.2 * noise)
    elif "bias" in leaf or tensor.ndim > 1:
        tensor.copy_(0.2 * noise)
    else:
        tensor.copy_(0.7 + 0.2 * noise)


def _strengthen(tensor: Tensor) -> None:
    """Weights of a standard deviation of 0.02 would let a wrong attention score pass as rounding."""
    if tensor.ndim < 2 or tensor[0].numel() < 2:
        return
    least, spread = (tensor[0].numel()) ** -0.5, float(tensor.std())
    if 0 < spread < least:
        tensor.mul_(1.2 * least / spread)


def calibrate(model: nn.Module, example: Any) -> None:
    """Running statistics near those of random batches, or deep networks would give the same for every input."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    was = [n.momentum for n in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    args, kwargs = arguments(redrawn(example, 8))
    with torch.no_grad():
        model(*args, **kwargs)
    for norm, momentum in zip(norms, was, strict=True):
        norm.eval()
        norm.momentum = momentum
        mean, var = norm.running_mean, norm.running_var
        var.clamp_(min=max(0.05 * float(var.mean()), 1e-4)).mul_(torch.rand_like(var) + 0.5)
        mean.add_(0.2 * torch.randn_like(mean) * var.sqrt())


def redrawn(example: Any, batch: int, seed: int = 0) -> Any:
    """Another example of the same kinds at another batch size: normal values, integers and flags drawn again."""
    generator = torch.Generator().manual_seed(seed)

    def draw(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        shape = (batch, *value.shape[1:])
        if value.is_floating_point():
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            return (noise * float(value.double().std()) + float(value.double().mean())).to(value.dtype)
        low, high = int(value.min()), int(value.max())
        return torch.randint(low, high + 1, shape, generator=generator).to(value.dtype)

    return pytree.tree_map(draw, example)


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs of a call."""
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


@functools.cache
def torchvision_operators() -> torch.library.Library:
    """The wheels of torchvision are built for a CUDA torch: beside a CPU one they import after these definitions."""
    library = torch.library.Library("torchvision", "DEF")
    try:
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError as error:
        if "multiple times" not in str(error):
            raise
    return library


def image(side: int, channels: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, side, side)


def clip(frames: int, side: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, frames, side, side)


def tokens(length: int, vocabulary: int, batch: int = 2) -> Tensor:
    """Token ids above the usual special ones; the first and the last possible id are among them."""
    ids = torch.randint(4, vocabulary, (batch, length))
    ids[0, 1], ids[0, 2] = 4, vocabulary - 1
    return ids

"""The user's network before capture: what is refused, and a private copy of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from paretoprune.core.errors import CaptureError, DataError, ModelError
from paretoprune.core.graph import Example
from paretoprune.graph.shared import sharing

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def check_model(model: nn.Module) -> None:
    """Refuse NaN or infinite weights, several devices, no parameters: before any work."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("the network is TorchScript, which has no Python code: give the module that it was made from")
    if isinstance(model, nn.Module):
        _check_modules(model)
    check_sound(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        _check_kind(name, tensor)
    if not any(True for _ in model.parameters()):
        raise ModelError(f"{type(model).__name__} has no parameters: nothing to prune")


def check_sound(model: nn.Module) -> None:
    """Refuse what can neither be pruned nor exported: NaN or infinite weights, several devices, a module in itself."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}; give a torch.nn.Module (an instance, not its class)")
    if loop := _loop(model):
        raise ModelError(f"module '{loop}' contains itself: keep such a reference in a list or a plain function")
    devices: dict[str, str] = {}
    named = (*model.named_parameters(), *model.named_buffers())
    for name, tensor in named:
        devices.setdefault(str(tensor.device), name)
    if len(devices) > 1:
        where = " and ".join(f"'{n}' on {d}" for d, n in devices.items())
        load = "load the weights that are on meta, which have no values yet, and " if "meta" in devices else ""
        raise ModelError(f"the network is on several devices ({where}): {load}move it to one with .to(device)")
    for name, tensor in named:
        _check_values(name, tensor)


_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "torchao.")
_SHARDED = ("FullyShardedDataParallel", "DTensor")
_GATHER = "is sharded over processes: gather its state dict and load it into a plain network"


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).__module__.startswith(_QUANTIZED):
            kind = type(module).__name__
            raise ModelError(f"'{name}' ({kind}) is already quantized: give the float network, it is quantized here")
        if type(module).__name__ in _SHARDED:
            raise ModelError(f"'{name or type(model).__name__}' {_GATHER}")


def unwrapped(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The network inside `torch.compile` and data-parallel wrappers, and a sentence on each that was taken off."""
    notes: list[str] = []
    while isinstance(model, nn.Module) and (inner := _WRAPPERS.get(type(model).__name__)) in model._modules:
        notes.append(f"the {type(model).__name__} around the network was taken off: wrap the result again")
        model = model.get_submodule(inner)
    return model, tuple(notes)


_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
"""Class -> where the network is in it."""


def _check_kind(name: str, tensor: torch.Tensor) -> None:
    """Refuse what surgery cannot slice."""
    if type(tensor).__module__.startswith(_QUANTIZED) or tensor.is_quantized:
        raise ModelError(f"'{name}' is already quantized: give the float network, quantization is done here")
    if tensor.layout != torch.strided:
        raise ModelError(f"'{name}' is a sparse tensor ({tensor.layout}): convert it with .to_dense() first")


def _check_values(name: str, tensor: torch.Tensor) -> None:
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        raise ModelError(f"'{name}' has no shape yet (a lazy module): run the network once, then give it")
    if type(tensor).__name__ in _SHARDED:
        raise ModelError(f"'{name}' {_GATHER}")
    if tensor.is_meta:
        raise ModelError(f"'{name}' is on the meta device, without values: load the weights first")
    if type(tensor).__module__.startswith(_QUANTIZED) or tensor.is_quantized or tensor.layout != torch.strided:
        return
    if not tensor.is_floating_point() and not tensor.is_complex():
        return
    if not _finite(tensor.detach()) and not _is_mask(tensor):
        kind = "NaN" if torch.isnan(tensor).any() else "infinite"
        bad = int((~torch.isfinite(tensor)).sum())
        raise ModelError(f"'{name}' holds {bad} {kind} value(s) of {tensor.numel()}: load a sound checkpoint")


def _is_mask(tensor: torch.Tensor) -> bool:
    """An additive attention mask: a buffer of finite values and of minus infinity."""
    if isinstance(tensor, nn.Parameter) or tensor.is_complex():
        return False
    return bool((torch.isfinite(tensor) | torch.isneginf(tensor)).all())


def _finite(tensor: torch.Tensor) -> bool:
    """By its least and largest value, which takes no memory, for the types that have them."""
    if not tensor.is_complex() and tensor.dtype.itemsize > 1 and tensor.numel():
        return all(bool(torch.isfinite(v)) for v in torch.aminmax(tensor))
    return bool(torch.isfinite(tensor).all())


def _loop(model: nn.Module) -> str:
    """The path of a module that stands below itself; empty if there is none."""
    open_, done = {id(model)}, set[int]()
    stack: list[tuple[str, nn.Module, Iterator[tuple[str, nn.Module]]]] = [("", model, model.named_children())]
    while stack:
        path, module, children = stack[-1]
        name, child = next(children, ("", None))
        if child is None:
            stack.pop()
            open_.discard(id(module))
            done.add(id(module))
        elif id(child) in open_:
            return f"{path}.{name}".lstrip(".")
        elif id(child) not in done:
            open_.add(id(child))
            stack.append((f"{path}.{name}".lstrip("."), child, child.named_children()))
    return ""


def check_example(model: nn.Module, example: Example) -> None:
    """Refuse an example on another device than the network, without a batch dimension, or empty."""
    name, parameter = next(iter(model.named_parameters()))
    given = list(example.tensors())
    if not given:
        leaves = pytree.tree_leaves((example.args, dict(example.kwargs)))
        kinds = ", ".join(sorted({type(v).__name__ for v in leaves if v is not None}))
        held = f" but {kinds}" if kinds else ""
        raise DataError(
            f"the example holds no tensor{held}: give a tensor, a tuple of inputs, or a dict of keyword inputs"
        )
    for key, tensor in given:
        _check_input(key, tensor)
        if tensor.device != parameter.device:
            raise ModelError(
                f"{key} is on {tensor.device} and parameter '{name}' on {parameter.device}: move one with .to(device)"
            )
        if not any(t.ndim for _, t in given):
            raise DataError(f"{key} has no dimensions: at least one input needs a batch dimension first")
        if 0 in tensor.shape:
            raise DataError(f"{key} is empty (shape {tuple(tensor.shape)}): give at least one sample")


def _check_input(key: str, tensor: Any) -> None:
    """An input must be a plain tensor of real values; minus infinity stands in additive masks."""
    if not isinstance(tensor, torch.Tensor):
        raise DataError(
            f"{key} is a {type(tensor).__module__}.{type(tensor).__name__}: convert it with torch.as_tensor()"
        )
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "nested" if tensor.is_nested else "sparse"
        dense = "pad it (.to_padded_tensor)" if tensor.is_nested else "convert it with .to_dense()"
        raise DataError(f"{key} is a {kind} tensor: {dense}")
    if tensor.is_quantized:
        raise DataError(f"{key} is quantized ({tensor.dtype}): convert it with .dequantize()")
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return
    sound = torch.isfinite(tensor) if tensor.is_complex() else torch.isfinite(tensor) | torch.isneginf(tensor)
    if not bool(sound.all()):
        bad = int((~sound).sum())
        raise DataError(
            f"{key} holds {bad} NaN or infinite value(s) of {tensor.numel()}: give an example of real values"
        )


def private_copy(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in eval mode whose parameters share the caller's memory, and sentences on what was left out of it.

    Nothing may write into these parameters; buffers are its own. Without hooks; weight norms, spectral norms and other
    reparametrisations are folded into plain weights; parameters that view the same memory in the same way are one.
    """
    memo = sharing(model, shared_storage(model)) | _computed(model)
    try:
        clone = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, NotImplementedError, AttributeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise CaptureError(
            f"{type(model).__name__} cannot be deep-copied ({type(error).__name__}: {first}): "
            "remove what it holds besides parameters, buffers and plain values"
        ) from error
    _tie_again(model, clone)
    forget(clone)
    notes = []
    for name, module in clone.named_modules():
        label = name or type(model).__name__
        if _fold(module):
            notes.append(f"'{label}' had a reparametrised weight: it is folded into a plain one")
        if any(getattr(module, h, None) for h in ("_forward_hooks", "_forward_pre_hooks")):
            notes.append(f"'{label}' has hooks: they are not part of the captured graph and are not called")
        for hooks in _HOOKS:
            getattr(module, hooks, {}).clear()
        # A transformers model installs hooks of its own at its first call and remembers that: here they are gone.
        module.__dict__.pop("_output_capturing_hooks_installed", None)
    return clone, tuple(notes)


def forget(model: nn.Module) -> None:
    """To eval mode by way of training mode, at which networks drop what they remember of earlier calls.

    timm's LeViT and EfficientFormer, for instance, keep the attention biases that they looked up.
    """
    model.train()
    model.eval()


def _computed(model: nn.Module) -> dict[int, Any]:
    """What was computed from parameters and remembered is no leaf, which a deep copy refuses: its memo for them."""
    held = [value for module in model.modules() for value in vars(module).values()]
    tensors = [t for t in pytree.tree_leaves(held) if isinstance(t, torch.Tensor) and t.grad_fn is not None]
    return {id(t): t.detach().clone() for t in tensors}


def _fold(module: nn.Module) -> bool:
    """Replace reparametrised weights by their values."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    folded = False
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            (remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm)(module, hook.name)
            folded = True
    parametrizations = module._modules.get("parametrizations")
    if isinstance(parametrizations, nn.ModuleDict):
        _fold_parametrizations(module, parametrizations)
        folded = True
    return folded


def _fold_parametrizations(module: nn.Module, parametrizations: nn.ModuleDict) -> None:
    """torch's own remove_parametrizations edits the class, which the caller's network shares."""
    values = {name: getattr(module, name).detach().clone() for name in parametrizations}
    trained = {name: any(p.requires_grad for p in parametrizations[name].parameters()) for name in parametrizations}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        if list(parametrizations[name].parameters()):
            module.register_parameter(name, nn.Parameter(value, requires_grad=trained[name]))
        else:
            module.register_buffer(name, value)


# -- memory that several tensors share -------------------------------------------------------------------------------


def _named(model: nn.Module) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def _view_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage().data_ptr()
    return storage, tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride()


def _tie_again(model: nn.Module, clone: nn.Module) -> None:
    """Distinct parameters over the same memory come apart in a deep copy: make them one object."""
    first: dict[Any, tuple[str, int]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if not tensor.numel():
            continue
        twin, identity = first.setdefault(_view_of(tensor), (name, id(tensor)))
        if identity != id(tensor):
            owner, _, leaf = name.rpartition(".")
            clone.get_submodule(owner).register_parameter(leaf, clone.get_parameter(twin))


def shared_storage(model: nn.Module) -> dict[str, str]:
    """Parameters and buffers that overlap with another in memory without being the same view, and with which."""
    by_storage: dict[int, list[str]] = {}
    tensors = {n: t for n, t in _named(model).items() if t.numel()}
    for name, tensor in tensors.items():
        by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    found: dict[str, str] = {}
    for names in by_storage.values():
        for name in names if len(names) > 1 else ():
            mine = tensors[name]
            other = next(
                (o for o in names if _overlap(mine, tensors[o]) and _view_of(mine) != _view_of(tensors[o])), None
            )
            if other is not None:
                found[name] = f"'{name}' shares memory with '{other}' in another layout"
    return found


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    (a_first, a_last), (b_first, b_last) = _range(a), _range(b)
    return a_first <= b_last and b_first <= a_last


def _range(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last byte."""
    first, width = int(tensor.storage_offset()), tensor.element_size()
    last = first + sum((n - 1) * int(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return first * width, (last + 1) * width - 1


@contextmanager
def untouched_rng(model: nn.Module) -> Iterator[None]:
    """The random state of the CPU and of the network's GPU is as before when the block is left."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield

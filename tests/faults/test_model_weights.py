"""Faults of what a network holds: FAULTS 19, 21, 26 to 30, 33 and 36."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune.core.errors import DataError, ModelError, TargetError

pytestmark = pytest.mark.fault
X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """`forward` is a function of the module and its input; "a" has 8 units."""

    def __init__(self, forward: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.function = forward

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args) if self.function is not None else self.b(F.relu(self.a(*args)))


WAYS = pytest.mark.parametrize("way", ["trace", "prune", "export"])
GRAPH = pytest.mark.parametrize("way", ["trace", "prune"])


@WAYS
@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("-inf"), "infinite")])
@pytest.mark.parametrize("name", ["a.weight", "norm.running_var"])
def test_19_nan_or_infinite_weights_are_refused(kept: Any, way: str, value: float, kind: str, name: str) -> None:
    model = Small()
    model.norm = nn.BatchNorm1d(8)
    tensor = model.state_dict()[name]
    tensor.view(-1)[2:4] = value
    if kind == "infinite" and "running" in name:
        tensor[2] = float("inf")  # minus infinity alone may be a mask
    words = (f"'{name}' holds 2 {kind} value(s) of {tensor.numel()}", "load a sound checkpoint")
    kept.refused(way, model, X, ModelError, *words)


def test_19_a_mask_may_hold_minus_infinity(kept: Any) -> None:
    model = Small(lambda m, x: (m.b(F.relu(m.a(x))) + m.mask).softmax(-1))
    model.register_buffer("mask", torch.tensor([0.0, float("-inf"), 0.0]))
    assert kept.prune(model, X).model.a.weight.shape == (4, 6)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.c.weight = self.b.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))
        return y


def test_21_shared_weights_stay_shared(kept: Any) -> None:
    model = Tied()
    with kept.unchanged(model):
        pruned = kept.prune(model, X)
    for network in (pruned.model, pruned.program.module):
        assert network.b.weight is network.c.weight
        assert network.b.weight.shape == (4, 4)
        assert len(list(network.parameters())) == len(list(model.parameters()))
    again = pp.load(pp.save(pruned, kept.folder / "saved"), model=Tied()).model
    assert again.b.weight is again.c.weight
    assert kept.export(pruned, X).is_file()


def test_26_frozen_parameters_stay_frozen(kept: Any) -> None:
    model = Small()
    model.a.weight.requires_grad_(False)
    with kept.unchanged(model):
        pruned = kept.prune(model, X)
    again = pp.load(pp.save(pruned, kept.folder / "saved"))
    for network in (pruned.model, pruned.program.module, again.model):
        trainable = {n for n, p in network.named_parameters() if p.requires_grad}
        assert trainable == {"a.bias", "b.weight", "b.bias"}
        before = network.a.weight.clone()
        network(X).sum().backward()
        torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1).step()
        assert torch.equal(network.a.weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_27_half_precision_stays_what_it_is_or_is_refused(kept: Any, dtype: torch.dtype) -> None:
    model = Small().to(dtype)
    with kept.unchanged(model):
        pruned = kept.prune(model, X.to(dtype))
    assert {p.dtype for p in pruned.model.parameters()} == {dtype}
    assert pruned.model(X.to(dtype)).dtype == pruned.program.module(X.to(dtype)).dtype == dtype
    name = str(dtype).removeprefix("torch.")
    kept.refused("export", model, X.to(dtype), TargetError, f"a.weight is {name}", "Convert it first", ".float()")
    words = (f"input is torch.float32 and the parameters are {dtype}", f"convert one with .to({dtype})")
    kept.refused("trace", model, X, ModelError, *words)


def test_28_complex_tensors_are_frozen_and_said(kept: Any) -> None:
    model = Small(lambda m, x: m.b((m.a(x) * m.z).abs()))
    model.z = nn.Parameter(torch.randn(8, dtype=torch.complex64))
    axis = next(a for a in kept.trace(model, X).axes if a.id == "a")
    assert (axis.prunable, axis.why) == (False, "it is complex")
    kept.refused("prune", model, X, ModelError, "no axis to prune", "'a': it is complex")
    kept.refused("export", model, X, TargetError, "z is complex64", "float32 networks only")


@GRAPH
def test_29_sparse_tensors_are_refused(kept: Any, way: str) -> None:
    model = Small()
    kept.refused(way, model, X.to_sparse(), DataError, "input is a sparse tensor", ".to_dense()")
    model.register_buffer("mask", torch.eye(8).to_sparse())
    kept.refused(
        way, model, X, ModelError, "'mask' is a sparse tensor (torch.sparse_coo)", "convert it with .to_dense()"
    )


@GRAPH
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_30_quantized_tensors_and_layers_are_refused(kept: Any, way: str) -> None:
    model = Small()
    model.register_buffer("q", torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8))
    kept.refused(way, model, X, ModelError, "'q' is already quantized", "give the float network")
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    kept.refused(way, quantized, X, ModelError, "'0' (Linear) is already quantized", "give the float network")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_30_a_quantized_layer_is_not_exported_as_something_else(kept: Any) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), {nn.Linear})
    kept.refused("export", quantized, X, TargetError, "the ONNX exporter refused the network", "quantized::linear")


@GRAPH
@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Flatten())], ids=["ReLU", "Sequential"])
def test_33_without_parameters_there_is_nothing_to_prune(kept: Any, way: str, model: nn.Module) -> None:
    kept.refused(way, model, X, ModelError, f"{type(model).__name__} has no parameters: nothing to prune")


def test_33_without_parameters_there_still_is_something_to_export(kept: Any) -> None:
    file = kept.export(nn.ReLU(), X)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {"input": X.numpy()})
    assert torch.equal(torch.from_numpy(given), X.relu())


@WAYS
def test_36_parameters_on_several_devices_are_both_named(kept: Any, way: str) -> None:
    model = Small()
    model.b.to("meta")
    words = ("'a.weight' on cpu and 'b.weight' on meta", "load the weights that are on meta", ".to(device)")
    kept.refused(way, model, X, ModelError, *words)


@GRAPH
def test_36_an_example_on_another_device_is_named_with_the_parameters(kept: Any, way: str) -> None:
    words = ("input is on meta and parameter 'a.weight' on cpu", "move one with .to(device)")
    kept.refused(way, Small(), X.to("meta"), ModelError, *words)


def test_36_an_example_without_values_is_not_exported(kept: Any) -> None:
    kept.refused("export", Small(), X.to("meta"), DataError, "input is on the meta device, without values", "give an")


@WAYS
def test_36_a_network_without_values_is_refused(kept: Any, way: str) -> None:
    kept.refused(way, Small().to("meta"), X, ModelError, "'a.weight' is on the meta device, without values", "load the")

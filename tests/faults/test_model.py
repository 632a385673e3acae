"""Faults of the model: FAULTS 18, 19, 21, 22, 24 to 37 as far as capture and surgery go."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paretoprune import graph as graphs
from paretoprune.core.errors import CaptureError, DataError, ModelError, PlanError, PruneError, SurgeryError
from paretoprune.core.plan import Plan
from paretoprune.graph import surgery

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(F.relu(self.a(x)))


class With(Small):
    """Small, with another forward."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.function = forward

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def one_line(error: pytest.ExceptionInfo[PruneError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.fault
def test_18_a_branch_on_the_data_names_the_line() -> None:
    class Branching(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:  # the line that must be named
                return self.b(self.a(x))
            return self.b(self.a(-x))

    with pytest.raises(CaptureError, match="a branch depends on the data") as error:
        graphs.trace(Branching(), X)
    text = one_line(error)
    assert "test_model.py:" in text
    assert "if x.sum() > 0" in text


@pytest.mark.fault
@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_19_nan_or_infinite_weights_are_refused(value: float, kind: str) -> None:
    model = Small()
    with torch.no_grad():
        model.a.weight[2, 3] = value
    with pytest.raises(ModelError, match=f"'a.weight' holds 1 {kind}") as error:
        graphs.trace(model, X)
    one_line(error)


@pytest.mark.fault
def test_21_shared_weights_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.c.weight = self.b.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))

    model = Tied()
    graph = graphs.trace(model, X)
    cut = graphs.cut(graph, Plan({"a": (0, 1, 5)}))
    module = cut.program.module
    assert module.b.weight is module.c.weight
    assert module.b.weight.shape == (3, 3)
    assert copy.deepcopy(module).b.weight.shape == (3, 3)
    rebuilt, _ = graphs.rebuild(model, graph, cut)
    assert rebuilt is not None
    assert rebuilt.b.weight is rebuilt.c.weight
    assert len(list(rebuilt.parameters())) == len(list(model.parameters()))


@pytest.mark.fault
def test_22_an_operator_without_a_rule_freezes_and_is_listed() -> None:
    model = With(lambda m, x: m.b(torch.cumsum(m.a(x), -1)))
    graph = graphs.trace(model, X)
    assert not any(a.prunable for a in graph.axes)
    assert any("cumsum has no rule" in n for n in graph.notes)
    with pytest.raises(PlanError, match="cannot prune axis 'a': cumsum has no rule"):
        graphs.cut(graph, Plan({"a": (0,)}))


@pytest.mark.fault
def test_24_a_dynamic_batch_stays_dynamic() -> None:
    model = With(lambda m, x: m.b(m.a(x).view(x.size(0) * 2, 4).view(x.size(0), -1)))
    graph = graphs.trace(model, X[:1])
    assert sorted(a.size for a in graph.axes if a.prunable) == [2, 4]
    kept = {a.id: (0, 2) for a in graph.axes if a.prunable and a.size == 4}
    module = graphs.cut(graph, Plan(kept)).program.module
    for batch in (1, 2, 7):
        assert module(torch.randn(batch, 6)).shape == (batch, 3)


@pytest.mark.fault
@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"logits": y, "none": None},
        lambda y: (y, y * 2),
        lambda y: [y, (y, {"deep": y})],
        lambda y: (None, y),
    ],
)
def test_25_structured_outputs(wrap: Callable[[Any], Any]) -> None:
    model = With(lambda m, x: wrap(m.b(F.relu(m.a(x)))))
    graph = graphs.trace(model, X)
    plan = Plan({"a": (0, 3, 4)})
    graphs.check(graph, plan)
    output = graphs.cut(graph, plan).program.module(X)
    spec = torch.utils._pytree.tree_structure
    assert spec(output) == spec(model(X))


@pytest.mark.fault
def test_26_frozen_parameters_stay_frozen() -> None:
    model = Small()
    model.a.weight.requires_grad_(False)
    graph = graphs.trace(model, X)
    cut = graphs.cut(graph, Plan({"a": (0, 3, 4)}))
    rebuilt, _ = graphs.rebuild(model, graph, cut)
    for network in (cut.program.module, rebuilt):
        assert network is not None
        assert {n: p.requires_grad for n, p in network.named_parameters()} == {
            "a.weight": False,
            "a.bias": True,
            "b.weight": True,
            "b.bias": True,
        }


@pytest.mark.fault
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_27_half_precision_stays_what_it_is(dtype: torch.dtype) -> None:
    model = Small().to(dtype)
    graph = graphs.trace(model, X.to(dtype))
    plan = Plan({"a": (0, 3, 4)})
    graphs.check(graph, plan)
    module = graphs.cut(graph, plan).program.module
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert module(X.to(dtype)).dtype == dtype


@pytest.mark.fault
def test_28_complex_tensors_are_frozen() -> None:
    model = With(lambda m, x: m.b((m.a(x) * m.z).abs()))
    model.z = nn.Parameter(torch.randn(8, dtype=torch.complex64))
    axis = next(a for a in graphs.trace(model, X).axes if a.id == "a")
    assert not axis.prunable
    assert axis.why == "it is complex"


@pytest.mark.fault
def test_29_sparse_tensors_are_refused() -> None:
    model = Small()
    model.register_buffer("mask", torch.eye(8).to_sparse())
    with pytest.raises(ModelError, match="'mask' is a sparse tensor .*to_dense") as error:
        graphs.trace(model, X)
    one_line(error)


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_30_quantized_tensors_are_refused() -> None:
    model = Small()
    model.register_buffer("q", torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8))
    with pytest.raises(ModelError, match="'q' is already quantized") as error:
        graphs.trace(model, X)
    one_line(error)


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_31_a_thousand_layers_and_a_hundred_thousand_channels() -> None:
    def seconds(layers: int) -> float:
        model = nn.Sequential(*(m for _ in range(layers) for m in (nn.Linear(4, 4), nn.ReLU())), nn.Linear(4, 2))
        started = time.process_time()
        graph = graphs.trace(model, torch.randn(2, 4))
        assert sum(a.prunable for a in graph.axes) == layers
        graphs.check(graph, Plan({"0": (0, 2, 3)}))
        return time.process_time() - started

    seconds(10)
    assert seconds(1000) < 30 * (seconds(100) + 1)
    wide = nn.Sequential(nn.Linear(2, 100_000), nn.ReLU(), nn.Linear(100_000, 2))
    graph = graphs.trace(wide, torch.randn(2, 2))
    cut = graphs.cut(graph, Plan({"0": tuple(range(0, 100_000, 7))}))
    assert cut.program.module(torch.randn(2, 2)).shape == (2, 2)


@pytest.mark.fault
def test_32_a_module_that_contains_itself_is_refused() -> None:
    model = Small()
    model.a.parent = model
    with pytest.raises(ModelError, match=r"module 'a\.parent' contains itself") as error:
        graphs.trace(model, X)
    one_line(error)
    shared = Small()
    shared.again = shared.a  # standing in two places is no loop
    assert graphs.trace(shared, X).axes


@pytest.mark.fault
def test_33_nothing_to_prune() -> None:
    with pytest.raises(ModelError, match="no parameters: nothing to prune") as error:
        graphs.trace(nn.ReLU(), X)
    one_line(error)


@pytest.mark.fault
def test_34_the_self_check_catches_a_broken_surgery(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graphs.trace(Small(), X)
    plan = Plan({"a": (0, 3, 4)})
    graphs.check(graph, plan)
    right = surgery.kept_indices
    monkeypatch.setattr(surgery, "kept_indices", lambda e, k: (right(e, k) + 1) % e.size)
    with pytest.raises(SurgeryError, match="differs from the dead-channel reference by .* after pruning 'a'") as error:
        graphs.check(graph, plan)
    one_line(error)


@pytest.mark.fault
def test_34_the_self_check_names_the_axis_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    graph = graphs.trace(model, X)
    right = surgery.kept_indices
    monkeypatch.setattr(
        surgery, "kept_indices", lambda e, k: (right(e, k) + 1) % e.size if e.size == 5 else right(e, k)
    )
    with pytest.raises(SurgeryError, match="after pruning '2';"):
        graphs.check(graph, Plan({"0": (0, 1), "2": (1, 2)}))


@pytest.mark.fault
def test_34_a_constant_output_proves_nothing() -> None:
    model = With(lambda m, x: m.b(F.relu(m.a(x))) * 0 + m.b.bias)
    graph = graphs.trace(model, X)
    with pytest.raises(SurgeryError, match="the self-check proves nothing") as error:
        graphs.check(graph, Plan({"a": (0, 1)}))
    one_line(error)


@pytest.mark.fault
def test_34_own_zeros_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch that its last layer switches off is checked with random weights."""
    model = With(lambda m, x: x + F.pad(m.b(F.relu(m.a(x))), (0, 3)))
    nn.init.zeros_(model.b.weight)
    graph = graphs.trace(model, X)
    plan = Plan({"a": (0, 3, 4)})
    graphs.check(graph, plan)
    right = surgery.kept_indices
    monkeypatch.setattr(surgery, "slice_tensor", lambda t, k, *_: surgery_swapped(t, k))

    def surgery_swapped(tensor: torch.Tensor, kept: Any) -> torch.Tensor:
        for dim, indices in enumerate(kept):
            if indices is not None:
                shift = dim if tensor.ndim == 2 else 0
                index = torch.from_numpy((indices + shift) % tensor.shape[dim])
                tensor = tensor.index_select(dim, index)
        return tensor.clone()

    assert right is surgery.kept_indices
    with pytest.raises(SurgeryError):
        graphs.check(graph, plan)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({"a": ()}, "to 0 of 8 positions: at least 1 must stay"),
        ({"a": (8,)}, "keeps position 8 of axis 'a', which has positions 0 to 7"),
        ({"a": (-1, 2)}, "keeps position -1"),
        ({"c": (1,)}, "names axis 'c', which this network does not have; it has: a"),
        ({"b": (1,)}, "cannot prune axis 'b': it is an output of the network"),
    ],
)
def test_35_no_axis_below_its_floor(kept: dict[str, tuple[int, ...]], words: str) -> None:
    graph = graphs.trace(Small(), X)
    with pytest.raises(PlanError) as error:
        graphs.cut(graph, Plan(kept))
    assert words in one_line(error)


@pytest.mark.fault
def test_36_mixed_devices_are_both_named() -> None:
    model = Small()
    model.b.to("meta")
    with pytest.raises(ModelError, match="meta") as error:
        graphs.trace(model, X)
    one_line(error)
    with pytest.raises(ModelError, match="input is on meta and parameter 'a.weight' on cpu") as error:
        graphs.trace(Small(), X.to("meta"))
    one_line(error)


@pytest.mark.fault
def test_37_the_callers_model_is_left_alone() -> None:
    calls: list[str] = []
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 3))
    model.train()
    model[1].eval()
    model(X).sum().backward()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, n=name: calls.append(n))
        module.register_forward_pre_hook(lambda *_, n=name: calls.append(n))
    state = copy.deepcopy(model.state_dict())
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    modes = {n: m.training for n, m in model.named_modules()}
    example, rng = X.clone(), torch.get_rng_state()

    graph = graphs.trace(model, example)
    plan = Plan({"0": (0, 3, 4)})
    graphs.check(graph, plan)
    cut = graphs.cut(graph, plan)
    rebuilt, reason = graphs.rebuild(model, graph, cut)
    assert rebuilt is not None, reason
    cut.program.observe(graph.example, {}, batch_statistics=True)

    assert torch.equal(rng, torch.get_rng_state())
    assert torch.equal(example, X)
    assert calls == []
    assert (
        modes
        == {n: m.training for n, m in model.named_modules()}
        == {n: m.training for n, m in rebuilt.named_modules()}
    )
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert all(torch.equal(gradients[n], p.grad) for n, p in model.named_parameters())
    assert all(p.grad is None for p in rebuilt.parameters())
    assert all(len(m._forward_hooks) == 1 for m in model.modules())
    assert any("hooks" in n for n in graph.notes)


# -- what else comes in wrong ----------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize(
    ("example", "kind", "words"),
    [
        (torch.randn(2, 5), CaptureError, r"cannot run on the example \(input: \(2, 5\)"),
        (torch.randn(0, 6), DataError, "empty"),
        (torch.tensor(1.0), DataError, "no dimensions"),
        ((), DataError, "holds no tensor"),
    ],
)
def test_44_an_example_of_the_wrong_shape(example: Any, kind: type[PruneError], words: str) -> None:
    with pytest.raises(kind, match=words) as error:
        graphs.trace(Small(), example)
    one_line(error)


@pytest.mark.fault
def test_dynamic_dims_that_do_not_exist() -> None:
    with pytest.raises(DataError, match="dynamic names 'tokens', but the inputs are"):
        graphs.trace(Small(), X, {"tokens": [1]})
    with pytest.raises(DataError, match="dimension 4 of 'input', which has 2"):
        graphs.trace(Small(), X, {"input": [4]})


@pytest.mark.fault
def test_a_fixed_batch_is_refused() -> None:
    model = With(lambda m, x: m.b(m.a(x).view(2, 8)))
    with pytest.raises(CaptureError, match="use x.shape\\[0\\] or -1 instead of a number") as error:
        graphs.trace(model, X)
    one_line(error)


@pytest.mark.fault
def test_an_example_without_a_batch_is_refused() -> None:
    with pytest.raises(CaptureError, match="cannot be captured with any batch size") as error:
        graphs.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)), torch.randn(3, 8, 8))
    one_line(error)


@pytest.mark.fault
def test_state_outside_the_graph_is_refused() -> None:
    """A forward whose second call differs from its first cannot be captured by one call."""

    class Counting(Small):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.b(self.a(x)) * (1 if self.calls < 3 else 5)

    with pytest.raises(CaptureError, match="other values than the network") as error:
        graphs.trace(Counting(), X)
    one_line(error)


@pytest.mark.fault
def test_branches_of_training_are_listed() -> None:
    class Noisy(Small):
        def forward(self, x: torch.Tensor) -> Any:
            y = self.a(x)
            if self.training:
                return self.b(y + torch.randn_like(y)), y
            return self.b(y)

    notes = " ".join(graphs.trace(Noisy(), X).notes)
    assert "draws random numbers in 1 place(s) that are not kept" in notes
    assert "gives 2 output(s)" in notes
    dropped = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3))
    assert graphs.trace(dropped, X).notes == ()

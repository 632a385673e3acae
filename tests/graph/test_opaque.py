"""A submodule that no graph can hold: it is run as it is, and the rest is pruned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune.core.errors import CaptureError, FileError, SurgeryError, TargetError

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Part(nn.Module):
    def __init__(self, function: Callable[..., Any], width: int = 8) -> None:
        super().__init__()
        self.inner, self.function = nn.Linear(width, width), function

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


class Around(nn.Module):
    """ "a" (10 units) before and "c" (12 units) behind the part, which takes and gives 8."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 12), nn.Linear(12, 3)
        self.part = part

    def forward(self, x: Tensor) -> Any:
        return self.d(F.relu(self.c(self.part(self.b(F.relu(self.a(x)))))))


def branch(m: Any, x: Tensor) -> Any:
    h = m.inner(x)
    return h * 2 if h.abs().mean() > 1 else h - 1


def array(m: Any, x: Tensor) -> Any:
    return torch.from_numpy(np.sort(m.inner(x).detach().numpy(), axis=1))


def hidden(m: Any, x: Tensor) -> Any:
    try:
        return branch(m, x)
    except Exception:  # noqa: BLE001 - that is the point
        return x


CASES = [
    (branch, "a branch depends on the data", "return h * 2 if h.abs().mean() > 1 else h - 1"),
    (array, "a tensor leaves PyTorch", "np.sort(m.inner(x).detach().numpy(), axis=1)"),
    (hidden, "gives other values than the network", "in forward at "),
]


@pytest.mark.parametrize(("forward", "why", "code"), CASES)
def test_it_is_frozen_and_listed_with_its_line(forward: Callable[..., Any], why: str, code: str) -> None:
    graph = pp.trace(Around(Part(forward)), X)
    assert {a.id: a.size for a in graph.axes if a.prunable} == {"a": 10, "c": 12}
    (note,) = (n for n in graph.notes if n.startswith("'part' (Part) cannot be captured: "))
    for words in (why, code, __file__, "it is run as it is, what it touches stays whole", "are not counted"):
        assert words in note
    frozen = next(a for a in graph.axes if a.id == "b")
    assert frozen.why.startswith("'part' cannot be captured (")
    assert why in frozen.why


@pytest.mark.parametrize(("forward", "why", "code"), CASES)
def test_the_result_runs_trains_and_decides_by_its_own_data(forward: Callable[..., Any], why: str, code: str) -> None:
    model = Around(Part(forward)).eval()
    pruned = pp.prune(model, X, ratio=0.5)
    assert type(pruned.model) is Around
    assert (pruned.model.a.weight.shape, pruned.model.c.weight.shape) == ((5, 6), (6, 8))
    whole = pp.apply(model, X, pp.Plan()).program.module
    ways = set()
    for inputs in (torch.randn(7, 6), torch.zeros(1, 6), *(torch.randn(1, 6) * 40 for _ in range(3))):
        torch.testing.assert_close(whole(inputs), model(inputs))
        torch.testing.assert_close(pruned.program.module(inputs), pruned.model(inputs))
        ways.add(bool(model.part.inner(model.b(F.relu(model.a(inputs)))).abs().mean() > 1))
    assert len(ways) == 2
    for network in (pruned.model, copy.deepcopy(pruned.program.module)):
        network.train()
        network(X).sum().backward()
        assert network.get_parameter("c.weight").grad is not None
        assert (network.get_parameter("part.inner.weight").grad is None) == (forward is array)


def test_it_is_saved_with_its_class_and_loaded_into_a_fresh_one(tmp_path: Path) -> None:
    model = Around(Part(branch)).eval()
    pruned = pp.prune(model, X, ratio=0.5)
    pp.save(pruned, tmp_path)
    again = pp.load(tmp_path, model=Around(Part(branch)))
    for inputs in (0 * X, 40 * X):
        torch.testing.assert_close(again.model(inputs), pruned.model(inputs))
    with pytest.raises(
        FileError, match=r"holds no graph of this Around.* give a fresh network of the class with model="
    ):
        pp.load(tmp_path)


def test_a_file_that_could_hold_one_way_only_is_refused(tmp_path: Path) -> None:
    pruned = pp.prune(Around(Part(branch)).eval(), X, ratio=0.5)
    with pytest.raises(
        TargetError, match=r"makes a Python value of its data at .*return h \* 2 if h\.abs\(\)\.mean\(\) > 1"
    ):
        pp.export(pruned, X, tmp_path / "f.onnx")
    assert list(tmp_path.iterdir()) == []


def test_several_parts_each_called_more_than_once() -> None:
    class Twice(Around):
        def forward(self, x: Tensor) -> Any:
            h = self.part[1](self.part[0](self.b(F.relu(self.a(x)))))
            return self.d(F.relu(self.c(self.part[0](h))))

    model = Twice(nn.ModuleList([Part(branch), Part(branch)])).eval()
    graph = pp.trace(model, X)
    assert [n.partition(" ")[0] for n in graph.notes if "cannot be captured" in n] == ["'part.0'", "'part.1'"]
    pruned = pp.prune(model, X, ratio=0.5)
    torch.testing.assert_close(pruned.model(X), pruned.program.module(X))


def test_parts_that_take_and_give_more_than_one_tensor() -> None:
    class Wide(Around):
        def forward(self, x: Tensor) -> Any:
            h = self.b(F.relu(self.a(x)))
            found = self.part(h, x.shape[0], None)
            return self.d(F.relu(self.c(found["y"][0] + found["y"][1]))) * found["times"]

    def several(m: Any, x: Tensor, rows: int, nothing: None) -> Any:
        h = m.inner(x)
        return {"y": [h if h.sum() > 0 else -h, x.new_ones(rows, 8)], "none": nothing, "times": 3}

    model = Wide(Part(several)).eval()
    pruned = pp.prune(model, X, ratio=0.5)
    assert {a.id for a in pp.trace(model, X).axes if a.prunable} == {"a", "c"}
    for inputs in (X, torch.randn(5, 6)):
        torch.testing.assert_close(pruned.model(inputs), pruned.program.module(inputs))


@pytest.mark.parametrize("seed", [0, 13, 24])
def test_a_result_of_unforeseeable_size_may_only_be_handed_on(seed: int) -> None:
    """Seeds 13 and 24: the size is the same for the example, for one sample more, and for the samples mixed up."""

    def positions(m: Any, x: Tensor) -> Any:
        return torch.from_numpy(np.flatnonzero(m.inner(x).detach().numpy() > 0))

    class Ends(Around):
        def forward(self, x: Tensor) -> Any:
            h = self.b(F.relu(self.a(x)))
            return self.d(F.relu(self.c(h))), self.part(h)

    class GoesOn(Ends):
        def forward(self, x: Tensor) -> Any:
            y, found = super().forward(x)
            return y, found * 2

    pruned = pp.prune(Ends(Part(positions)), X, ratio=0.5)
    for inputs in (X, torch.randn(5, 6)):
        for ours, theirs in zip(pruned.program.module(inputs), pruned.model(inputs), strict=True):
            torch.testing.assert_close(ours, theirs)
    torch.manual_seed(seed)
    with pytest.raises(CaptureError, match="a tensor leaves PyTorch") as error:
        pp.trace(GoesOn(Part(positions)), X)
    assert "'c' on (2, 8)" in str(error.value)


def test_torchscript_inside_is_run_as_it_is() -> None:
    part = torch.jit.trace(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), torch.randn(2, 8))
    model = Around(part).eval()
    graph = pp.trace(model, X)
    assert {a.id for a in graph.axes if a.prunable} == {"a", "c"}
    assert any("it is TorchScript, whose operators cannot be seen" in n for n in graph.notes)
    assert pp.prune(model, X, ratio=0.5).program.module(torch.randn(5, 6)).shape == (5, 3)


def test_the_smallest_part_at_fault_is_the_one_that_is_left_whole() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Around(Part(branch))
            self.head = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 2))

        def forward(self, x: Tensor) -> Any:
            return self.head(self.block(x))

    graph = pp.trace(Deep(), X)
    assert {a.id for a in graph.axes if a.prunable and a.kind == "channel"} >= {"block.a", "block.c", "head.0"}
    assert [n.partition(" ")[0] for n in graph.notes if "cannot be captured" in n] == ["'block.part'"]


def double(h: Tensor) -> Tensor:
    return h * 2


def negate(h: Tensor) -> Tensor:
    return -h


def conditional(m: Any, x: Tensor) -> Any:
    return torch.cond(x.sum() > 0, double, negate, (m.inner(x),))


def test_a_conditional_of_torchs_own_is_a_part_too() -> None:
    model = Around(Part(conditional)).eval()
    graph = pp.trace(model, X)
    assert {a.id for a in graph.axes if a.prunable} == {"a", "c"}
    assert any("a control-flow operator of torch's" in n and "torch.cond(" in n for n in graph.notes)
    with pytest.raises(CaptureError, match="put that step into a submodule of its own"):
        pp.trace(Part(conditional), torch.randn(2, 8))


class First(nn.Module):
    """The part comes first, so it is given the self-check's random inputs."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.a, self.b = part, nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.b(F.relu(self.a(self.part(x))))


def test_a_part_that_takes_single_precision_only_is_checked_in_it() -> None:
    def single(m: Any, x: Tensor) -> Any:
        if x.dtype != torch.float32:
            raise KeyError(x.dtype)
        return m.inner(x) * (2 if x.sum() > 0 else 1)

    assert pp.prune(First(Part(single, 6)), X, ratio=0.5).model.a.weight.shape == (4, 6)


def test_a_part_that_fails_in_the_self_check_is_told_with_its_line() -> None:
    def whole(m: Any, x: Tensor) -> Any:
        if not torch.equal(x, x.round()):
            raise KeyError("whole numbers only")
        return m.inner(x)

    words = r"'part', which is run as it is, fails on the random inputs .*KeyError.*raise KeyError\(.*ignore="
    with pytest.raises(SurgeryError, match=words):
        pp.prune(First(Part(whole, 6)), (X * 10).round(), ratio=0.5)

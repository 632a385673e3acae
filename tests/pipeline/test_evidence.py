"""What criteria see of a network: against what torch itself says of it, on every kind of axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.axis import Axis
from paretoprune.criteria import CRITERIA
from paretoprune.pipeline import choose
from paretoprune.pipeline.evidence import activations, evidence, gates_of, inputs_of, losses, readers
from paretoprune.pipeline.prune import score
from paretoprune.recover import collect_grams, reconstruct
from paretoprune.tasks import task_of

errors = pp.errors
TASK = task_of("classification")


class Attention(nn.Module):
    """2 heads of 4 over 5 tokens of width 6, then a hidden layer of 12; 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))
        self.o = nn.Linear(8, 6)
        self.up, self.down, self.head = nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).reshape(x.shape[0], 5, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 5, 8)
        x = x + self.o(y)
        x = x + self.down(torch.nn.functional.gelu(self.up(x)))
        result: Tensor = self.head(x.mean(1))
        return result


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 10, batch_first=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.lstm(x)[0][:, -1])
        return result


class Experts(nn.Module):
    """4 experts in one stack, all of them weighed by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.experts = nn.Parameter(torch.randn(4, 6, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        answers = torch.matmul(x[:, None, None], self.experts)[:, :, 0]
        result: Tensor = self.head((answers * torch.sigmoid(self.gate(x))[..., None]).sum(1))
        return result


def sequences(count: int = 24, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 5, 6, generator=made), torch.randint(0, 3, (count,), generator=made)
    return list(zip(x.split(8), y.split(8), strict=True))


def traced_of(make: type[nn.Module]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return pp.trace(make().eval(), torch.zeros(2, 5, 6))


@pytest.fixture(scope="module")
def attention() -> Any:
    return traced_of(Attention)


@pytest.fixture(scope="module")
def recurrent() -> Any:
    return traced_of(Recurrent)


@pytest.fixture(scope="module")
def convolutional(make_net: Callable[[], nn.Module], example: Tensor) -> Any:
    return pp.trace(make_net(), example)


def axis_of(traced: Any, kind: str) -> Axis:
    found: Axis = next(a for a in traced.axes if a.prunable and a.kind == kind)
    return found


def test_gates_of_heads_are_derivatives_of_each_samples_loss(attention: Any) -> None:
    heads = axis_of(attention, "heads")
    batches = sequences()
    found = gates_of(attention, readers(attention, [heads]), TASK, batches)["o.weight"]
    assert found.shape == (8, 24)
    net = attention.program.module
    x, y = batches[1]
    state = dict(net.named_parameters())
    for sample in (0, 5):
        gate = torch.ones(2, requires_grad=True)
        gated = {**state, "o.weight": state["o.weight"] * gate.repeat_interleave(4)}
        output = torch.func.functional_call(net, gated, (x,))
        loss = nn.functional.cross_entropy(output[sample : sample + 1], y[sample : sample + 1])
        (expected,) = torch.autograd.grad(loss, gate)
        torch.testing.assert_close(found.reshape(2, 4, 24).sum(1)[:, 8 + sample], expected, rtol=1e-4, atol=1e-6)


def test_gates_of_channels_and_taylor_agree_on_one_sample_batches(convolutional: Any, data: pp.Data) -> None:
    """Over the weights that sum over the axis, (Σ w g)² is the gate's squared derivative: twice Fisher's figure."""
    x, y = next(iter(data.train))
    single = [(x[i : i + 1], y[i : i + 1]) for i in range(12)]
    axes = choose.chosen_axes(convolutional)
    taylor = score(convolutional, axes, CRITERIA["taylor"], TASK, single)
    fisher = score(convolutional, axes, CRITERIA["fisher"], TASK, [(x[:12], y[:12])])
    for axis in axes:
        np.testing.assert_allclose(2 * fisher.by_axis[axis.id], taylor.by_axis[axis.id], rtol=1e-3, atol=1e-9)


def test_inputs_are_the_root_mean_squares_of_what_weights_meet(convolutional: Any, net: Any, data: pp.Data) -> None:
    axes = choose.chosen_axes(convolutional)
    batches = list(data.train)
    found = inputs_of(convolutional, readers(convolutional, axes), batches)
    assert set(found) == {"conv2.weight", "head.weight"}
    assert found["conv2.weight"].shape == net.conv2.weight.shape
    x = torch.cat([x for x, _ in batches])
    with torch.no_grad():
        hidden = torch.relu(net.bn1(net.conv1(x)))
    middle = hidden[:, :, 0::2, 0::2].square().mean(dim=(0, 2, 3)).sqrt()  # what the middle tap meets
    torch.testing.assert_close(found["conv2.weight"][3, :, 1, 1], middle, rtol=1e-4, atol=1e-6)


def test_activations_have_maps_by_sample(convolutional: Any, attention: Any, data: pp.Data) -> None:
    seen = activations(convolutional, readers(convolutional, choose.chosen_axes(convolutional)), data.train)
    assert seen["conv2.weight"].shape == (16, 256, 8, 8)
    assert seen["head.weight"].shape == (32, 256, 1, 1)
    every = activations(attention, readers(attention, choose.chosen_axes(attention)), sequences())
    assert every["o.weight"].shape == (8, 24, 1, 5)
    assert every["down.weight"].shape == (12, 24, 1, 5)


def test_losses_add_up_to_the_error_of_reconstruction(convolutional: Any, data: pp.Data) -> None:
    axes = [a for a in choose.chosen_axes(convolutional) if a.id == "conv2"]
    read = readers(convolutional, axes)
    found = losses(convolutional, axes, read, data.train)["conv2"]
    order = found.argsort()
    gram = collect_grams(convolutional.program, read, data.train)[read[0].node]
    matrix = convolutional.program.module.state_dict()["head.weight"]
    for gone in (5, 20):
        error = reconstruct(matrix, gram, order[gone:]).error
        assert float(found[order[:gone]].sum()) == pytest.approx(error, rel=0.05, abs=1e-6)


@pytest.mark.parametrize("name", [n for n in CRITERIA if n != "bn-scale"])
def test_every_criterion_scores_heads_channels_and_recurrent_units(name: str, attention: Any, recurrent: Any) -> None:
    for traced in (attention, recurrent):
        axes = choose.chosen_axes(traced)
        found = score(traced, axes, CRITERIA[name], TASK, sequences())
        for axis in axes:
            scores = found.by_axis[axis.id]
            assert scores.shape == (axis.size,)
            assert np.isfinite(scores).all()
            assert (scores >= 0).all()
            assert len(set(scores.tolist())) > 1 or name in ("hrank", "fpgm")  # of two, each is as far from the other


def test_what_cannot_be_observed_is_said(attention: Any) -> None:
    traced = traced_of(Experts)
    axes = [axis_of(traced, "experts")]
    for name in ("hrank", "wanda", "fisher", "reconstruction"):
        with pytest.raises(errors.UsageError, match=r"sum over axis '.*', and .*none of them"):
            score(traced, axes, CRITERIA[name], TASK, sequences())
    for name in ("l2", "fpgm", "taylor", "obd", "movement", "random"):
        assert score(traced, axes, CRITERIA[name], TASK, sequences()).by_axis[axes[0].id].shape == (4,)
    with pytest.raises(errors.UsageError, match="has no batch norm with factors"):
        score(attention, choose.chosen_axes(attention), CRITERIA["bn-scale"], TASK, None)


def test_bn_scale_looks_at_the_factors(convolutional: Any) -> None:
    axes = [a for a in choose.chosen_axes(convolutional) if a.id == "conv1"]
    found = score(convolutional, axes, CRITERIA["bn-scale"], TASK, None).by_axis["conv1"]
    gamma = convolutional.program.module.state_dict()["bn1.weight"]
    np.testing.assert_allclose(found, gamma.abs().numpy(), rtol=1e-6)


def test_what_data_is_needed_is_said(convolutional: Any, data: pp.Data) -> None:
    axes = choose.chosen_axes(convolutional)
    with pytest.raises(errors.DataError, match="criterion 'wanda' needs inputs: give calibration= batches$"):
        evidence(convolutional, axes, CRITERIA["wanda"], TASK, None)
    with pytest.raises(errors.DataError, match="criterion 'obs' needs gates: give calibration= batches with labels"):
        evidence(convolutional, axes, CRITERIA["obs"], TASK, None)
    with pytest.raises(errors.DataError, match="no labels"):
        evidence(convolutional, axes, CRITERIA["fisher"], TASK, [x for x, _ in data.train])


@pytest.mark.parametrize("name", ["fisher", "hrank", "wanda", "reconstruction", "gradient"])
def test_looking_changes_nothing(name: str, convolutional: Any, data: pp.Data) -> None:
    module = convolutional.program.module.train()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    wanted = {n: p.requires_grad for n, p in module.named_parameters()}
    state = torch.get_rng_state()
    score(convolutional, choose.chosen_axes(convolutional), CRITERIA[name], TASK, data.train)
    assert module.training
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    assert {n: p.requires_grad for n, p in module.named_parameters()} == wanted
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    module.eval()

"""The zoo's reference and its reading of what a tool kept: both must see what is wrong."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import ours, peer, reference
from zoo.networks import NETWORKS
from zoo.networks.entry import Entry

KEEP = np.array([0, 2, 5])


def drawn(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model.double().eval()


def cut(model: nn.Module, kept: dict[str, tuple[Any, ...]], **attributes: int) -> nn.Module:
    """`model` with parameters at the kept indices; attributes by "module__name"."""
    small = copy.deepcopy(model)
    for name, dims in kept.items():
        owner, _, leaf = name.rpartition(".")
        value = small.get_parameter(name).data
        for dim, index in enumerate(dims):
            value = value if index is None else value.index_select(dim, torch.from_numpy(index))
        setattr(small.get_submodule(owner), leaf, nn.Parameter(value))
    for path, value in attributes.items():
        module, leaf = path.split("__")
        setattr(small.get_submodule(module), leaf, (value,) if leaf == "normalized_shape" else value)
    return small


def gap(model: nn.Module, small: nn.Module, kept: Any, x: Tensor, statistics: str = "all") -> float:
    expected = reference.Reference(copy.deepcopy(model), kept).run(x, statistics)
    return reference.error(expected, reference.run(small, x))


def perceptron(norm: nn.Module) -> tuple[nn.Module, dict[str, tuple[Any, ...]]]:
    kept: dict[str, tuple[Any, ...]] = {"0.weight": (KEEP, None), "0.bias": (KEEP,), "2.weight": (None, KEEP)}
    kept |= {f"1.{n}": (KEEP,) for n, _ in norm.named_parameters()}
    return drawn(nn.Sequential(nn.Linear(4, 6), norm, nn.Linear(6, 3))), kept


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6, eps=1e-5), nn.LayerNorm(6, elementwise_affine=False)])
def test_statistics_are_taken_over_kept_positions(norm: nn.Module) -> None:
    model, kept = perceptron(norm)
    x = torch.randn(5, 4, dtype=torch.float64)
    small = cut(model, kept, **{"1__normalized_shape": 3})
    assert gap(model, small, kept, x) < 1e-14
    plain = reference.run(reference.Reference(copy.deepcopy(model), kept).model, x)
    assert reference.error(plain, reference.run(small, x)) > 1e-3


def test_group_norm_by_groups_and_within_groups() -> None:
    for keep, groups in ((np.array([0, 1, 4, 5]), 2), (np.array([0, 2, 4]), 3)):
        model = drawn(nn.Sequential(nn.Conv2d(2, 6, 1), nn.GroupNorm(3, 6), nn.Conv2d(6, 2, 1)))
        kept = {"0.weight": (keep, None, None, None), "0.bias": (keep,), "1.weight": (keep,), "1.bias": (keep,)}
        kept["2.weight"] = (None, keep, None, None)
        small = cut(model, kept, **{"1__num_groups": groups, "1__num_channels": len(keep)})
        assert gap(model, small, kept, torch.randn(2, 2, 4, 4, dtype=torch.float64)) < 1e-14


def test_one_wrong_index_is_seen() -> None:
    model, kept = perceptron(nn.LayerNorm(6))
    small = cut(model, kept, **{"1__normalized_shape": 3})
    swapped = kept | {"2.weight": (None, np.array([0, 2, 4]))}
    assert gap(model, small, swapped, torch.randn(5, 4, dtype=torch.float64)) > 1e-2


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qk, self.v = nn.Linear(4, 6), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.qk(x), self.qk(x), self.v(x))


def test_a_drifted_attention_scale_is_seen_and_named() -> None:
    model, kept = drawn(Attention()), {"qk.weight": (KEEP, None), "qk.bias": (KEEP,)}
    small, x = cut(model, kept), torch.randn(2, 5, 4, dtype=torch.float64)
    assert gap(model, small, kept, x) > 1e-2
    assert gap(model, small, kept, x, "drift") < 1e-14


class MeanByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.weight, self.down = nn.Linear(4, 6), nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        return self.down(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight)


def test_means_by_hand_have_two_meanings_and_both_are_told_apart() -> None:
    model = drawn(MeanByHand())
    kept = {"up.weight": (KEEP, None), "up.bias": (KEEP,), "weight": (KEEP,), "down.weight": (None, KEEP)}
    x = torch.randn(5, 4, dtype=torch.float64)
    assert gap(model, cut(model, kept), kept, x, "kept") < 1e-14
    assert gap(model, cut(model, kept), kept, x, "all") > 1e-3


def test_a_missing_output_or_number_is_an_infinite_error() -> None:
    one = torch.ones(2, 2)
    assert reference.error([one], [one, one]) == float("inf")
    assert reference.error([one], [one[:1]]) == float("inf")
    assert reference.error([one], [one * float("nan")]) == float("inf")


def test_kept_indices_are_read_off_the_values() -> None:
    values = torch.randn(6, 4, dtype=torch.float64)
    rows, columns = peer.kept_by_value(values, values[[0, 2, 5]][:, [1, 3]]) or (None, None)
    assert rows is not None
    assert columns is not None
    assert rows.tolist() == [0, 2, 5]
    assert columns.tolist() == [1, 3]
    assert peer.kept_by_value(values, values[:3] + 1.0) is None
    mixed = values[:2].clone()
    mixed[0, 0], mixed[0, 1] = values[0, 1], values[0, 0]
    assert peer.kept_by_value(values, mixed) is None


def test_the_judge_calls_a_wrong_result_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward that is off in the fourth digit, and a weight that is off by a millionth."""

    def make() -> tuple[nn.Module, Tensor]:
        return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)), torch.randn(2, 4)

    monkeypatch.setitem(NETWORKS, "test", Entry(make, "test"))
    _, example, result = ours.halved("test", "inner")
    assert ours.judged("test", result, example)["status"] == "exact"
    model = result.model
    assert isinstance(model, nn.Sequential)
    model[1] = nn.GELU("tanh")
    assert ours.judged("test", result, example)["status"] == "wrong"
    model[1] = nn.GELU()
    with torch.no_grad():
        result.program.module.get_parameter("2.bias").add_(1e-9)
    assert ours.judged("test", result, example)["status"] == "exact"
    with torch.no_grad():
        result.program.module.get_parameter("2.bias").add_(1e-6)
    row = ours.judged("test", result, example)
    assert row["status"] == "wrong"
    assert not row["weights"]


def test_networks_are_the_same_at_every_build_and_hide_nothing() -> None:
    first, example = NETWORKS["own/unet"].build()
    second, again = NETWORKS["own/unet"].build()
    assert torch.equal(example, again)
    tensors = reference.named_tensors(second)
    for name, tensor in reference.named_tensors(first).items():
        assert torch.equal(tensor, tensors[name])
        assert tensor.ndim == 0 or float(tensor.detach().std()) > 1e-3, f"{name} is constant"

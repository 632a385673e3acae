"""Networks that recover together: what each computes, what they share, and what stays each one's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from paretoprune.core.errors import UsageError
from paretoprune.core.graph import Example
from paretoprune.core.protocols import Task
from paretoprune.recover import Batch, Nested, Sandwich, SoftTargets, train

TASK = Task("classification", lambda o, y: F.cross_entropy(o, y), lambda o, y: (o.argmax(1) == y).float())


def part(whole: nn.Sequential, first: list[int], second: list[int]) -> tuple[nn.Module, Any]:
    """The test's two-layer network with these channels, and what it kept."""
    a, norm_a, _, b, norm_b, _, _, _, head = whole
    chosen = [np.array(first), np.array(second)]
    small = copy.deepcopy(whole)
    kept: dict[str, Any] = {}
    for index, (layer, dims) in enumerate(
        [(a, (0, None, None, None)), (norm_a, (0,)), (None, ()), (b, (1, 0, None, None)), (norm_b, (1,))]
        + [(None, ())] * 3
        + [(head, (None, 1))]
    ):
        for name, tensor in [] if layer is None else layer.state_dict(keep_vars=True).items():
            of = () if tensor.ndim == 0 else dims[: tensor.ndim]
            kept[f"{index}.{name}"] = tuple(None if d is None else chosen[d] for d in of)
            cut = tensor.detach()
            for dim, choice in enumerate(of):
                cut = cut if choice is None else cut.index_select(dim, torch.from_numpy(chosen[choice]))
            target = small[index]
            if isinstance(tensor, nn.Parameter):
                setattr(target, name, nn.Parameter(cut.clone()))
            else:
                setattr(target, name, cut.clone())
    return small.eval(), kept


@pytest.fixture
def pair(net: Callable[..., nn.Sequential]) -> list[tuple[nn.Module, Any]]:
    whole = net((8, 12))
    return [part(whole, [0, 2, 3, 5, 7], list(range(0, 12, 2))), part(whole, [2, 5], [0, 4, 10])]


def test_a_member_answers_as_it_did_until_the_change_is_trained(
    pair: list[tuple[nn.Module, Any]], images: list[Tensor]
) -> None:
    nested = Nested(pair).eval()
    for at, (module, _) in enumerate(pair):
        assert torch.equal(nested(at, Example((images[0],))), module(images[0]))


def test_the_change_reaches_the_positions_that_a_member_kept(
    pair: list[tuple[nn.Module, Any]], images: list[Tensor]
) -> None:
    """Against copies whose parameters were changed by hand."""
    nested = Nested(pair).eval()
    with torch.no_grad():
        for parameter in nested.change.values():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    for at, (module, kept) in enumerate(pair):
        by_hand = copy.deepcopy(module)
        with torch.no_grad():
            for name, parameter in by_hand.named_parameters():
                change = nested.change[name.replace(".", "/")].numpy()
                dims = [np.arange(n) if k is None else k for n, k in zip(change.shape, kept[name], strict=True)]
                parameter += torch.from_numpy(change[np.ix_(*dims)])
        assert torch.allclose(nested(at, Example((images[0],))), by_hand(images[0]), atol=1e-6)


@given(seed=st.integers(0, 10**6))
def test_gradients_are_averaged_over_the_members_that_read_an_entry(seed: int) -> None:
    made = np.random.default_rng(seed)
    whole, x = nn.Linear(6, 9), torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    rows = [np.sort(made.choice(9, size, replace=False)) for size in (9, 5, 2)]
    members, kept = [], []
    for row in rows:
        layer = nn.Linear(6, len(row))
        with torch.no_grad():
            layer.weight.copy_(whole.weight[row])
            layer.bias.copy_(whole.bias[row])
        members.append(layer)
        kept.append({"weight": (row, None), "bias": (row,)})
    nested = Nested(list(zip(members, kept, strict=True)))
    for chosen in ([0, 1], sorted(made.choice(3, 2, replace=False).tolist())):
        nested.zero_grad()
        nested.sample(chosen)
        torch.stack([nested(m, Example((x,))).square().sum() for m in chosen]).mean().backward()
        total, readers = np.zeros((9, 6)), np.zeros((9, 1))
        for m in chosen:
            members[m].zero_grad()
            members[m](x).square().sum().backward()
            total[rows[m]] += members[m].weight.grad.numpy()  # type: ignore[union-attr]
            readers[rows[m]] += 1
        found = nested.change["weight"].grad
        assert found is not None
        np.testing.assert_allclose(found.numpy(), total / np.maximum(readers, 1), rtol=1e-4, atol=1e-5)


def test_every_member_keeps_batch_norm_statistics_of_its_own(
    pair: list[tuple[nn.Module, Any]], images: list[Tensor]
) -> None:
    nested = Nested(pair).train()
    before = [nested.tensors(at)["1.running_mean"].clone() for at in (0, 1)]
    nested(1, Example((images[0],)))
    after = [nested.tensors(at)["1.running_mean"] for at in (0, 1)]
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_the_given_networks_stay_as_they_are(
    pair: list[tuple[nn.Module, Any]], net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m, _ in pair]
    whole = net((8, 12))
    batches = [(x, whole(x).argmax(1)) for x in images]
    nested = Nested(pair)
    train(nested, Sandwich(SoftTargets(whole, TASK, 4.0, 0.9)), batches, steps=4)
    assert all(torch.equal(t, before[i][n]) for i, (m, _) in enumerate(pair) for n, t in m.state_dict().items())
    assert all(m.get_parameter(n).requires_grad for m, _ in pair for n, _ in m.named_parameters())
    assert not torch.equal(nested.tensors(0)["0.weight"], before[0]["0.weight"])


def test_recurrent_layers_read_the_shared_change() -> None:
    """torch holds their weights in a second place, which must not be the one that is read."""
    lstms = [nn.LSTM(3, 4, batch_first=True) for _ in range(2)]
    nested = Nested([(m, {}) for m in lstms]).eval()
    x = torch.randn(2, 5, 3)
    with torch.no_grad():
        for parameter in nested.change.values():
            parameter.fill_(0.5)
        for parameter in lstms[1].parameters():
            parameter += 0.5
    assert torch.allclose(nested(1, Example((x,)))[0], lstms[1](x)[0], atol=1e-6)


def test_tied_parameters_stay_one_and_frozen_ones_stay_put() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 7)
            self.out.weight = self.embed.weight
            self.out.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.out(self.embed(x))
            return result

    model, x = Tied(), torch.tensor([[1, 2], [3, 6]])
    nested = Nested([(model, {}), (model, {})])
    assert list(nested.change) == ["embed/weight"]
    with torch.no_grad():
        nested.change["embed/weight"].fill_(1.0)
        model.embed.weight += 1.0
    assert torch.allclose(nested(0, Example((x,))), model(x))


def test_the_sandwich_holds_the_largest_and_the_smallest(
    net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    whole = net((8, 12))
    sizes = [8, 6, 5, 4, 2]
    nested = Nested([part(whole, list(range(n)), list(range(n))) for n in sizes])
    goal, seen = Sandwich(SoftTargets(whole, TASK, 4.0, 0.9), between=2), []
    asked = nested.forward
    nested.forward = lambda member, inputs: (seen.append(member), asked(member, inputs))[1]  # type: ignore[method-assign]
    for _ in range(20):
        goal(nested, Batch.of(images[0]))
    steps = [seen[i : i + 4] for i in range(0, len(seen), 4)]
    assert all(s[0] == 0 and s[-1] == 4 and len(set(s)) == 4 for s in steps)
    assert {m for s in steps for m in s} == {0, 1, 2, 3, 4}


def test_networks_that_do_not_lie_in_one_another_are_refused(net: Callable[..., nn.Sequential]) -> None:
    with pytest.raises(UsageError, match=r"1 members: give at least 2"):
        Nested([(net(), {})])
    with pytest.raises(UsageError, match=r"'0\.weight' has sizes \[6, 8\] in dimension 0, and nothing says"):
        Nested([(net((8, 12)), {}), (net((6, 12)), {})])

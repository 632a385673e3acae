from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paretoprune.recover import collect_grams, reconstruct_program

FOLLOWS = {"0": "1", "3": "4"}


def prune(whole: nn.Sequential, small: nn.Sequential, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Fill `small` with the kept positions of the two inner axes of `whole`; returns kept."""
    kept: dict[str, Any] = {"0.weight": (first, None, None, None), "3.weight": (second, first, None, None)}
    kept |= {f"1.{n}": (first,) for n in ("weight", "bias", "running_mean", "running_var")}
    kept |= {f"4.{n}": (second,) for n in ("weight", "bias", "running_mean", "running_var")}
    kept["8.weight"] = (None, second)
    if "0.bias" in whole.state_dict():
        kept |= {"0.bias": (first,), "3.bias": (second,)}
    state = {}
    for name, tensor in whole.state_dict().items():
        for dim, indices in enumerate(kept.get(name, ())):
            tensor = tensor if indices is None else tensor.index_select(dim, torch.from_numpy(indices))
        state[name] = tensor.clone()
    small.load_state_dict(state)
    return kept


@pytest.mark.parametrize("bias", [False, True])
def test_a_duplicate_channel_can_go_without_a_trace(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor], bias: bool
) -> None:
    """Channel 5 of the first layer is made a copy of channel 1, and 7 a constant: the network must not change."""
    whole = net(bias=bias)
    with torch.no_grad():
        for part, names in (
            (whole[0], ("weight", "bias")),
            (whole[1], ("weight", "bias", "running_mean", "running_var")),
        ):
            for name in names:
                tensor = getattr(part, name)
                if tensor is not None:
                    tensor[5] = tensor[1]
        whole[1].weight[7], whole[1].bias[7] = 0.0, 0.7
    small = net(widths=(6, 12), bias=bias)
    whole[3].padding = small[3].padding = (0, 0)  # at a zero border the constant channel would not be constant
    kept = prune(whole, small, np.array([0, 1, 2, 3, 4, 6]), np.arange(12))
    program = hook_program(whole, FOLLOWS)
    grams = collect_grams(program, program.contractions, images)
    x = torch.cat(images)
    with torch.no_grad():
        plain = (small(x) - whole(x)).abs().max()
        report = reconstruct_program(whole.state_dict(), hook_program(small, FOLLOWS), kept, grams, damping=1e-8)
        after = (small(x) - whole(x)).abs().max()
    assert [r.node for r in report] == ["3"]
    assert report[0].error == pytest.approx(0, abs=1e-4)
    assert float(after) < 1e-3 * float(plain)


def output_error(small: nn.Module, whole: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((small(x) - whole(x)).square().mean() / whole(x).var())


@pytest.mark.parametrize("bias", [False, True])
def test_halving_hurts_less_and_the_constant_goes_where_it_belongs(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor], bias: bool
) -> None:
    whole, small = net(bias=bias), net(widths=(5, 7), bias=bias)
    kept = prune(whole, small, np.array([0, 2, 3, 5, 7]), np.array([1, 2, 4, 6, 8, 10, 11]))
    program = hook_program(whole, FOLLOWS)
    grams = collect_grams(program, program.contractions, images)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    x = torch.cat(images)
    plain = output_error(small, whole, x)
    report = reconstruct_program(whole.state_dict(), hook_program(small, FOLLOWS), kept, grams)
    assert output_error(small, whole, x) < 0.6 * plain
    assert [(r.node, r.left) for r in report] == [("3", ""), ("8", "")]
    changed = {n for n, v in small.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"3.weight", "8.weight", "8.bias", "3.bias" if bias else "4.running_mean"}


def test_calling_it_twice_gives_the_same_as_once(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    """Everything is computed from the original, nothing from what stands in the pruned network."""
    whole, small = net(), net(widths=(5, 7))
    kept = prune(whole, small, np.arange(5), np.arange(7))
    program = hook_program(whole, FOLLOWS)
    grams = collect_grams(program, program.contractions, images)
    reconstruct_program(whole.state_dict(), hook_program(small, FOLLOWS), kept, grams)
    once = {n: v.clone() for n, v in small.state_dict().items()}
    reconstruct_program(whole.state_dict(), hook_program(small, FOLLOWS), kept, grams)
    assert all(torch.equal(v, once[n]) for n, v in small.state_dict().items())


def test_without_a_known_norm_behind_nothing_but_the_weight_changes(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    whole, small = net(), net(widths=(5, 12))
    kept = prune(whole, small, np.arange(5), np.arange(12))
    program = hook_program(whole)
    grams = collect_grams(program, program.contractions, images)
    before = {n: v.clone() for n, v in small.state_dict().items()}
    reconstruct_program(whole.state_dict(), hook_program(small), kept, grams)
    assert {n for n, v in small.state_dict().items() if not torch.equal(v, before[n])} == {"3.weight"}


def test_what_cannot_be_reconstructed_is_left_alone_and_said(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    whole, small = net(), net(widths=(5, 12))
    kept = prune(whole, small, np.arange(5), np.arange(12))
    program = hook_program(small, FOLLOWS)
    before = {n: v.clone() for n, v in small.state_dict().items()}
    (report,) = reconstruct_program(whole.state_dict(), program, kept, {})
    assert (report.error, report.left) == (None, "no Gram matrix was taken")
    program.contractions = (*program.contractions, program.contractions[1])
    report, _ = reconstruct_program(whole.state_dict(), program, kept, {})
    assert report.left == "2 contractions share the weight"
    assert all(torch.equal(v, before[n]) for n, v in small.state_dict().items())


def test_requires_grad_and_identity_of_parameters_stay(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    whole, small = net(), net(widths=(5, 12))
    kept = prune(whole, small, np.arange(5), np.arange(12))
    small[3].weight.requires_grad_(False)
    parameter = small[3].weight
    program = hook_program(whole, FOLLOWS)
    grams = collect_grams(program, program.contractions, images)
    reconstruct_program(whole.state_dict(), hook_program(small, FOLLOWS), kept, grams)
    assert small[3].weight is parameter
    assert not parameter.requires_grad
    assert small[8].weight.requires_grad

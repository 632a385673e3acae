from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paretoprune.core.errors import DataError
from paretoprune.recover import recalibrate


def test_first_norm_gets_pooled_mean_and_unbiased_variance(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    module = net()
    uneven = [images[0], images[1][:5], torch.cat(images[2:5])]
    with torch.no_grad():
        entering = module[0](torch.cat(uneven)).double()
    assert recalibrate(hook_program(module), uneven) == ("1", "4")
    torch.testing.assert_close(module[1].running_mean.double(), entering.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module[1].running_var.double(), entering.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_later_norms_see_batch_statistics_and_one_batch_reproduces_train_mode(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    module, trained = net(), net()
    for part in trained:
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        trained.train()(images[0])
    recalibrate(hook_program(module), images[:1])
    for i in (1, 4):
        torch.testing.assert_close(module[i].running_mean, trained[i].running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module[i].running_var, trained[i].running_var, rtol=1e-4, atol=1e-5)


def test_old_statistics_do_not_matter_and_weights_and_mode_stay(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    one, other = net(), net()
    other[1].running_mean.fill_(50.0)
    other[4].running_var.fill_(1e4)
    weights = {n: p.clone() for n, p in other.named_parameters()}
    for module in (one, other):
        recalibrate(hook_program(module), images)
    assert all(torch.equal(p, weights[n]) for n, p in other.named_parameters())
    assert not other.training
    for i in (1, 4):
        torch.testing.assert_close(one[i].running_mean, other[i].running_mean)
        torch.testing.assert_close(one[i].running_var, other[i].running_var)


def test_about_as_many_samples_as_asked_for(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    program = hook_program(net())
    recalibrate(program, images, samples=33)
    assert program.calls == 3


def test_large_offset_keeps_the_variance(hook_program: Any) -> None:
    module = nn.Sequential(nn.BatchNorm1d(2))
    x = torch.randn(4000, 2, dtype=torch.float64) + 1e4
    recalibrate(hook_program(module.double()), list(x.split(100)), samples=4000)
    torch.testing.assert_close(module[0].running_var, x.var(0), rtol=1e-8, atol=0)


def test_no_norm_runs_nothing(hook_program: Any, images: list[Tensor]) -> None:
    program = hook_program(nn.Sequential(nn.Linear(8, 2)))
    assert recalibrate(program, images) == ()
    assert program.calls == 0


def test_one_sample_without_extent_cannot_be_estimated(hook_program: Any) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = module[1].running_mean.clone()
    with pytest.raises(DataError, match="'1' sees one value per channel.*at least 2"):
        recalibrate(hook_program(module), [torch.randn(1, 4)])
    assert torch.equal(module[1].running_mean, before)
    assert recalibrate(hook_program(module), [torch.randn(8, 4), torch.randn(1, 4)]) == ("1",)


def test_refusals_write_nothing(hook_program: Any, net: Callable[..., nn.Sequential]) -> None:
    module = net()
    before = module[1].running_mean.clone()
    with pytest.raises(DataError, match="no calibration batch"):
        recalibrate(hook_program(module), [])
    with pytest.raises(DataError, match="'1' is not finite"):
        recalibrate(hook_program(module), [torch.full((2, 3, 8, 8), float("nan"))])
    assert torch.equal(module[1].running_mean, before)

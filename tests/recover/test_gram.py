from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import paretoprune.recover.gram as gram_module
from paretoprune.core.errors import DataError
from paretoprune.recover import collect_grams


def rows_of(x: Tensor) -> Tensor:
    return functional.unfold(x, 3, padding=1).mT.flatten(0, 1).double()


def test_moments_are_those_of_the_rows(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    module = net()
    program = hook_program(module)
    grams = collect_grams(program, program.contractions, images, rows_cap=10**9)
    x = torch.cat(images)
    with torch.no_grad():
        entering = {"0": rows_of(x), "3": rows_of(module[:3](x)), "8": module[:8](x).double()}
    assert grams.keys() == entering.keys()
    for node, rows in entering.items():
        assert grams[node].rows == len(rows)
        torch.testing.assert_close(grams[node].second, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grams[node].mean, rows.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grams[node].centred(), torch.cov(rows.T, correction=0), rtol=1e-3, atol=1e-4)


def test_the_constant_output_follows_from_the_mean(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    module = net()
    program = hook_program(module)
    gram = collect_grams(program, program.contractions, images)["8"]
    with torch.no_grad():
        out = module(torch.cat(images)).double().mean(0)
    torch.testing.assert_close(module[8].weight.double() @ gram.mean + module[8].bias, out, rtol=1e-4, atol=1e-5)


def test_rows_are_capped_the_same_way_every_time(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]
) -> None:
    program = hook_program(net())
    full = collect_grams(program, program.contractions, images, samples=128, rows_cap=10**9)
    for cap in (3000, 600):
        some = collect_grams(program, program.contractions, images, samples=128, rows_cap=cap)
        again = collect_grams(program, program.contractions, images, samples=128, rows_cap=cap)
        assert torch.equal(some["3"].second, again["3"].second)
        assert cap * 0.8 < some["3"].rows < cap * 1.3
        assert some["8"].rows == 128
        error = (some["3"].second - full["3"].second).norm() / full["3"].second.norm()
        assert 0 < float(error) < 0.2


def test_samples_and_pieces(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = hook_program(net())
    assert collect_grams(program, program.contractions, images, samples=20)["8"].rows == 20
    # 64 rows of 72 columns per sample: room for 3 samples at once after the first 2.
    monkeypatch.setattr(gram_module, "FLOATS_AT_ONCE", 3 * 64 * 72)
    program.calls = 0
    whole = torch.cat(images)[:21]
    grams = collect_grams(program, program.contractions, [whole], samples=50)
    assert grams["8"].rows == 21
    assert program.calls == 7  # 2, then 3 six times, the last one taking the left-over sample with it


def test_too_many_columns_are_left_out(
    hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram_module, "COLUMNS_CAP", 30)
    program = hook_program(net())
    assert set(collect_grams(program, program.contractions, images)) == {"0", "8"}


def test_only_what_is_asked_for(hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]) -> None:
    program = hook_program(net())
    assert set(collect_grams(program, program.contractions[1:2], images)) == {"3"}
    program.calls = 0
    assert collect_grams(program, (), images) == {}
    assert program.calls == 0


def test_refusals(hook_program: Any, net: Callable[..., nn.Sequential], images: list[Tensor]) -> None:
    program = hook_program(net())
    with pytest.raises(DataError, match="no calibration batch"):
        collect_grams(program, program.contractions, [])
    with pytest.raises(DataError, match="'0' is not finite"):
        collect_grams(program, program.contractions, [torch.full((2, 3, 8, 8), float("inf"))])


def test_half_precision_is_summed_in_single(hook_program: Any) -> None:
    module = nn.Sequential(nn.Linear(4, 2)).half()
    x = torch.full((64, 4), 300.0).half()
    gram = collect_grams(hook_program(module), hook_program(module).contractions, [x])["0"]
    torch.testing.assert_close(gram.second, torch.full((4, 4), 90000.0, dtype=torch.float64))

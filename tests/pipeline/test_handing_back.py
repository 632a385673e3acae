"""`pp.hand_back`: trained by somebody else's loop, saved by ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune.graph import tensors_of

errors = pp.errors


@pytest.fixture(scope="module")
def once(make_net: Callable[[], nn.Module], example: Tensor) -> pp.Pruned:
    return pp.prune(make_net(), example, ratio=0.5)


@pytest.fixture
def taken(once: pp.Pruned) -> nn.Module:
    """What a user takes out, as a copy, because the Pruned is shared."""
    return copy.deepcopy(once.model)


def trained(module: nn.Module, data: pp.Data) -> nn.Module:
    """Any loop that knows nothing of this package."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.01)
    module.train()
    for x, y in data.train:
        optimiser.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimiser.step()
    return module


@pytest.mark.parametrize("how", ["module", "state dict", "data parallel"])
def test_what_was_trained_is_handed_back_saved_and_loaded(
    once: pp.Pruned, taken: nn.Module, data: pp.Data, how: str, tmp_path: Path
) -> None:
    before = {n: t.clone() for n, t in once.model.state_dict().items()}
    out = trained(taken, data)
    given: Any = {"module": out, "state dict": out.state_dict(), "data parallel": nn.DataParallel(out)}[how]
    back = pp.hand_back(once, given)
    x = next(iter(data.test))[0]
    expected = out.eval()(x)
    assert type(back.model) is type(taken)
    assert not back.model.training
    torch.testing.assert_close(back.model(x), expected)
    torch.testing.assert_close(back.program.module(x), expected)
    again = pp.load(pp.save(back, tmp_path / "net"))
    torch.testing.assert_close(again.model(x), expected)
    assert back.plan == once.plan
    assert all(torch.equal(t, before[n]) for n, t in once.model.state_dict().items())
    assert back.model is not out
    tuned = pp.finetune(back, data.train, steps=1)
    assert tuned.kept == once.kept


def test_trained_in_place_is_handed_back_too(once: pp.Pruned, data: pp.Data) -> None:
    mine = pp.hand_back(once, once.model)
    trained(mine.model, data)
    back = pp.hand_back(mine, mine.model)
    x = next(iter(data.test))[0]
    torch.testing.assert_close(back.program.module(x), mine.model.eval()(x))


def test_hooks_and_a_patched_forward_stay_behind(once: pp.Pruned, taken: nn.Module, data: pp.Data) -> None:
    """As trainers leave them: accelerate, for one, replaces forward."""
    taken.register_forward_hook(lambda *_: None)
    forward = taken.forward
    taken.forward = lambda *a: forward(*a) * 2
    back = pp.hand_back(once, taken)
    assert not back.model._forward_hooks
    assert "forward" not in vars(back.model)


def larger(m: nn.Module) -> None:
    m.conv1 = nn.Conv2d(1, 16, 3)


def adapter(m: nn.Module) -> None:
    m.head.register_parameter("lora_a", nn.Parameter(torch.zeros(2, 2)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (larger, r"shape: 'conv1.weight' \(16, 1, 3, 3\) for \(8, 1, 3, 3\)"),
        (adapter, "unknown: 'head.lora_a'.*merge adapters"),
        (lambda m: delattr(m, "head"), "missing: 'head.weight', 'head.bias'"),
        (lambda m: m.half(), r"type: .*'conv1.weight' torch.float16 for torch.float32.*\(\.float\(\)\)"),
        (lambda m: m.conv1.weight.data.fill_(float("nan")), "'conv1.weight' holds 72 NaN"),
    ],
)
def test_what_is_not_the_network_is_refused(once: pp.Pruned, taken: nn.Module, change: Any, says: str) -> None:
    change(taken)
    with pytest.raises(errors.ModelError, match=says) as error:
        pp.hand_back(once, taken)
    assert "\n" not in str(error.value)


def test_what_is_no_network_is_refused(once: pp.Pruned) -> None:
    given: Any
    for given in (None, {"state_dict": {}}, [1]):
        with pytest.raises(errors.UsageError, match="give the trained module, or its state dict"):
            pp.hand_back(once, given)
    with pytest.raises(errors.ModelError, match="missing: 'conv1.weight'"):
        pp.hand_back(once, {})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.again, self.head = nn.Linear(6, 12, bias=False), nn.Linear(6, 12, bias=False), nn.Linear(12, 3)
        self.again.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.relu(self.table(x)) + torch.relu(self.again(-x)))
        return result


def test_tied_weights_stay_tied_or_are_refused() -> None:
    pruned = pp.prune(Tied(), torch.randn(2, 6), ratio=0.5)
    out = copy.deepcopy(pruned.model)
    with torch.no_grad():
        out.table.weight.mul_(2)
    back = pp.hand_back(pruned, out)
    assert back.model.table.weight is back.model.again.weight
    assert torch.equal(back.model.table.weight, out.table.weight)
    out.again.weight = nn.Parameter(out.table.weight * 3)
    with pytest.raises(errors.ModelError, match="'table.weight' and 'again.weight' were one tensor and came apart"):
        pp.hand_back(pruned, out)


def test_frozen_parameters_stay_so(once: pp.Pruned, taken: nn.Module) -> None:
    frozen = pp.hand_back(once, taken)
    frozen.model.conv2.weight.requires_grad_(False)
    again = pp.hand_back(frozen, taken)
    assert [n for n, p in again.model.named_parameters() if not p.requires_grad] == ["conv2.weight"]


def test_a_model_of_transformers_comes_back_from_a_loop_of_its_own_loss(tmp_path: Path) -> None:
    """Their Trainer needs accelerate; what it does to the model is this loop, on dict batches with labels."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(0, 50, (8, 6), generator=torch.Generator().manual_seed(0))
    pruned = pp.prune(model, {"input_ids": ids[:2]}, ratio=0.5)
    out = copy.deepcopy(pruned.model).train()
    optimiser = torch.optim.AdamW(out.parameters(), lr=0.01)
    batch = {"input_ids": ids, "labels": torch.arange(8) % 3}
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = out(**batch).loss
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    back = pp.hand_back(pruned, out)
    again = pp.load(pp.save(back, tmp_path / "net"))
    assert type(again.model) is type(model)
    torch.testing.assert_close(again.model(input_ids=ids).logits, out.eval()(input_ids=ids).logits)
    assert set(tensors_of(back.model)) == set(tensors_of(out))
    tuned = pp.finetune(back, [batch], steps=4, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
    assert not torch.equal(tuned.model.classifier.weight, back.model.classifier.weight)

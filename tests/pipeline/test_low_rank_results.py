"""What `pp.prune(..., ranks=...)` gives back: saved, loaded, trained, exported; class or graph; a failed proof."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune.graph import tensors_of, thin_check
from thin_networks import Small, batches, images, made

errors = pp.errors


@pytest.fixture
def small() -> nn.Module:
    return made()


def test_saved_and_loaded(small: nn.Module, tmp_path: Path) -> None:
    pruned = pp.prune(small, images(), ranks=0.5, calibration=batches())
    folder = pp.save(pruned, tmp_path / "net")
    assert not list(folder.glob("*.p*"))
    alone, own = pp.load(folder), pp.load(folder, model=Small())
    assert isinstance(alone.model, fx.GraphModule)
    assert type(own.model) is Small
    for loaded in (alone, own):
        assert loaded.plan == pruned.plan
        assert (loaded.macs, loaded.original_macs) == (pruned.macs, pruned.original_macs)
        torch.testing.assert_close(loaded.model(images(3)), pruned.model(images(3)), rtol=0, atol=0)
    assert tensors_of(own.model).keys() == tensors_of(pruned.model).keys()
    again = pp.load(pp.save(own, tmp_path / "again"), model=Small())
    torch.testing.assert_close(again.model(images(3)), pruned.model(images(3)), rtol=0, atol=0)


def test_it_trains_copies_and_exports(small: nn.Module, tmp_path: Path) -> None:
    pruned = pp.prune(small, images(), ranks=0.5)
    pp.export(pruned.model, images(), tmp_path / "net.onnx")
    for model in (pruned.model, pp.load(pp.save(pruned, tmp_path / "net")).model):
        twin = copy.deepcopy(model).train()
        optimiser = torch.optim.SGD(twin.parameters(), lr=0.1)
        first = twin(images(16)).square().mean()
        first.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in twin.named_parameters() if "1.0" not in n)
        optimiser.step()
        assert twin(images(16)).square().mean() < first
        pp.export(model, images(), tmp_path / "graph.onnx")


def test_frozen_weights_stay_frozen(small: nn.Module) -> None:
    small.conv2.requires_grad_(False)
    pruned = pp.prune(small, images(), ranks=0.5)
    frozen = {n for n, p in pruned.model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv2.0.weight", "conv2.1.weight", "conv2.1.bias"}


class Peeking(Small):
    """Looks at its layers' weights by itself."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.norm(self.conv1(x))))).mean((2, 3))
        result: Tensor = self.fc2(F.relu(F.linear(x, self.fc1.weight, self.fc1.bias)))
        return result


def test_a_class_that_cannot_hold_two_layers_becomes_a_graph(tmp_path: Path) -> None:
    model = Peeking().eval()
    pruned = pp.prune(model, images(), ranks=0.5)
    assert isinstance(pruned.model, fx.GraphModule)
    assert "because two layers in the place of" in pruned.notes[-1]
    assert "object has no attribute 'weight'" in pruned.notes[-1]
    loaded = pp.load(pp.save(pruned, tmp_path / "net"))
    torch.testing.assert_close(loaded.model(images(3)), pruned.model(images(3)), rtol=0, atol=0)
    assert type(pp.prune(model, images(), ranks={"conv*": 0.5}).model) is Peeking


def test_a_failed_proof_returns_nothing(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    product = thin_check.product
    monkeypatch.setattr(thin_check, "product", lambda first, second: product(first, second) * 1.001)
    with pytest.raises(errors.SurgeryError, match="differs from the one with their product"):
        pp.prune(small, images(), ranks=0.5)


def test_digits() -> None:
    """A multilayer perceptron on scikit-learn's digits: 1.5 times fewer MACs, accuracy on images held out."""
    from sklearn.datasets import load_digits

    x, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(60):
            loss = F.cross_entropy(net(x[:1200]), y[:1200])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def accuracy(model: nn.Module) -> float:
        return float((model(x[1200:]).argmax(1) == y[1200:]).float().mean())

    plain = pp.prune(net, x[:2], ranks="auto", macs=1 / 1.5)
    aware = pp.prune(net, x[:2], ranks="auto", macs=1 / 1.5, calibration=[x[:512]])
    print(f"digits: dense {accuracy(net):.4f}, plain {accuracy(plain.model):.4f}, aware {accuracy(aware.model):.4f}")
    for pruned in (plain, aware):
        assert pruned.macs <= pruned.original_macs / 1.5
        assert accuracy(pruned.model) >= accuracy(net) - 0.01

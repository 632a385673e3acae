"""Attacks stay in their ball, are as strong as they should be and leave the caller's network alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example
from paretoprune.tasks.attacks import ATTACKS, Attack
from paretoprune.tasks.classification import CLASSIFICATION
from paretoprune.tasks.corruptions import CONTRAST, CORRUPTIONS, Sensor
from paretoprune.tasks.evaluate import evaluate
from paretoprune.tasks.one_input import check_shift, input_range
from paretoprune.tasks.robustness import Robustness, Shifting


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A network that was trained on three quarters of scikit-learn's digits; the rest, with range 0 to 1."""
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x, y = (x.float() / 16).reshape(-1, 1, 8, 8), y.long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10)).train()
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(8):
            for xs, ys in zip(x[:1300].split(100), y[:1300].split(100), strict=True):
                loss = F.cross_entropy(net(xs), ys)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    net.zero_grad(set_to_none=True)
    return net, x[1300:], y[1300:]


def attack(net: nn.Module, eps: float, low: float = 0.0, high: float = 1.0) -> Attack:
    return Attack.on(net, CLASSIFICATION, eps, low, high)


@given(eps=st.floats(1e-4, 2.0), seed=st.integers(0, 99), offset=st.floats(-3, 3), how=st.sampled_from(sorted(ATTACKS)))
def test_no_attack_leaves_the_ball_or_makes_up_a_range(eps: float, seed: int, offset: float, how: str) -> None:
    made = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    x = torch.rand(5, 1, 2, 3, generator=made) + offset
    moved = ATTACKS[how](attack(net, eps), Example.of(x), torch.tensor([0, 1, 2, 0, 1])).args[0]
    assert float((moved.double() - x.double()).abs().max()) <= eps
    outside = (moved < torch.clamp(x, max=0.0)) | (moved > torch.clamp(x, min=1.0))
    assert not bool(outside.any())  # within 0 to 1, or where the clean value already was outside


@pytest.mark.parametrize("how", sorted(ATTACKS))
def test_the_network_and_its_gradients_stay(digits: tuple[nn.Module, Tensor, Tensor], how: str) -> None:
    net, x, y = digits
    net.train()
    first = net[1].weight
    first.grad = torch.ones_like(first)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    given = x[:20].clone()
    ATTACKS[how](attack(net, 0.1), Example.of(given), y[:20])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None for p in net.parameters() if p is not first)
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(given, x[:20])
    assert not given.requires_grad
    first.grad = None
    net.eval()


def robust(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict[str, float]:
    net = net.eval()
    shifting = Shifting(("fgsm", "pgd"), 0.0, 1.0, eps, samples=200)
    watch = Robustness(lambda e: net(e.args[0]), CLASSIFICATION, shifting, lambda: net)
    clean = evaluate(
        lambda e: net(e.args[0]), list(zip(x.split(60), y.split(60), strict=True)), CLASSIFICATION, watch=[watch]
    )
    found = {key: m.value for key, m in watch.figures().items()}
    assert all(m.runs == 200 for m in watch.figures().values())
    return {"clean": clean.value, **found}


@pytest.mark.parametrize("eps", [0.05, 0.1, 0.2])
def test_pgd_is_at_least_as_strong_as_fgsm(digits: tuple[nn.Module, Tensor, Tensor], eps: float) -> None:
    found = robust(*digits, eps)
    assert found["clean"] > 0.9
    assert found["robust_pgd"] <= found["robust_fgsm"] < found["clean"] - 0.05


def test_fgsm_raises_the_loss_where_noise_of_its_size_hardly_does(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = digits
    net.eval()
    moved = ATTACKS["fgsm"](attack(net, 0.1), Example.of(x), y).args[0]
    noise = (x + 0.1 * (2 * torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)) - 1)).clamp(0, 1)
    with torch.no_grad():
        clean, attacked, shaken = (float(F.cross_entropy(net(z), y)) for z in (x, moved, noise))
    assert attacked > 2 * shaken
    assert attacked > 3 * clean


def test_what_has_no_gradient_is_said() -> None:
    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 2)

    with pytest.raises(DataError, match="no attack is possible"):
        ATTACKS["fgsm"](attack(Deaf(), 0.1), Example.of(torch.rand(2, 3)), torch.tensor([0, 1]))


def test_the_note_states_the_attack(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = digits
    watch = Robustness(lambda e: net(e.args[0]), CLASSIFICATION, Shifting(("pgd",), -1.0, 1.0, 8 / 255), lambda: net)
    watch(Example.of(x[:5]), None, y[:5], torch.zeros(5))
    note = watch.figures()["robust_pgd"].note
    assert note == "eps 8/255 of the input's range, 0.0627 in its units, 10 steps; 5 samples"


class TestCorruptions:
    sensor = staticmethod(lambda: Sensor(0.0, 1.0, torch.Generator().manual_seed(0)))

    def test_noise_has_its_size_and_stays_in_the_range(self) -> None:
        moved = CORRUPTIONS["noise"](self.sensor(), Example.of(torch.full((50, 40), 0.5))).args[0]
        assert float(moved.std()) == pytest.approx(0.08, rel=0.05)
        assert 0 <= float(moved.min()) <= float(moved.max()) <= 1

    def test_blur_keeps_a_flat_image_and_spreads_a_point(self) -> None:
        flat = torch.full((1, 2, 9, 9), 0.7)
        assert torch.allclose(CORRUPTIONS["blur"](self.sensor(), Example.of(flat)).args[0], flat)
        point = torch.zeros(1, 1, 15, 15)
        point[0, 0, 7, 7] = 1
        spread = CORRUPTIONS["blur"](self.sensor(), Example.of(point)).args[0]
        assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
        assert float(spread[0, 0, 7, 8] / spread[0, 0, 7, 7]) == pytest.approx(
            torch.exp(torch.tensor(-0.5)).item(), rel=1e-4
        )

    def test_contrast_keeps_the_mean(self) -> None:
        image = torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
        moved = CORRUPTIONS["contrast"](self.sensor(), Example.of(image)).args[0]
        assert torch.allclose(moved.mean((1, 2, 3)), image.mean((1, 2, 3)), atol=1e-6)
        assert float(moved[0].std() / image[0].std()) == pytest.approx(CONTRAST, rel=1e-4)

    @pytest.mark.parametrize("how", ["blur", "contrast"])
    def test_what_is_no_image_is_refused(self, how: str) -> None:
        with pytest.raises(DataError, match=rf"robust accuracy \({how}\) is for images.*shape \(2, 3\)"):
            check_shift(Example.of(torch.rand(2, 3)), how)

    @pytest.mark.parametrize("how", ["fgsm", "noise"])
    def test_integers_cannot_be_disturbed(self, how: str) -> None:
        with pytest.raises(
            DataError, match=r"one floating-point input; the network has 0 of them \(input torch.int64\)"
        ):
            check_shift(Example.of(torch.zeros(2, 3, dtype=torch.long)), how)

    def test_the_range_is_read_from_the_data(self) -> None:
        batches = [(torch.tensor([[0.5, -2.0]]), torch.tensor([0])), (torch.tensor([[3.0, 0]]), torch.tensor([1]))]
        assert input_range(batches) == (-2.0, 3.0)
        with pytest.raises(DataError, match="the set is empty"):
            input_range([])

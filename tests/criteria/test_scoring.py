from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from paretoprune.core.axis import Axis, AxisMember
from paretoprune.core.errors import DataError, ModelError, PruneError, UsageError
from paretoprune.core.evidence import Evidence
from paretoprune.core.protocols import View
from paretoprune.criteria import CRITERIA, score_axes
from paretoprune.criteria.magnitude import Magnitude
from paretoprune.criteria.taylor import Taylor


def member(name: str, dim: int, role: str, entries: np.ndarray) -> AxisMember:
    return AxisMember(name, dim, role, np.asarray(entries, dtype=np.int64))  # type: ignore[arg-type]


def axis(*members: AxisMember, size: int) -> Axis:
    return Axis("a", size, True, "", "channel", members)


def plain(n: int) -> np.ndarray:
    return np.arange(n)[:, None]


@pytest.fixture
def hidden() -> Axis:
    """6 hidden units of 0.weight (6, 4), 0.bias (6,), 2.weight (3, 6)."""
    return axis(
        member("0.weight", 0, "out", plain(6)),
        member("0.bias", 0, "out", plain(6)),
        member("2.weight", 1, "in", plain(6)),
        size=6,
    )


@pytest.fixture
def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    # Not ReLU: by its homogeneity the weights that make a unit would give the same sum as those that read it.
    return nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3))


def test_magnitude_joins_all_members_that_make_the_axis(hidden: Axis, mlp: nn.Sequential) -> None:
    found = score_axes([hidden], mlp.state_dict(), Magnitude(2)).by_axis["a"]
    joined = torch.cat([mlp[0].weight, mlp[0].bias[:, None]], dim=1)
    np.testing.assert_allclose(found, joined.norm(dim=1).detach().numpy(), rtol=1e-6)


def test_taylor_is_the_squared_gradient_of_a_gate_averaged_over_batches(hidden: Axis, mlp: nn.Sequential) -> None:
    batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(3)]
    gradients, expected = [], np.zeros(6)
    for x, y in batches:
        gate = torch.ones(6, requires_grad=True)
        loss = nn.functional.cross_entropy(mlp[2](mlp[1](mlp[0](x)) * gate), y)
        grads = torch.autograd.grad(loss, [gate, *mlp.parameters()])
        expected += grads[0].square().numpy() / 3
        gradients.append(dict(zip([n for n, _ in mlp.named_parameters()], grads[1:], strict=True)))
    found = score_axes([hidden], dict(mlp.named_parameters()), Taylor(), Evidence(iter(gradients))).by_axis["a"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


def test_several_entries_per_position_are_looked_at_together() -> None:
    heads = axis(member("w", 0, "out", np.arange(6).reshape(2, 3)), size=2)
    weight = torch.tensor([[1.0], [1], [1], [0], [0], [2]])
    assert score_axes([heads], {"w": weight}, Magnitude(1)).by_axis["a"].tolist() == [3.0, 2.0]


def test_falls_back_to_the_roles_that_there_are() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    consumer = axis(member("w", 1, "in", plain(2)), size=2)
    follower = axis(member("w", 0, "each", plain(2)), size=2)
    assert score_axes([consumer], {"w": weight}, Magnitude(1)).by_axis["a"].tolist() == [4.0, 6.0]
    assert score_axes([follower], {"w": weight}, Magnitude(1)).by_axis["a"].tolist() == [3.0, 7.0]


def test_half_precision_and_integer_buffers() -> None:
    big = torch.full((2, 4), 60000.0, dtype=torch.float16)
    mixed = axis(member("w", 0, "out", plain(2)), member("n", 0, "out", plain(2)), size=2)
    found = score_axes([mixed], {"w": big, "n": torch.ones(2, dtype=torch.int64)}, Magnitude(2)).by_axis["a"]
    np.testing.assert_allclose(found, [119974.4] * 2, rtol=1e-3)


def test_refusals(hidden: Axis, mlp: nn.Sequential) -> None:
    state = mlp.state_dict()
    with pytest.raises(DataError, match="needs gradients"):
        score_axes([hidden], state, Taylor(), None)
    with pytest.raises(UsageError, match="'a' has no floating-point parameter"):
        score_axes([axis(size=6)], state, Magnitude())
    with pytest.raises(UsageError, match="'a' has no gradient"):
        score_axes([hidden], state, Taylor(), Evidence([{}]))
    with pytest.raises(ModelError, match=r"0\.weight.*NaN"):
        score_axes([hidden], {**state, "0.weight": torch.full((6, 4), float("nan"))}, Magnitude())


class Wrong(Magnitude):
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def score(self, view: View) -> torch.Tensor:
        return self.value


@pytest.mark.parametrize("value", [torch.ones(5), torch.full((6,), float("nan")), torch.full((6,), float("inf"))])
def test_a_plug_in_that_scores_wrongly_is_named(hidden: Axis, mlp: nn.Sequential, value: torch.Tensor) -> None:
    with pytest.raises(PruneError, match="criterion 'l2' gave"):
        score_axes([hidden], mlp.state_dict(), Wrong(value))


def test_what_removes_high_and_what_is_negative_comes_out_larger_for_what_is_kept() -> None:
    made = axis(member("w", 0, "out", plain(3)), size=3)
    state = {"w": torch.ones(3, 2)}
    given = Wrong(torch.tensor([-2.0, 1.0, 0.0]))
    assert score_axes([made], state, given).by_axis["a"].tolist() == [0.0, 3.0, 2.0]
    given.remove = "high"
    assert score_axes([made], state, given).by_axis["a"].tolist() == [3.0, 0.0, 1.0]


def two_readers() -> Axis:
    """2 heads of 3 entries, read by "p" (4, 6) and "q" (1, 6)."""
    heads = np.arange(6).reshape(2, 3)
    return axis(member("p", 1, "in", heads), member("q", 1, "in", heads), size=2)


READ = {"p": torch.ones(4, 6), "q": torch.ones(1, 6)}


def test_gates_of_a_position_open_all_its_entries_in_all_readers() -> None:
    gates = {"p": torch.tensor([1.0, 2, 3, 0, 0, 1])[:, None], "q": torch.tensor([-6.0, 0, 0, 2, 0, 0])[:, None]}
    found = score_axes([two_readers()], READ, CRITERIA["fisher"], Evidence(gates=gates))
    assert found.by_axis["a"].tolist() == [0.0, 4.5]


def test_activations_are_looked_at_reader_by_reader() -> None:
    seen = {
        "p": torch.tensor([1.0, 1, 1, 0, 0, 0]).reshape(6, 1, 1, 1),
        "q": torch.full((6, 2, 2, 2), 3.0),
    }
    found = score_axes([two_readers()], READ, CRITERIA["mean-activation"], Evidence(activations=seen))
    assert found.by_axis["a"].tolist() == [2.0, 1.5]


def test_inputs_stand_beside_their_weights() -> None:
    seen = {"p": torch.arange(6.0).expand(4, 6), "q": torch.zeros(1, 6)}
    found = score_axes([two_readers()], READ, CRITERIA["wanda"], Evidence(inputs=seen))
    assert found.by_axis["a"].tolist() == [12.0, 48.0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hrank", "axis 'a', and none of them can be observed: add the axis to ignore"),
        ("fisher", "axis 'a', and none of them can be observed"),
        ("wanda", "axis 'a', and none of them can be observed"),
        ("bn-scale", "axis 'a' has no batch norm with factors"),
        ("reconstruction", "axis 'a', and of none of them is there a Gram matrix"),
    ],
)
def test_an_axis_that_nothing_was_seen_of_is_named(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        score_axes([two_readers()], READ, CRITERIA[name], Evidence())

"""What every importance criterion owes. Inherit, return your criterion from `criterion`, and run pytest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, get_args

import torch
from torch import Tensor

from paretoprune.core.protocols import Criterion, Need, View


class CriterionCase:
    """Conformance suite of `core.protocols.Criterion`.

    Clear `zero_is_lowest` for a criterion by which a position where all is zero may still matter, `grows_with_weight`
    for one by which larger weights may matter less or not at all, and `follows_positions` for one that draws lots.
    """

    zero_is_lowest = True
    grows_with_weight = True
    follows_positions = True

    def criterion(self) -> Criterion:
        raise NotImplementedError("return the criterion under test")

    def view(self, positions: int = 12, rest: int = 20, dtype: torch.dtype = torch.float32) -> View:
        """A random view with a fixed seed, of what the criterion needs."""
        made = torch.Generator().manual_seed(positions * 1000 + rest)
        needs = self.criterion().needs

        def draw(*shape: int) -> Tensor:
            return torch.randn(positions, *shape, generator=made).to(dtype)

        weight, grad, inputs = draw(rest), draw(rest), draw(rest).abs()
        activations, gates, scale, losses = draw(40, 4, 6).relu(), draw(40), draw(2), draw().abs()
        return View(
            weight,
            grad if "gradients" in needs else None,
            inputs if "inputs" in needs else None,
            activations if "activations" in needs else None,
            gates if "gates" in needs else None,
            scale if "scales" in needs else None,
            losses if "elimination" in needs else None,
            axis="axis",
        )

    def test_declares_itself(self) -> None:
        criterion = self.criterion()
        assert isinstance(criterion.name, str)
        assert criterion.name
        assert criterion.members in ("out", "in", "each")
        assert isinstance(criterion.needs, frozenset)
        assert criterion.needs <= set(get_args(Need))
        assert criterion.remove in ("low", "high")
        assert isinstance(criterion.comparable, bool)

    def test_one_score_per_position(self) -> None:
        for positions, rest in ((1, 1), (1, 20), (12, 1), (12, 20)):
            score = self.criterion().score(self.view(positions, rest))
            assert score.shape == (positions,)

    def test_finite(self) -> None:
        for dtype in (torch.float32, torch.float64):
            score = self.criterion().score(self.view(dtype=dtype))
            assert score.is_floating_point()
            assert bool(torch.isfinite(score).all())

    def test_a_view_of_zeros_has_a_score(self) -> None:
        score = self.criterion().score(changed(self.view(), torch.zeros_like))
        assert bool(torch.isfinite(score).all())

    def test_precision_does_not_change_the_answer(self) -> None:
        single, criterion = self.view(), self.criterion()
        double = changed(single, Tensor.double)
        torch.testing.assert_close(
            criterion.score(single).double(), criterion.score(double).double(), rtol=1e-3, atol=1e-4
        )

    def test_permuting_positions_permutes_scores(self) -> None:
        if not self.follows_positions:
            return
        view, criterion = self.view(), self.criterion()
        order = torch.randperm(view.weight.shape[0], generator=torch.Generator().manual_seed(3))
        permuted = changed(view, lambda t: t[order])
        torch.testing.assert_close(criterion.score(permuted), criterion.score(view)[order], rtol=1e-4, atol=1e-5)

    def test_asking_twice_gives_the_same(self) -> None:
        criterion = self.criterion()
        assert torch.equal(criterion.score(self.view()), criterion.score(self.view()))

    def test_leaves_the_view_and_the_random_state_alone(self) -> None:
        view, state = self.view(), torch.get_rng_state()
        before = changed(view, Tensor.clone)
        self.criterion().score(view)
        assert torch.equal(torch.get_rng_state(), state)
        for part in fields(view):
            now, then = getattr(view, part.name), getattr(before, part.name)
            assert now is None or (torch.equal(now, then) if isinstance(now, Tensor) else now == then), part.name

    def test_positions_where_all_is_zero_go_first(self) -> None:
        if not self.zero_is_lowest:
            return
        view, criterion = self.view(), self.criterion()
        empty = torch.zeros(len(view.weight), dtype=torch.bool)
        empty[::3] = True
        score = criterion.score(changed(view, lambda t: t.masked_fill(empty.reshape(-1, *[1] * (t.ndim - 1)), 0)))
        score = -score if criterion.remove == "high" else score
        assert float(score[empty].max()) <= float(score[~empty].min())

    def test_larger_weights_score_higher(self) -> None:
        if not self.grows_with_weight:
            return
        view = self.view()
        weight = view.weight.clone()
        weight[4] *= 3
        criterion = self.criterion()
        before, after = criterion.score(view), criterion.score(replace(view, weight=weight))
        assert float(after[4]) > float(before[4])


def changed(view: View, change: Callable[[Tensor], Tensor]) -> View:
    """The view with every tensor changed."""
    parts: dict[str, Any] = {f.name: getattr(view, f.name) for f in fields(view)}
    parts.update({name: change(value) for name, value in parts.items() if isinstance(value, Tensor)})
    return View(**parts)

"""What every importance criterion owes. Inherit, return your criterion from `criterion`, and run pytest."""

from __future__ import annotations

import torch

from paretoprune.core.protocols import Criterion, View


class CriterionCase:
    """Conformance suite of `core.protocols.Criterion`.

    Clear `zero_is_lowest` for a criterion by which a position without weight may still matter, and `grows_with_weight`
    for one by which larger weights may matter less (distance to other filters, for instance).
    """

    zero_is_lowest = True
    grows_with_weight = True

    def criterion(self) -> Criterion:
        raise NotImplementedError("return the criterion under test")

    def view(self, positions: int = 12, rest: int = 20, dtype: torch.dtype = torch.float32) -> View:
        """A random view with a fixed seed."""
        made = torch.Generator().manual_seed(positions * 1000 + rest)
        weight = torch.randn(positions, rest, generator=made).to(dtype)
        grad = torch.randn(positions, rest, generator=made).to(dtype)
        return View(weight, grad if self.criterion().needs_gradients else None)

    def test_declares_itself(self) -> None:
        criterion = self.criterion()
        assert isinstance(criterion.name, str)
        assert criterion.name
        assert criterion.members in ("out", "in", "each")
        assert isinstance(criterion.needs_gradients, bool)

    def test_one_score_per_position(self) -> None:
        for positions, rest in ((1, 1), (1, 20), (12, 1), (12, 20)):
            score = self.criterion().score(self.view(positions, rest))
            assert score.shape == (positions,)

    def test_finite_and_not_negative(self) -> None:
        for dtype in (torch.float32, torch.float64):
            score = self.criterion().score(self.view(dtype=dtype))
            assert score.is_floating_point()
            assert bool(torch.isfinite(score).all())
            assert bool((score >= 0).all())

    def test_precision_does_not_change_the_answer(self) -> None:
        single = self.view()
        double = View(single.weight.double(), None if single.grad is None else single.grad.double())
        criterion = self.criterion()
        torch.testing.assert_close(
            criterion.score(single).double(), criterion.score(double).double(), rtol=1e-3, atol=1e-4
        )

    def test_permuting_positions_permutes_scores(self) -> None:
        view = self.view()
        order = torch.randperm(view.weight.shape[0], generator=torch.Generator().manual_seed(3))
        permuted = View(view.weight[order], None if view.grad is None else view.grad[order])
        criterion = self.criterion()
        torch.testing.assert_close(criterion.score(permuted), criterion.score(view)[order], rtol=1e-4, atol=1e-5)

    def test_asking_twice_gives_the_same(self) -> None:
        criterion = self.criterion()
        assert torch.equal(criterion.score(self.view()), criterion.score(self.view()))

    def test_leaves_the_view_alone(self) -> None:
        view = self.view()
        before = view.weight.clone(), None if view.grad is None else view.grad.clone()
        self.criterion().score(view)
        assert torch.equal(view.weight, before[0])
        assert before[1] is None or (view.grad is not None and torch.equal(view.grad, before[1]))

    def test_positions_without_weight_score_lowest(self) -> None:
        if not self.zero_is_lowest:
            return
        view = self.view()
        weight = view.weight.clone()
        weight[::3] = 0
        score = self.criterion().score(View(weight, view.grad))
        empty = torch.zeros(len(score), dtype=torch.bool)
        empty[::3] = True
        assert float(score[empty].max()) <= float(score[~empty].min())

    def test_larger_weights_score_higher(self) -> None:
        if not self.grows_with_weight:
            return
        view = self.view()
        weight = view.weight.clone()
        weight[4] *= 3
        criterion = self.criterion()
        before, after = criterion.score(view), criterion.score(View(weight, view.grad))
        assert float(after[4]) > float(before[4])

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from paretoprune.core.errors import DataError, PruneError, UsageError
from paretoprune.core.protocols import Task
from paretoprune.recover import distill


def mean_loss(output: Any, labels: Any) -> Tensor:
    return functional.cross_entropy(output, labels)


def hits(output: Any, labels: Any) -> Tensor:
    return (output.argmax(1) == labels).float()


TASK = Task("classification", mean_loss, hits)


@pytest.fixture
def teacher() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.fixture
def student() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))


@pytest.fixture
def batches(teacher: nn.Sequential) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(2)
    xs = [torch.randn(32, 6, generator=made) for _ in range(8)]
    return [(x, teacher(x).argmax(1)) for x in xs]


def agreement(student: nn.Module, teacher: nn.Module) -> float:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(5))
    return float((student(x).argmax(1) == teacher(x).argmax(1)).float().mean())


@pytest.mark.parametrize("labelled", [True, False])
def test_student_learns_to_answer_like_the_teacher(
    student: nn.Sequential, teacher: nn.Sequential, batches: list[tuple[Tensor, Tensor]], labelled: bool
) -> None:
    data: list[Any] = batches if labelled else [x for x, _ in batches]
    before = agreement(student.eval(), teacher)
    distill(student, teacher, data, TASK, steps=150, lr=0.1)
    assert agreement(student, teacher) > max(0.85, before + 0.2)


def test_a_steep_loss_cannot_throw_the_student_away(
    student: nn.Sequential, teacher: nn.Sequential, batches: list[tuple[Tensor, Tensor]]
) -> None:
    """Logits a hundred times larger make gradients as much longer; the steps that are taken stay bounded."""
    steep = nn.Sequential(teacher, nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        steep[1].weight.copy_(100 * torch.eye(4))
    norms: list[float] = []

    def watched(parameters: Any) -> SGD:
        optimizer = SGD(parameters, lr=0.02)
        optimizer.register_step_pre_hook(
            lambda *_: norms.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
        )
        return optimizer

    distill(student, steep, batches, TASK, steps=10, optimizer=watched)
    assert max(norms) == pytest.approx(5.0, rel=1e-3)


def test_loss_is_soft_targets_plus_labels(teacher: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> None:
    torch.manual_seed(3)
    student = nn.Linear(6, 4)
    x, y = batches[0]
    t, alpha = 3.0, 0.7
    with torch.no_grad():
        p, q = (teacher(x) / t).softmax(1), (student(x) / t).softmax(1)
        soft = (p * (p.log() - q.log())).sum(1).mean() * t * t
        expected = alpha * soft + (1 - alpha) * functional.cross_entropy(student(x), y)
    seen: list[tuple[int, float]] = []
    options: dict[str, Any] = {"steps": 1, "temperature": t, "alpha": alpha}
    distill(student, teacher, [(x, y)], TASK, on_step=lambda *s: seen.append(s), **options)
    assert seen[0] == (0, pytest.approx(float(expected), rel=1e-5))


def test_mean_squared_error_without_a_task(teacher: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> None:
    student = nn.Linear(6, 4)
    x = batches[0][0]
    expected = float((student(x) - teacher(x)).square().mean().detach())
    seen: list[float] = []
    distill(student, teacher, [x], None, steps=1, on_step=lambda _, loss: seen.append(loss))
    assert seen[0] == pytest.approx(expected, rel=1e-5)


def test_teacher_random_state_and_modes_stay(
    student: nn.Sequential, teacher: nn.Sequential, batches: list[tuple[Tensor, Tensor]]
) -> None:
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    state = torch.random.get_rng_state()
    distill(student, teacher, batches, TASK, steps=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[n]) for n, v in teacher.state_dict().items())
    assert teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert not any(m.training for m in student.modules())
    assert all(p.grad is None for p in student.parameters())


def test_teacher_answers_in_eval_mode_though_it_was_given_in_train_mode() -> None:
    x = torch.randn(64, 6)
    teacher = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)).eval()
    expected = float(teacher(x).detach().square().mean())
    silent = nn.Linear(6, 4)
    nn.init.zeros_(silent.weight)
    nn.init.zeros_(silent.bias)
    seen: list[float] = []
    distill(silent, teacher.train(), [x], None, steps=1, on_step=lambda _, loss: seen.append(loss))
    assert seen == [pytest.approx(expected, rel=1e-5)]


def test_same_seed_same_student(
    student: nn.Sequential, teacher: nn.Sequential, batches: list[tuple[Tensor, Tensor]]
) -> None:
    runs = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed * 17 + len(runs))
        mine = copy.deepcopy(student)
        distill(mine, teacher, batches, TASK, steps=12, seed=seed)
        runs.append(mine[0].weight)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_frozen_parameters_stay_frozen(
    student: nn.Sequential, teacher: nn.Sequential, batches: list[tuple[Tensor, Tensor]]
) -> None:
    student[0].weight.requires_grad_(False)
    before, other = student[0].weight.clone(), student[4].weight.clone()
    distill(student, teacher, batches, TASK, steps=5)
    assert torch.equal(student[0].weight, before)
    assert not student[0].weight.requires_grad
    assert not torch.equal(student[4].weight, other)
    for p in student.parameters():
        p.requires_grad_(False)
    with pytest.raises(UsageError, match="nothing to distill into"):
        distill(student, teacher, batches, TASK, steps=5)


def test_nan_loss_fails_the_candidate(
    student: nn.Sequential, teacher: nn.Sequential, batches: list[tuple[Tensor, Tensor]]
) -> None:
    poisoned = [batches[0], (batches[1][0] * math.nan, batches[1][1])]
    state = torch.random.get_rng_state()
    with pytest.raises(PruneError, match=r"the loss is nan at step \d; lower lr=0.02"):
        distill(student, teacher, poisoned, TASK, steps=4)
    assert not student.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_gradient_that_is_not_finite_is_no_step(teacher: nn.Sequential) -> None:
    """The loss still is: 1e15 inputs times errors as large."""
    with pytest.raises(PruneError, match="the gradient is inf at step 0"):
        distill(nn.Linear(6, 4), teacher, [torch.randn(8, 6) * 1e15], None, steps=1)


def test_weights_that_blow_up_on_the_last_step_are_found(teacher: nn.Sequential) -> None:
    with pytest.raises(PruneError, match="weights are not finite after 1 steps"):
        distill(nn.Linear(6, 4), teacher, [torch.randn(8, 6) * 1e3], None, steps=1, lr=3e38)


def test_a_list_is_gone_round_whole_in_another_order_each_time(teacher: nn.Sequential) -> None:
    class Watcher(nn.Linear):
        seen: list[int] = []  # noqa: RUF012

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(int(x[0, 0]))
            return super().forward(x)

    batches = [torch.full((4, 6), float(i)) for i in range(6)]
    watcher = Watcher(6, 4)
    distill(watcher, teacher, [*batches, torch.full((1, 6), 9.0)], None, steps=12, lr=1e-6)
    first, second = watcher.seen[:6], watcher.seen[6:]
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


class Loader:
    """Not a list: read again and again."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(self.batches)


def test_another_iterable_is_read_again(
    student: nn.Sequential, teacher: nn.Sequential, batches: list[tuple[Tensor, Tensor]]
) -> None:
    loader = Loader([*batches[:3], (batches[0][0][:1], batches[0][1][:1])])
    distill(student, teacher, loader, TASK, steps=7)
    assert loader.passes == 3


def test_own_optimizer_and_scheduler(teacher: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> None:
    student = nn.Linear(6, 4)
    before = student.weight.clone()
    made: list[str] = []

    def optimizer(parameters: Any) -> SGD:
        made.append("optimizer")
        return SGD(parameters, lr=0.5)

    def scheduler(given: Any) -> LambdaLR:
        made.append("scheduler")
        return LambdaLR(given, lambda _: 0.0)

    distill(student, teacher, batches, TASK, steps=3, optimizer=optimizer, scheduler=scheduler)
    assert made == ["optimizer", "scheduler"]
    assert torch.equal(student.weight, before)


def test_default_schedule_warms_up_and_ends_near_zero(
    teacher: nn.Sequential, batches: list[tuple[Tensor, Tensor]]
) -> None:
    """Steps of a student that is far away: small at first, largest early, smallest at the end."""
    student = nn.Linear(6, 4)
    weights = [student.weight.detach().clone()]
    distill(
        student, teacher, batches[:1], None, steps=40, lr=0.01,
        on_step=lambda *_: weights.append(student.weight.detach().clone()),
    )  # fmt: skip
    moves = [float((b - a).norm()) for a, b in pairwise(weights)]
    assert moves[0] < max(moves) / 2
    assert moves[-1] < max(moves) / 20


@pytest.mark.parametrize(
    ("data", "says"),
    [([], "no training batch"), (Loader([]), "no training batch"), ([torch.randn(1, 6)], "at least 2")],
)
def test_batches_that_do_not_serve(student: nn.Sequential, teacher: nn.Sequential, data: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        distill(student, teacher, data, None, steps=1)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"temperature": 0.0}, {"alpha": 1.5}, {"temperature": math.nan}])
def test_settings_out_of_range(student: nn.Sequential, teacher: nn.Sequential, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        distill(student, teacher, [torch.randn(2, 6)], None, **{"steps": 1, **wrong})


def test_answers_of_another_shape(teacher: nn.Sequential, batches: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(PruneError, match=r"\(32, 3\), the teacher \(32, 4\)"):
        distill(nn.Linear(6, 3), teacher, batches, TASK, steps=1)

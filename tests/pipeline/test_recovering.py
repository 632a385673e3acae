"""`pp.finetune` and `pp.distill`: what goes in stays as it is, and a trained copy comes out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune import graph as graphs
from paretoprune.core.graph import Example
from paretoprune.graph import tensors_of

errors = pp.errors


class Residual(nn.Module):
    """Two residual blocks with an inner axis each ("one", "three"), the stream is not inner."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 8)
        self.three, self.four = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.two(F.relu(self.one(x)))
        x = x + self.four(F.relu(self.three(x)))
        result: Tensor = self.head(x)
        return result


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    made = torch.Generator().manual_seed(3)
    return [torch.randn(32, 6, generator=made) for _ in range(6)]


@pytest.fixture
def original() -> Residual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return Residual().eval()


@pytest.fixture
def pruned(original: Residual, images: list[Tensor]) -> pp.Pruned:
    return pp.prune(original, images[0][:2], ratio=0.5)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in tensors_of(module).items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(t, before[n]) for n, t in tensors_of(module).items())


def error(module: nn.Module, original: nn.Module, images: list[Tensor]) -> float:
    with torch.no_grad():
        return sum(float((module(x) - original(x)).square().mean()) for x in images)


def test_finetune_gives_a_trained_copy_that_is_saved_and_agrees_with_its_graph(
    net: nn.Module, example: Tensor, data: pp.Data, tmp_path: Path
) -> None:
    pruned = pp.prune(net, example, ratio=0.5)
    before = snapshot(pruned.model), snapshot(pruned.program.module)
    tuned = pp.finetune(pruned, data.train, epochs=3)

    def loss(model: nn.Module) -> float:
        with torch.no_grad():
            return sum(float(F.cross_entropy(model(x), y)) for x, y in data.validation)

    assert loss(tuned.model) < loss(pruned.model)
    assert unchanged(pruned.model, before[0])
    assert unchanged(pruned.program.module, before[1])
    assert type(tuned.model) is type(net)
    assert tuned.plan == pruned.plan
    x = next(iter(data.test))[0]
    torch.testing.assert_close(tuned.program.module(x), tuned.model(x))
    again = pp.load(pp.save(tuned, tmp_path / "net"))
    torch.testing.assert_close(again.model(x), tuned.model(x))


def test_a_module_gives_a_module(net: nn.Module, data: pp.Data) -> None:
    before, mode = snapshot(net), net.training
    net(next(iter(data.train))[0]).sum().backward()
    tuned = pp.finetune(net, data.train, steps=3)
    assert type(tuned) is type(net)
    assert unchanged(net, before)
    assert not unchanged(tuned, before)
    assert net.training is mode
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad is None for p in tuned.parameters())


def test_own_loss_and_own_step_get_the_batch_as_it_was_given(net: nn.Module) -> None:
    """Three things in a batch: a dict that no task would know."""
    made = torch.Generator().manual_seed(1)
    batches = [{"x": torch.randn(8, 1, 8, 8, generator=made), "weight": torch.rand(8), "y": torch.arange(8) % 4}] * 3

    def weighted(output: Any, batch: Any) -> Tensor:
        result: Tensor = (F.cross_entropy(output, batch["y"], reduction="none") * batch["weight"]).mean()
        return result

    def step(module: nn.Module, batch: Any) -> Tensor:
        return weighted(module(batch["x"]), batch)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(net)

        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            result: Tensor = self.net(x)
            return result

    one = pp.finetune(Wrapped(), batches, steps=4, loss=weighted)
    other = pp.finetune(net, batches, steps=4, step=step)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(errors.UsageError, match="loss= and step= are both given"):
        pp.finetune(net, batches, steps=1, loss=weighted, step=step)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "steps=None and epochs=None: give one"),
        ({"steps": 1, "epochs": 1}, "give one of the two"),
        ({"epochs": 0}, "epochs=0"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_how_long_is_said_once(net: nn.Module, data: pp.Data, options: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.UsageError, match=says):
        pp.finetune(net, data.train, **options)


def test_epochs_need_a_length(net: nn.Module, data: pp.Data) -> None:
    class Loader:
        def __iter__(self) -> Iterator[Any]:
            return iter(data.train)

    with pytest.raises(errors.UsageError, match="have no length: give steps="):
        pp.finetune(net, Loader(), epochs=1)


def test_distill_moves_towards_the_teacher_and_changes_neither(
    pruned: pp.Pruned, original: Residual, images: list[Tensor]
) -> None:
    before, teacher = snapshot(pruned.model), snapshot(original)
    tuned = pp.distill(pruned, original, images, task=None, steps=60)
    assert error(tuned.model, original, images) < 0.5 * error(pruned.model, original, images)
    assert unchanged(pruned.model, before)
    assert unchanged(original, teacher)


def activations(module: nn.Module, x: Tensor, *names: str) -> list[Tensor]:
    return list(graphs.tapped(module, Example((x,)), names)[1].values())


@pytest.mark.parametrize("blockwise", [False, True])
def test_hidden_states_come_nearer_than_by_answers_alone(
    pruned: pp.Pruned, original: Residual, images: list[Tensor], blockwise: bool
) -> None:
    """At the sums of both residual blocks, whose axis the pruning leaves alone."""
    traced = pp.trace(original, images[0][:2])
    names = graphs.hidden_nodes(traced)
    assert len(names) == 2

    def apart(result: pp.Pruned) -> list[float]:
        mine, right = (activations(m, images[0], *names) for m in (result.program.module, traced.program.module))
        return [float(((a - b).square().sum() / b.square().sum()).detach()) for a, b in zip(mine, right, strict=True)]

    answers = pp.distill(pruned, original, images, task=None, steps=40)
    options: dict[str, Any] = {"blockwise": True} if blockwise else {"hidden": True, "hidden_weight": 10.0}
    inside = pp.distill(pruned, original, images, task=None, steps=40, **options)
    assert all(a < b for a, b in zip(apart(inside), apart(answers), strict=True))
    assert error(inside.model, original, images) < error(pruned.model, original, images)
    torch.testing.assert_close(inside.program.module(images[0]), inside.model(images[0]))


def test_the_hidden_part_of_the_loss_is_this(pruned: pp.Pruned, original: Residual, images: list[Tensor]) -> None:
    """At a layer that lost half of its positions, against the teacher's that were kept; written out by hand."""
    x = images[0]
    kept = torch.from_numpy(np.asarray(pruned.kept["one.weight"][0]))
    assert len(kept) == 8
    traced = pp.trace(original, x[:2])
    node = next(c.node for c in traced.program.contractions if c.weight == "one.weight")
    with torch.no_grad():
        right = original.one(F.relu(original.stem(x)))[:, kept]
        mine = pruned.model.one(F.relu(pruned.model.stem(x)))
        apart = float((mine - right).square().sum() / right.square().sum())
        answers = float((pruned.model(x) - original(x)).square().mean())
        apart_scaled = float((1.5 * mine - right).square().sum() / right.square().sum())
    seen: list[float] = []
    options: dict[str, Any] = {"task": None, "steps": 1, "on_step": lambda _, value: seen.append(value)}
    pp.distill(pruned, original, [x], hidden=[node], hidden_weight=3.0, **options)
    assert seen[0] == pytest.approx(3 * apart + answers, rel=1e-4)
    with torch.no_grad():
        pruned.model.one.weight.mul_(1.5)
        pruned.model.one.bias.mul_(1.5)
        answers = float((pruned.model(x) - original(x)).square().mean())
    pp.distill(pruned, original, [x], hidden=[node], hidden_weight=3.0, **options)
    assert seen[1] == pytest.approx(3 * apart_scaled + answers, rel=1e-4), "the model's values count, not the graph's"
    assert apart_scaled > 0


def test_blocks_are_trained_one_after_the_other_on_their_own_parameters(
    pruned: pp.Pruned, original: Residual, images: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    import paretoprune.pipeline.inside as room

    trained: list[tuple[str, list[str]]] = []
    real = room.recover.train

    def train(module: nn.Module, *args: Any, **options: Any) -> Any:
        trained.append((options["name"], sorted(n for n, p in module.named_parameters() if p.requires_grad)))
        return real(module, *args, **options)

    monkeypatch.setattr(room.recover, "train", train)
    pruned.program.module.get_parameter("three.bias").requires_grad_(False)
    pp.distill(pruned, original, images, task=None, steps=2, blockwise=True)
    parts = [("one", "stem", "two"), ("four", "three"), ("head",)]
    expected = [sorted(f"{n}.{k}" for n in part for k in ("weight", "bias")) for part in parts]
    expected[1].remove("three.bias")
    assert [names for _, names in trained] == expected
    assert trained[2][0] == "distillation of block 'output'"


def test_blocks_go_on_where_they_stopped(
    pruned: pp.Pruned, original: Residual, images: list[Tensor], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"task": None, "steps": 4, "blockwise": True, "check_every": 2}
    whole = pp.distill(pruned, original, images, **options)
    count = iter(range(100))

    def stop(step: int, _: float) -> None:
        if next(count) == 6:  # in the second block
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pp.distill(pruned, original, images, checkpoint=tmp_path / "c", on_step=stop, **options)
    steps: list[int] = []
    again = pp.distill(
        pruned, original, images, checkpoint=tmp_path / "c", on_step=lambda s, _: steps.append(s), **options
    )
    assert steps == [2, 3, 0, 1, 2, 3]
    assert unchanged(again.model, snapshot(whole.model))


def test_two_modules_are_compared_at_submodules(original: Residual, images: list[Tensor]) -> None:
    torch.manual_seed(6)
    student = Residual()
    tuned = pp.distill(student, original, images, task=None, steps=30, hidden=["two", "four"])
    assert type(tuned) is Residual
    assert error(tuned, original, images) < error(student, original, images)
    assert not any(m._forward_hooks for m in (*tuned.modules(), *original.modules()))
    with pytest.raises(errors.UsageError, match="no submodule 'six'"):
        pp.distill(student, original, images, task=None, steps=1, hidden=["six"])
    with pytest.raises(errors.UsageError, match="give the names of submodules"):
        pp.distill(student, original, images, task=None, steps=1, hidden=True)
    with pytest.raises(errors.UsageError, match="blockwise=True needs the graph of a Pruned"):
        pp.distill(student, original, images, task=None, steps=1, hidden=["two"], blockwise=True)
    student.one, student.two = nn.Linear(8, 12), nn.Linear(12, 8)
    with pytest.raises(errors.PruneError, match=r"at 'one' the student has \(32, 12\), the teacher \(32, 16\)"):
        pp.distill(student, original, images, task=None, steps=1, hidden=["one"])


def test_a_dropped_block_is_no_place(original: Residual, images: list[Tensor]) -> None:
    traced = pp.trace(original, images[0][:2])
    names = [b.name for b in traced.blocks]
    pruned = pp.prune(original, images[0][:2], blocks=[names[0]])
    seen: list[float] = []
    options: dict[str, Any] = {"task": None, "hidden": True, "on_step": lambda _, value: seen.append(value)}
    with pytest.raises(errors.UsageError, match="the teacher must be traced.*give example="):
        pp.distill(pruned, original, images, steps=1, **options)
    tuned = pp.distill(pruned, original, images, steps=30, example=images[0][:2], **options)
    assert np.mean(seen[-5:]) < seen[0]
    assert error(tuned.model, original, images) < error(pruned.model, original, images)


def test_another_teacher_is_refused_where_activations_are_compared(pruned: pp.Pruned, images: list[Tensor]) -> None:
    other = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
    with pytest.raises(errors.UsageError, match="is not the network that was pruned"):
        pp.distill(pruned, other, images, task=None, steps=1, hidden=True)
    assert pp.distill(pruned, other, images, task=None, steps=1).macs == pruned.macs
    with pytest.raises(errors.UsageError, match="the graph has no activation 'nothing'; it has, for instance, add"):
        pp.distill(pruned, Residual(), images, task=None, steps=1, hidden=["nothing"])


def test_a_saved_and_loaded_result_is_trained_too(
    pruned: pp.Pruned, original: Residual, images: list[Tensor], tmp_path: Path
) -> None:
    again = pp.load(pp.save(pruned, tmp_path / "net"))
    one = pp.distill(again, original, images, task=None, steps=5, hidden=True)
    other = pp.distill(pruned, original, images, task=None, steps=5, hidden=True)
    torch.testing.assert_close(one.model(images[0]), other.model(images[0]))
    assert one.program.module is one.model, "it was loaded as the graph, and still is"


def test_nan_weights_are_refused_before_any_work(
    net: nn.Module, data: pp.Data, make_net: Callable[[], nn.Module]
) -> None:
    with torch.no_grad():
        net.conv2.weight[0] = float("nan")
    with pytest.raises(errors.ModelError, match="'conv2.weight' holds 144 NaN"):
        pp.finetune(net, data.train, steps=1)


@pytest.mark.slow
def test_hidden_states_of_a_recurrent_network_are_its_sequences() -> None:
    """The layer gives a sequence and its last states; without residual blocks, the sequence is compared."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LSTM(4, 8, batch_first=True), nn.GRU(8, 6, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.first(x)
            result: Tensor = self.head(self.second(x)[0][:, -1])
            return result

    torch.manual_seed(0)
    model, batches = Reader().eval(), [torch.randn(16, 5, 4) for _ in range(4)]
    pruned = pp.prune(model, batches[0][:2], ratio=0.5)
    near = pp.distill(pruned, model, batches, task=None, steps=60, hidden=True)

    def apart(student: Any) -> float:
        return float((student.model(batches[0]) - model(batches[0])).detach().square().mean())

    assert apart(near) < 0.6 * apart(pruned)

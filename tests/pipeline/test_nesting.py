"""`pp.distill_nested`: several pruned forms go in as they are, and come out trained together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.graph import tensors_of

errors = pp.errors


@pytest.fixture
def students(net: nn.Module, example: Tensor) -> list[pp.Pruned]:
    """In no order of size, not reconstructed."""
    return [pp.prune(net, example, ratio=r) for r in (0.5, 0.25)]


def distance(student: nn.Module, teacher: nn.Module, data: pp.Data) -> float:
    with torch.no_grad():
        return sum(float((student(x) - teacher(x)).square().mean()) for x, _ in data.validation)


def test_all_come_nearer_to_the_teacher_in_the_given_order(
    net: nn.Module, students: list[pp.Pruned], data: pp.Data, tmp_path: Path
) -> None:
    before = [{n: t.clone() for n, t in tensors_of(s.model).items()} for s in students]
    found = pp.distill_nested(students, net, data.train, epochs=6, polish=2, task=None, lr=0.005)
    assert [f.macs for f in found] == [s.macs for s in students]
    for student, trained in zip(students, found, strict=True):
        assert distance(trained.model, net, data) < distance(student.model, net, data)
    for old, student in zip(before, students, strict=True):
        assert all(torch.equal(t, old[n]) for n, t in tensors_of(student.model).items())
    pp.save(found[0], tmp_path / "member")
    x = next(iter(data.validation))[0]
    with torch.no_grad():
        assert torch.equal(pp.load(tmp_path / "member").model(x), found[0].model(x))
        assert torch.allclose(found[0].program.module(x), found[0].model(x), atol=1e-5)


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    net: nn.Module, students: list[pp.Pruned], data: pp.Data, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, loss: float) -> None:
        if step == 5:
            raise Killed

    how = {"steps": 8, "check_every": 2, "seed": 3}
    whole = pp.distill_nested(students, net, data.train, **how)  # type: ignore[arg-type]
    with pytest.raises(Killed):
        pp.distill_nested(students, net, data.train, checkpoint=tmp_path, on_step=kill, **how)  # type: ignore[arg-type]
    again = pp.distill_nested(students, net, data.train, checkpoint=tmp_path, **how)  # type: ignore[arg-type]
    for a, b in zip(whole, again, strict=True):
        assert all(torch.equal(t, tensors_of(b.model)[n]) for n, t in tensors_of(a.model).items())


def test_what_cannot_share_is_refused(
    net: nn.Module, example: Tensor, students: list[pp.Pruned], data: pp.Data
) -> None:
    thin = pp.prune(net, example, ranks=0.5)
    with pytest.raises(errors.UsageError, match=r"of low rank in one of the students"):
        pp.distill_nested([students[0], thin], net, data.train, steps=1)
    with pytest.raises(errors.UsageError, match=r"1 members: give at least 2"):
        pp.distill_nested(students[:1], net, data.train, steps=1)
    with pytest.raises(errors.UsageError, match=r"students=.*: give results of prune"):
        pp.distill_nested([net, net], net, data.train, steps=1)  # type: ignore[list-item]
    with pytest.raises(errors.UsageError, match=r"polish=-1"):
        pp.distill_nested(students, net, data.train, steps=1, polish=-1)

"""A training that was killed goes on and ends with the same bits; a folder that is not its own is refused."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from paretoprune.core.errors import FileError, UsageError
from paretoprune.recover import Batch, train
from paretoprune.recover.packing import pack, unpack
from paretoprune.recover.resume import STATE, Checkpoint

ROOT = Path(__file__).parents[2]
STEPS = 20


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))


def loss(module: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(module(*batch.inputs.args), batch.labels)


class Noisy:
    """Shuffled by torch, changed by numpy and by Python: everything that a user's loader may draw from."""

    def __init__(self) -> None:
        x = torch.randn(96, 6, generator=torch.Generator().manual_seed(2))
        self.loader: Any = DataLoader(TensorDataset(x, x[:, :4].argmax(1)), batch_size=16, shuffle=True)

    def __iter__(self) -> Iterator[Any]:
        for x, y in self.loader:
            yield x + 0.1 * float(np.random.randn()) + 0.1 * random.random(), y


class Growing:
    """A hook whose strength is its state."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.strength, self.sums = weight, 0.0, torch.zeros(6)

    def penalty(self, step: int, steps: int) -> Tensor | None:
        return self.strength * self.weight.square().sum()

    def after_step(self, step: int, steps: int) -> None:
        self.strength += 1e-3
        self.sums += self.weight.detach().abs().sum(0)

    def state_dict(self) -> dict[str, Any]:
        return {"strength": self.strength, "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.strength, self.sums = state["strength"], state["sums"]


Change = Callable[[dict[str, Any]], Any]


def run(folder: Path | None, on_step: Any = None, **options: Any) -> tuple[nn.Sequential, Any]:
    """Adam under OneCycle with a hook and patience: all that has a state."""
    module = net()
    given: dict[str, Any] = {
        "steps": STEPS,
        "optimizer": lambda p: torch.optim.Adam(p, lr=0.01),
        "scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.02, STEPS),
        "hooks": [Growing(module[0].weight)],
        "validate": lambda m: -abs(float(m[0].weight.sum())),
        "patience": 100,
        "check_every": 3,
        "checkpoint": folder,
        "on_step": on_step,
        **options,
    }
    done = train(module, loss, given.pop("batches", None) or Noisy(), **given)
    return module, done


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_resume import run
run(Path({folder!r}), on_step=lambda step, _: os.kill(os.getpid(), signal.SIGKILL) if step == {at} else None)
"""


def killed(folder: Path, at: int) -> int:
    """The exit status of a process that was killed after step `at`."""
    path = [str(ROOT / "src"), str(Path(__file__).parent)]
    program = KILLED.format(path=path, folder=str(folder), at=at)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", program], env=env, check=False).returncode


class Stop(Exception):
    pass


def stopped(folder: Path, at: int, **options: Any) -> None:
    def stop(step: int, _: float) -> None:
        if step == at:
            raise Stop

    with pytest.raises(Stop):
        run(folder, stop, **options)


def test_killed_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, expected = run(None)
    stopped(tmp_path / "c", 7)
    assert killed(tmp_path / "c", 16) == -signal.SIGKILL, "killed in the second part"
    steps: list[int] = []
    again, done = run(tmp_path / "c", on_step=lambda step, _: steps.append(step))
    assert steps == list(range(15, STEPS)), "it goes on from the last state on disk, which is of step 15"
    assert same(again, whole)
    assert done == expected
    finished, last = run(tmp_path / "c", on_step=lambda step, _: steps.append(step))
    assert steps[-1] == STEPS - 1, "a finished one is not trained again"
    assert same(finished, whole)
    assert last == expected


@pytest.mark.parametrize(
    "options",
    [
        {"batches": [(torch.randn(8, 6), torch.arange(8) % 4) for _ in range(5)]},
        {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "precision": "bf16"},
        {
            "optimizer": lambda p: torch.optim.LBFGS(p, max_iter=2),
            "scheduler": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [4, 9]),
        },
        {"scheduler": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1)},
        {"patience": 2, "validate": lambda m: float(m[1].num_batches_tracked == 9)},
    ],
)
def test_every_kind_of_state_comes_back(tmp_path: Path, options: dict[str, Any]) -> None:
    whole, expected = run(None, **options)
    stopped(tmp_path / "c", 10, **options)
    again, done = run(tmp_path / "c", **options)
    assert same(again, whole)
    assert done == expected


def test_the_folder_holds_one_state_without_pickle(tmp_path: Path) -> None:
    run(tmp_path / "c")
    names = sorted(f.name for f in (tmp_path / "c").iterdir())
    assert names == ["step-00000020.safetensors", STATE]
    text = (tmp_path / "c" / STATE).read_bytes().partition(b"\n")[2]
    assert json.loads(text)["tensors"] == names[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 30}, "steps was 20, now 30"),
        ({"seed": 5}, "seed was 0, now 5"),
        ({"optimizer": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1)}, "groups was"),
        ({"optimizer": torch.optim.AdamW}, "parts was"),
        ({"about": {"temperature": 2.0}}, "temperature was null, now 2.0"),
        ({"precision": "bf16"}, 'precision was "fp32", now "bf16"'),
    ],
)
def test_another_training_is_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    stopped(tmp_path / "c", 4)
    with pytest.raises(FileError, match=says):
        run(tmp_path / "c", **options)


def test_another_network_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path / "c", 4)
    other = net()
    with torch.no_grad():
        other[4].bias[0] += 1
    with pytest.raises(FileError, match="network was"):
        train(other, loss, Noisy(), steps=STEPS, checkpoint=tmp_path / "c")


@pytest.mark.parametrize("name", [STATE, "step-00000003.safetensors"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_state_is_refused(tmp_path: Path, name: str, how: str) -> None:
    stopped(tmp_path / "c", 4)
    file = tmp_path / "c" / name
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
        if name == STATE:  # as if nothing had been written yet
            assert same(run(tmp_path / "c")[0], run(None)[0])
            return
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data if how == "flip" else data[:-20])
    with pytest.raises(FileError, match="delete the folder to start again"):
        run(tmp_path / "c")


def test_a_newer_state_says_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import paretoprune.recover.resume as room

    monkeypatch.setattr(room, "SCHEMA", 2)
    Checkpoint(tmp_path / "c", {}).write(1, {})
    monkeypatch.undo()
    with pytest.raises(FileError, match="schema 2, this version reads 1: upgrade paretoprune"):
        Checkpoint(tmp_path / "c", {}).read()


def test_a_hook_whose_state_cannot_be_saved_is_named(tmp_path: Path) -> None:
    class Odd(Growing):
        def state_dict(self) -> dict[str, Any]:
            return {"kind": Growing}

    module = net()
    with pytest.raises(UsageError, match=r"state\.hooks\.0\.kind is a builtins\.type.*without pickle"):
        train(module, loss, Noisy(), steps=2, hooks=[Odd(module[0].weight)], checkpoint=tmp_path / "c")


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.b(self.a(x).relu())
            return result

    torch.manual_seed(0)
    first = Tied()
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    options: dict[str, Any] = {"steps": 6, "check_every": 2, "checkpoint": tmp_path / "c"}

    def stop(step: int, _: float) -> None:
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        train(first, loss, Noisy(), on_step=stop, **options)
    train(second, loss, Noisy(), **options)
    train(third, loss, Noisy(), steps=6)
    assert second.b.weight is second.a.weight
    assert same(second, third)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
KEYS = st.text(max_size=4) | st.integers() | st.booleans()
TREES = st.recursive(
    LEAVES | st.builds(lambda v: torch.tensor(v, dtype=torch.float64), st.lists(st.floats(), max_size=3)),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(TREES)
def test_packing_is_exact(tree: Any) -> None:
    tensors: dict[str, Tensor] = {}
    packed = json.loads(json.dumps(pack(tree, tensors)))
    assert repr(unpack(packed, tensors)) == repr(tree)

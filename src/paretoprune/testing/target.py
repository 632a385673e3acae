"""What every target owes. Inherit, return your target from `target`, and run pytest."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paretoprune.core.errors import PruneError, TargetError
from paretoprune.core.graph import Example
from paretoprune.core.protocols import Runner, Target

Arrays = tuple[NDArray[Any], ...]
ROWS = 4
"""Samples of the example."""


class TargetCase:
    """Conformance suite of `core.protocols.Target`.

    Set `fixed_batch` for a target whose files run at one batch size alone, to that size. A file is exported once a
    precision and class, and kept until the tests end.
    """

    fixed_batch: int | None = None
    _kept: ClassVar[dict[tuple[type, str], Path]] = {}

    def target(self) -> Target:
        raise NotImplementedError("return the target under test")

    def network(self) -> nn.Module:
        """In training mode, with a dropout and a batch norm: an export must see to both."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return nn.Sequential(
                nn.Conv2d(2, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Dropout(0.5),
                nn.Linear(8 * 16, 5),
            )

    def example(self) -> Example:
        return Example.of(torch.randn(self.fixed_batch or ROWS, 2, 8, 8, generator=torch.Generator().manual_seed(1)))

    def file(self, precision: str = "fp32") -> Path:
        """The network as a file."""
        key = type(self), precision
        if key not in self._kept:
            suffix, folder = self._suffix(), tempfile.mkdtemp(prefix="paretoprune-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            self._kept[key] = self._exported(self.network(), Path(folder) / f"net{suffix}", precision)
        return self._kept[key]

    def _suffix(self) -> str:
        return str(getattr(self.target(), "suffix", ".onnx"))

    def _exported(self, network: nn.Module, path: Path, precision: str) -> Path:
        rows = self.fixed_batch or 16
        calibration = [Example.of(torch.from_numpy(inputs(rows, seed))) for seed in range(1, 5)]
        given = None if precision == "fp32" else calibration
        return self.target().export(network, self.example(), path, precision, given)

    def _batch(self) -> int:
        return self.fixed_batch or 1

    def test_it_declares_itself(self) -> None:
        target = self.target()
        assert isinstance(target.name, str)
        assert target.name
        assert isinstance(target.threads, int)
        assert target.threads >= 1
        assert target.precisions
        assert target.precisions[0] == "fp32", "fp32 comes first: other precisions are compared with it"

    def test_its_fingerprint_is_text_and_stays(self) -> None:
        first, second = self.target().fingerprint(), self.target().fingerprint()
        assert isinstance(first, Mapping)
        assert first
        assert all(isinstance(text, str) and text for item in first.items() for text in item)
        assert dict(first) == dict(second)
        assert first.get("threads") == str(self.target().threads)

    def test_a_file_is_written_where_it_was_asked_for_and_can_be_run(self) -> None:
        path = self.file()
        assert path.is_file()
        runner = self.target().load(path)
        assert isinstance(runner, Runner)
        assert runner.input_names == ("input",)

    def test_it_answers_like_the_network(self) -> None:
        assert close(self._answers(self._batch()), self._expected(self._batch()), 1e-3)

    def test_the_batch_stays_dynamic_or_another_is_refused(self) -> None:
        if self.fixed_batch is None:
            for batch in (2, ROWS + 1, 67):
                assert close(self._answers(batch), self._expected(batch), 1e-3), batch
        else:
            refused(lambda: self._answers(self._batch() + 1))

    def test_other_precisions_are_near(self) -> None:
        """Those that this machine has; a target may refuse one with `check`."""
        for precision in self.target().precisions[1:]:
            try:
                getattr(self.target(), "check", str)(precision)
            except TargetError:
                continue
            assert close(self._answers(self._batch(), precision), self._expected(self._batch()), 0.2), precision

    def test_answers_are_the_callers_own(self) -> None:
        """And each input gets its own."""
        runner = self.target().load(self.file())
        (first,) = runner({"input": inputs(self._batch(), 1)})
        kept = first.copy()
        (second,) = runner({"input": inputs(self._batch(), 2)})
        np.testing.assert_array_equal(first, kept)
        assert not np.array_equal(first, second)

    def test_loading_it_again_gives_the_same(self) -> None:
        assert close(self._answers(self._batch()), self._answers(self._batch()), 1e-6)

    def test_the_network_and_the_random_state_are_left_alone(self) -> None:
        network, before = self.network(), torch.get_rng_state()
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with tempfile.TemporaryDirectory() as folder:
            self._exported(network, Path(folder) / f"net{self._suffix()}", "fp32")
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
        assert all(module.training for module in network.modules())

    def test_what_it_cannot_hold_is_refused_and_leaves_nothing(self) -> None:
        for network in (Drifting(), self.network().half()):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"net{self._suffix()}"
                refused(lambda: self._exported(network, path, "fp32"))  # noqa: B023
                assert list(Path(folder).iterdir()) == []

    def test_an_unknown_precision_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            refused(lambda: self._exported(self.network(), Path(folder) / f"net{self._suffix()}", "int3"))

    def test_what_is_no_file_of_it_is_refused(self) -> None:
        whole = self.file().read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"net{self._suffix()}"
            refused(lambda: self.target().load(path))
            for content in (b"", b"no network", bytes(range(256)) * 64, whole[: len(whole) // 2]):
                path.write_bytes(content)
                refused(lambda: self.target().load(path))

    def test_other_inputs_are_refused(self) -> None:
        runner = self.target().load(self.file())
        for feed in (
            {},
            {"other": inputs(self._batch(), 1)},
            {"input": inputs(self._batch(), 1)[:, :1]},
            {"input": inputs(self._batch(), 1).astype(np.float64)},
        ):
            refused(lambda feed=feed: runner(feed))  # type: ignore[misc]

    def _answers(self, batch: int, precision: str = "fp32") -> Arrays:
        return self.target().load(self.file(precision))({"input": inputs(batch, 1)})

    def _expected(self, batch: int) -> Arrays:
        with torch.no_grad():
            return (self.network().eval()(torch.from_numpy(inputs(batch, 1))).numpy(),)


class Drifting(nn.Module):
    """Gives something else at every call: no file can agree with it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * (self.scale + 0.01 * self.calls)


def inputs(batch: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((batch, 2, 8, 8)).astype(np.float32)


def close(given: Arrays, expected: Arrays, share: float) -> bool:
    """Same shapes, and nowhere farther apart than this share of the largest value."""
    return len(given) == len(expected) and all(
        a.shape == b.shape and bool(np.abs(a - b).max() <= share * np.abs(b).max())
        for a, b in zip(given, expected, strict=True)
    )


def refused(call: Callable[[], object]) -> None:
    """The call must raise an error of ours with a message."""
    try:
        call()
    except PruneError as error:
        if str(error):
            return
        raise AssertionError("the error says nothing") from error
    raise AssertionError("it was accepted; an error was expected")

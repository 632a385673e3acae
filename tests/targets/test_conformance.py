"""Every target that can be made here passes the suite that a user's own target inherits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import Target
from paretoprune.pipeline.targets import Packing, find_target
from paretoprune.sparsity.kernels import available
from paretoprune.targets import OnnxRuntime
from paretoprune.targets.openvino_sparse import OpenVinoSparse
from paretoprune.targets.sparse_cpu import SparseCpu
from paretoprune.testing import TargetCase

_MADE: dict[str, Any] = {}


class Named(TargetCase):
    name = ""

    def target(self) -> Target:
        if self.name not in _MADE:
            try:
                _MADE[self.name] = find_target(self.name)
            except UsageError as error:
                _MADE[self.name] = error
        if isinstance(_MADE[self.name], UsageError):
            pytest.skip(str(_MADE[self.name]))
        return _MADE[self.name]


class TestOnnxRuntime(Named):
    name = "onnxruntime"


class TestOpenVino(Named):
    name = "openvino"


class TestTorch(Named):
    name = "torch"


@pytest.mark.slow
class TestTorchCompile(Named):
    name = "torch-compile"


@pytest.mark.slow
class TestExecuTorch(Named):
    name = "executorch"


class TestSparseCpu(Named):
    """Every layer that can be is packed; what is left to measurement is in test_sparse_cpu.py."""

    name = "sparse-cpu"

    def target(self) -> Target:
        if not available():
            pytest.skip("the sparse kernels were not compiled")
        return SparseCpu(1, Packing(), keep="all")

    def network(self) -> Any:
        network = super().network()
        weight = network[6].weight
        weight.data *= (torch.arange(weight.shape[1]) % 3 == 0)[None]
        return network


@pytest.mark.slow
class TestOpenVinoSparse(TestSparseCpu):
    def target(self) -> Target:
        pytest.importorskip("openvino")
        super().target()
        return OpenVinoSparse(1, Packing(), keep="all")


class TestCuda(Named):
    name = "cuda"


class TestOnnxRuntimeCuda(Named):
    name = "onnxruntime-cuda"


class TestOnnxRuntimeTensorRt(Named):
    name = "onnxruntime-tensorrt"


class OneAtATime(OnnxRuntime):
    """A user's own, whose files run at batch 1 alone."""

    name = "one-at-a-time"

    def load(self, path: Any) -> Any:
        from paretoprune.core.errors import TargetError

        runner = super().load(path)

        class Single:
            input_names, output_names = runner.input_names, runner.output_names

            def __call__(self, inputs: Any) -> Any:
                if any(len(array) != 1 for array in inputs.values()) and not verifying:
                    raise TargetError("this file runs at batch 1 alone")
                return runner(inputs)

        return Single()

    def export(self, *args: Any, **kwargs: Any) -> Any:
        global verifying
        verifying = True
        try:
            return super().export(*args, **kwargs)
        finally:
            verifying = False


verifying = False


class TestOwn(TargetCase):
    fixed_batch = 1

    def target(self) -> Target:
        return OneAtATime()


def test_the_suite_tells_a_target_that_freezes_the_batch() -> None:
    class Claims(TargetCase):
        def target(self) -> Target:
            return OneAtATime()

    with pytest.raises(Exception, match="batch 1 alone"):
        Claims().test_the_batch_stays_dynamic_or_another_is_refused()


def test_the_suite_tells_a_target_whose_answers_are_wrong() -> None:
    class Wrong(OnnxRuntime):
        def load(self, path: Any) -> Any:
            runner = super().load(path)

            class Off:
                input_names, output_names = runner.input_names, runner.output_names

                def __call__(self, inputs: Any) -> Any:
                    return tuple(array * (1.0 if exporting else 1.5) for array in runner(inputs))

            return Off()

        def export(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal exporting
            exporting = True
            try:
                return super().export(*args, **kwargs)
            finally:
                exporting = False

    exporting = False

    class Case(TargetCase):
        def target(self) -> Target:
            return Wrong()

    with pytest.raises(AssertionError):
        Case().test_it_answers_like_the_network()

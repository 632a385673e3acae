from __future__ import annotations

import sys

import numpy as np
import pytest

from paretoprune.core.errors import FileError, TargetError
from paretoprune.targets import LayerSpec, peak_memory
from paretoprune.targets.layers import layer_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident peaks are read from /proc")


def linear(path, width: int):
    spec = LayerSpec("linear", width, width)
    path.write_bytes(layer_model(spec).SerializeToString())
    return path, {"x": spec.example()}


def test_a_fresh_process_grows_by_at_least_the_weights(tmp_path):
    small = peak_memory(*linear(tmp_path / "small.onnx", 64))
    large = peak_memory(*linear(tmp_path / "large.onnx", 2048))
    weights = 4 * 2048 * 2048
    assert large.value - small.value > weights
    assert large.value < small.value + 8 * weights
    assert 0 < small.low <= small.value < 24 * 2**20  # the imports alone take twice that
    assert (large.unit, large.status) == ("B", "measured")


def test_an_error_of_the_child_is_reported(tmp_path):
    path, _ = linear(tmp_path / "m.onnx", 8)
    with pytest.raises(TargetError, match="failed in a fresh process.*index: 1 Got: 5"):
        peak_memory(path, {"x": np.ones((1, 5), np.float32)})


def test_a_child_that_takes_too_long_is_ended(tmp_path):
    path, feed = linear(tmp_path / "m.onnx", 8)
    with pytest.raises(TargetError, match=r"took over 0\.01 s"):
        peak_memory(path, feed, timeout_s=0.01)


def test_files_are_checked_before_the_child_starts(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(FileError, match=r"m\.onnx"):
        peak_memory(tmp_path / "m.onnx", {})


def test_input_names_do_not_matter(tmp_path):
    """An input may be called like a parameter of the archive writer."""
    import onnx

    path, feed = linear(tmp_path / "m.onnx", 8)
    model = onnx.load(path)
    model.graph.input[0].name = model.graph.node[0].input[0] = "file"
    onnx.save(model, path)
    assert peak_memory(path, {"file": feed["x"]}).value > 0

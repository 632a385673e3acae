"""OpenVINO as a target: the same files, its own int8, and nothing taken in silence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import paretoprune as pp
from paretoprune.core.errors import FileError, TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.targets import find_target, measure_file
from paretoprune.targets.feeds import feed_of
from paretoprune.targets.qdq import layout_of

NEEDED = "needs the extra openvino: pip install 'paretoprune[openvino]'"


@pytest.fixture(scope="module")
def openvino() -> Any:
    pytest.importorskip("openvino", reason=NEEDED)
    return find_target("openvino")


@pytest.fixture
def file(openvino: Any, net: nn.Module, example: Example, tmp_path: Path) -> Path:
    path: Path = openvino.export(net.eval(), example, tmp_path / "net.onnx")
    return path


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_file_answers_like_the_module_at_any_batch(openvino: Any, file: Path, net: nn.Module, batch: int) -> None:
    x = torch.randn(batch, 3, 16, 16)
    (given,) = openvino.load(file)({"input": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(given, net.eval()(x).numpy(), atol=1e-4)


def test_answers_are_not_overwritten_by_the_next_ones(openvino: Any, file: Path) -> None:
    runner = openvino.load(file)
    (first,) = runner({"input": np.zeros((1, 3, 16, 16), np.float32)})
    kept = first.copy()
    runner({"input": np.ones((1, 3, 16, 16), np.float32)})
    np.testing.assert_array_equal(first, kept)


def test_it_runs_on_the_calling_thread_which_is_timed(openvino: Any, file: Path) -> None:
    import time

    runner, feed = openvino.load(file), {"input": np.zeros((64, 3, 16, 16), np.float32)}
    runner(feed)
    thread, process = time.thread_time(), time.process_time()
    for _ in range(20):
        runner(feed)
    assert time.thread_time() - thread > 0.8 * (time.process_time() - process)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"input": np.zeros((1, 4, 16, 16), np.float32)}, r"input \(1, 4, 16, 16\)"),
        ({"input": np.zeros((3, 16, 16), np.float32)}, r"input \(3, 16, 16\)"),
        ({"input": np.zeros((1, 3, 16, 16), np.float64)}, "float64"),
        ({"x": np.zeros((1, 3, 16, 16), np.float32)}, "takes the inputs input; given were x"),
    ],
)
def test_what_it_would_cast_or_reshape_in_silence_is_refused(
    openvino: Any, file: Path, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(TargetError, match=says):
        openvino.load(file)(given)


def test_what_is_no_file_of_it(openvino: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network")
    with pytest.raises(FileError, match="not an ONNX file"):
        openvino.load(broken)
    with pytest.raises(FileError, match="cannot read"):
        openvino.load(tmp_path / "none.onnx")


def test_int8_is_smaller_and_near_the_original(
    openvino: Any, net: nn.Module, example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nncf", reason=NEEDED)
    fp32 = openvino.export(net.eval(), example, tmp_path / "fp32.onnx")
    int8 = openvino.export(net, example, tmp_path / "int8.onnx", "int8", [example] * 4)
    assert capsys.readouterr().out == ""
    assert int8.stat().st_size < 0.6 * fp32.stat().st_size
    feed = feed_of(example)
    (exact,), (near,) = openvino.load(fp32)(feed), openvino.load(int8)(feed)
    assert 0 < np.abs(near - exact).max() < 0.2 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("precision", "calibration", "says"),
    [("int8", None, "give calibration="), ("int8", [], "calibration gave no batch"), ("int4", None, "is not offered")],
)
def test_int8_needs_data_and_other_precisions_are_refused(
    openvino: Any, net: nn.Module, example: Example, tmp_path: Path, precision: str, calibration: Any, says: str
) -> None:
    pytest.importorskip("nncf", reason=NEEDED)
    with pytest.raises(pp.errors.PruneError, match=says):
        openvino.export(net.eval(), example, tmp_path / "net.onnx", precision, calibration)
    assert list(tmp_path.iterdir()) == []


def test_int8_of_depthwise_convolutions_has_steps_by_channel(openvino: Any, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason=NEEDED)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU6(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU6(), nn.Conv2d(16, 4, 1)
    )
    data = Example.of(torch.randn(8, 3, 12, 12))
    int8 = openvino.export(net.eval(), data, tmp_path / "int8.onnx", "int8", [data] * 4)
    with pytest.raises(TargetError, match="quantized by channel"):
        layout_of(int8)
    assert layout_of(int8, skip=True).activations


def test_every_figure_is_taken_on_it(openvino: Any, file: Path, example: Example) -> None:
    one = {name: array[:1] for name, array in feed_of(example).items()}
    figures = measure_file(openvino, file, one, file, memory=True)
    assert {"latency_ms", "speedup", "size_bytes", "energy_mj", "macs"} <= figures.keys()
    assert len({m.target for m in figures.values()}) == 1
    assert "memory_bytes" in figures or not sys.platform.startswith("linux")
    assert openvino.fingerprint()["openvino"] != "not installed"


def test_where_it_is_not_installed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"needs openvino, which is not installed: pip install 'paretoprune\[openvino"):
        find_target("openvino")

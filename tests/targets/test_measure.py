from __future__ import annotations

import sys

import numpy as np
import pytest

from paretoprune.targets import OnnxRuntime, Timing, fingerprint_id, measure_file

QUICK = Timing(pairs=10, max_pairs=20, max_cpu_s=2)


@pytest.fixture
def files(target, build_net, example, tmp_path):
    small = target.export(build_net(8), example, tmp_path / "small.onnx")
    large = target.export(build_net(64), example, tmp_path / "large.onnx")
    return small, large, {"input": np.zeros((1, 3, 16, 16), np.float32)}


def test_every_figure_of_a_pair(target, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    small, large, feed = files
    found = measure_file(target, small, feed, large, timing=QUICK, memory=sys.platform == "linux")
    assert found["speedup"].low > 2
    assert found["baseline_latency_ms"].value > found["latency_ms"].value > 0
    assert found["size_bytes"].value == small.stat().st_size
    assert found["macs"].value == 256 * 8 * 27 + 2 * 256 * 8 * 72 + 1280
    assert found["energy_mj"].value == pytest.approx(3.5 * found["cpu_ms"].value)
    assert {found[name].status for name in ("energy_mj", "energy_analytic_mj")} == {"estimated"}
    assert {found[name].status for name in ("latency_ms", "wall_ms", "size_bytes", "macs")} == {"measured"}
    assert {value.target for value in found.values()} == {fingerprint_id(target.fingerprint())}
    assert all(value.low <= value.value <= value.high for value in found.values())
    assert "memory_bytes" in found or sys.platform != "linux"


def test_a_file_alone_has_no_speedup(target, files):
    small, _, feed = files
    found = measure_file(target, small, feed, timing=QUICK, watts_per_core=8.0)
    assert "speedup" not in found
    assert "memory_bytes" not in found
    assert found["energy_mj"].unit == "mJ"


@pytest.mark.parametrize("device", ["cuda:0", "npu"])
def test_cpu_seconds_say_nothing_of_another_device(files, device, monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)

    class Elsewhere(OnnxRuntime):
        pass

    target = Elsewhere()
    target.device = device
    found = measure_file(target, files[0], files[2], timing=QUICK)
    assert not {"energy_mj", "power_w", "w_per_frame"} & found.keys()
    assert found["energy_analytic_mj"].status == "estimated"
    assert found["fps"].value > 0


def test_a_figure_that_is_not_known_is_left_out(target, files, monkeypatch):
    monkeypatch.setattr("paretoprune.targets.measure.workload_of_file", lambda *_: None)
    found = measure_file(target, files[0], files[2], timing=QUICK)
    assert not {"macs", "energy_analytic_mj"} & found.keys()

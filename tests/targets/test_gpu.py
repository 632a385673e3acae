"""The targets of an NVIDIA GPU, as far as they can be tested without one: torch.cuda and ONNX Runtime are faked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from paretoprune.core.errors import TargetError, UsageError
from paretoprune.core.graph import Example
from paretoprune.pipeline.targets import find_target
from paretoprune.targets import LayerSpec, Timing, fingerprint_id, measure_file, measure_latency, ort_gpu
from paretoprune.targets.cuda import Cuda, EventClock, driver_version
from paretoprune.targets.ort_gpu import OnnxRuntimeCuda, check_placed, left_to_cpu
from paretoprune.targets.traits import device_of, timing_for

GPU = torch.cuda.is_available()
without_gpu = pytest.mark.skipif(GPU, reason="this machine has a GPU")


class Event:
    """Time on a GPU that goes on by 2 ms from event to event."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.now += 2.0
        self.at = Event.now

    def synchronize(self) -> None: ...

    def elapsed_time(self, later: Event) -> float:
        return later.at - self.at


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The target with its GPU replaced by the CPU, but for what it says of itself."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Imaginary 100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Cuda, "device", "cpu")
    return find_target("cuda")


@without_gpu
def test_without_a_gpu_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match="needs a CUDA build of PyTorch, .*use target='torch'"):
        find_target("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UsageError, match="needs an NVIDIA GPU, and PyTorch sees none: check nvidia-smi"):
        find_target("cuda")


def test_its_fingerprint_names_the_gpu_and_the_driver(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = cuda.fingerprint()
    assert facts["gpu"] == "NVIDIA Imaginary 100"
    assert (facts["compute_capability"], facts["cuda"], facts["cudnn"]) == ("9.0", "13.0", "91000")
    assert all(isinstance(value, str) and value for value in facts.values())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    assert fingerprint_id(cuda.fingerprint()) != fingerprint_id(facts)


def test_the_driver_is_read_where_the_system_tells(tmp_path: Path) -> None:
    opened = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build"
    closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19"
    assert driver_version(lambda: opened) == "570.86.10"
    assert driver_version(lambda: closed) == "535.104.05"
    assert driver_version(lambda: "something else") == "unknown"
    assert driver_version((tmp_path / "none").read_text) == "unknown"


def test_time_is_that_of_events(cuda: Any) -> None:
    timing = timing_for(cuda, pairs=10, max_pairs=10)
    assert timing.basis == "wall"
    found = measure_latency(lambda: None, timing)
    assert found.wall_ms.value == pytest.approx(2.0 / 1, rel=0.5)
    clock = EventClock()
    first, second = clock(), clock()
    assert second - first == 2_000_000


def test_a_file_is_exported_checked_and_timed(cuda: Any, tmp_path: Path) -> None:
    path = cuda.export(nn.Linear(3, 2), Example.of(torch.randn(4, 3)), tmp_path / "f.safetensors")
    feed = {"input": np.ones((1, 3), np.float32)}
    found = measure_file(cuda, path, feed, timing=timing_for(cuda, pairs=10, max_pairs=10), memory=True)
    assert "memory_bytes" not in found  # resident memory of this process is not the GPU's
    assert found["latency_ms"].value > 0
    assert cuda.layer(LayerSpec("linear", 3, 2), 1, "fp32")().shape == (1, 2)


def test_energy_of_a_gpu_is_not_estimated_from_cpu_seconds(cuda: Any, tmp_path: Path, monkeypatch: Any) -> None:
    path = cuda.export(nn.Linear(3, 2), Example.of(torch.randn(4, 3)), tmp_path / "f.safetensors")
    runner = cuda.load(path)
    monkeypatch.setattr(cuda, "load", lambda path: runner)
    monkeypatch.setattr(cuda, "device", "cuda:0")
    found = measure_file(cuda, path, {"input": np.ones((1, 3), np.float32)}, timing=Timing(pairs=10, max_pairs=10))
    assert "energy_mj" not in found or found["energy_mj"].status == "measured"


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_without_the_provider_it_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match=f"target '{name}' needs .*ExecutionProvider.*onnxruntime-gpu"):
        find_target(name)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A build that claims the providers, as one without CUDA's libraries does; the real sessions are the CPU's."""
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    return find_target("onnxruntime-cuda")


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
@without_gpu
def test_a_provider_that_is_dropped_in_silence_is_an_error(provider: OnnxRuntimeCuda, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"could not load CUDAExecutionProvider and would have run .*CPUExecution"):
        provider.export(nn.Linear(3, 2), Example.of(torch.randn(4, 3)), tmp_path / "f.onnx")
    assert list(tmp_path.iterdir()) == []
    assert device_of(provider) == "cuda:0"
    assert provider.fingerprint()["gpu"]


def session(placed: list[tuple[str, str]]) -> Any:
    part = lambda ep, op: SimpleNamespace(ep_name=ep, get_nodes=lambda: [SimpleNamespace(op_type=op)])  # noqa: E731
    return SimpleNamespace(
        get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        get_provider_graph_assignment_info=lambda: [part(ep, op) for ep, op in placed],
    )


def test_work_that_is_left_to_the_cpu_is_named() -> None:
    gpu, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    check_placed(session([(gpu, "Conv"), (cpu, "Shape"), (cpu, "Gather")]), gpu, "f.onnx")
    with pytest.raises(TargetError, match="leaves Conv, LSTM of f.onnx to the CPU"):
        check_placed(session([(gpu, "Gemm"), (cpu, "LSTM"), (cpu, "Conv")]), gpu, "f.onnx")
    assert left_to_cpu([(gpu, "Conv")]) == []


def test_where_it_runs_can_be_asked_of_this_onnxruntime(provider: OnnxRuntimeCuda, tmp_path: Path) -> None:
    """The real runtime's own account, of its CPU provider."""
    path = find_target("onnxruntime").export(nn.Linear(3, 2), Example.of(torch.randn(4, 3)), tmp_path / "f.onnx")
    with pytest.raises(TargetError, match="leaves Gemm of"):
        ort_gpu.open_on(path.read_bytes(), "CPUExecutionProvider", {}, 1, "f.onnx")


def test_int8_is_not_offered(provider: OnnxRuntimeCuda, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'int8' is not offered by onnxruntime-cuda"):
        provider.export(nn.Linear(3, 2), Example.of(torch.randn(4, 3)), tmp_path / "f.onnx", "int8", [])

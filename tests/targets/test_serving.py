"""Tails, throughput and the cold start: only what enough calls say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from paretoprune.core.errors import TargetError, UsageError
from paretoprune.targets import LayerSpec, OnnxRuntime, fingerprint_id, serving
from paretoprune.targets.layers import layer_model


class Own(OnnxRuntime):
    """A target of one's own: no child process knows it by name, so that there is no cold start."""

    name = "own"


@pytest.fixture
def linear(tmp_path: Path) -> tuple[Path, Mapping[str, Any]]:
    path, spec = tmp_path / "linear.onnx", LayerSpec("linear", 64, 64)
    model = layer_model(spec)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, path)
    return path, {"x": spec.example()}


def test_tails_rise_and_agree_with_the_throughput(linear: Any) -> None:
    found = serving(Own(), *linear, [1, 4], calls=600)
    assert "cold_start_ms" not in found
    for size in (1, 4):
        p50, p95, p99 = (found[f"p{q}_ms_b{size}"] for q in (50, 95, 99))
        assert 0 < p50.value <= p95.value <= p99.value
        assert p99.low <= p99.value <= p99.high
        assert p50.runs == 600
        assert found[f"throughput_b{size}"].unit == "1/s"
        assert 0 < found[f"throughput_b{size}"].value <= 1e3 * size / found[f"p50_ms_b{size}"].value * 1.5
    assert len({m.target for m in found.values()}) == 1


def test_a_sweep_of_batches_with_several_threads(linear: Any) -> None:
    target = OnnxRuntime(threads=2)
    found = serving(target, *linear, [1, 4, 16], calls=120)
    assert {f"{name}_b{size}" for size in (1, 4, 16) for name in ("p50_ms", "p95_ms", "throughput")} < found.keys()
    assert found["throughput_b16"].value > found["throughput_b1"].value  # 16 samples do not cost 16 calls
    assert {m.target for m in found.values()} == {fingerprint_id(target.fingerprint())}
    assert fingerprint_id(target.fingerprint()) != fingerprint_id(OnnxRuntime().fingerprint())
    assert found["cold_start_ms"].runs == 5


def test_several_samples_in_are_several_answers_out(linear: Any) -> None:
    fed: list[int] = []

    class Seeing(Own):
        def load(self, path: Path) -> Any:
            runner = super().load(path)

            def call(feed: Mapping[str, Any]) -> Any:
                (answer,) = runner(feed)
                fed.append(len(answer))
                return (answer,)

            return call

    serving(Seeing(threads=2), *linear, [8, 2, 8], calls=20)
    assert set(fed) == {8, 2}
    assert fed == sorted(fed, reverse=True)  # each size once


def test_a_tail_that_too_few_calls_reached_is_left_out(linear: Any) -> None:
    found = serving(Own(), *linear, [2], calls=120)
    assert {"p50_ms_b2", "p95_ms_b2"} <= found.keys()
    assert "p99_ms_b2" not in found
    short = serving(Own(), *linear, [2], max_s=1e-6)
    assert short["throughput_b2"].runs == 20
    assert "p95_ms_b2" not in short


def test_the_first_answer_of_a_fresh_process_takes_longer_than_the_next(linear: Any) -> None:
    found = serving(OnnxRuntime(), *linear, [1], calls=50)
    assert found["cold_start_ms"].value > found["p50_ms_b1"].value
    assert found["cold_start_ms"].low <= found["cold_start_ms"].value <= found["cold_start_ms"].high


@pytest.mark.parametrize("batches", [[], [0], [1.5], [True]])
def test_sizes_that_are_none(linear: Any, batches: Any) -> None:
    with pytest.raises(UsageError, match="whole numbers of at least 1"):
        serving(OnnxRuntime(), *linear, batches)


def test_a_file_of_one_batch_size_says_so(tmp_path: Path) -> None:
    path, spec = tmp_path / "fixed.onnx", LayerSpec("linear", 8, 8)
    path.write_bytes(layer_model(spec).SerializeToString())
    with pytest.raises(TargetError, match="does not run on"):
        serving(OnnxRuntime(), path, {"x": np.asarray(spec.example())}, [3])

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from paretoprune.core.errors import FileError, UsageError
from paretoprune.targets import (
    CostTable,
    LayerSpec,
    OnnxRuntime,
    Timing,
    conv_cost,
    measure_latency,
    measure_layer,
    staircase,
)
from paretoprune.targets.fingerprint import cpu_facts
from paretoprune.targets.layers import layer_model

CONV = LayerSpec("conv", 32, 32, (3, 3), padding=(1, 1), spatial=(16, 16))
KINDS = {
    "conv": CONV,
    "strided": replace(CONV, stride=(2, 2)),
    "dilated": replace(CONV, dilation=(2, 2), padding=(2, 2)),
    "depthwise": replace(CONV, groups=32),
    "one dimension": LayerSpec("conv", 4, 6, (5,), spatial=(20,)),
    "three dimensions": LayerSpec("conv", 2, 3, (3, 3, 3), spatial=(5, 5, 5)),
    "transposed": LayerSpec("conv_transpose", 4, 6, (2, 2), (2, 2), spatial=(5, 5)),
    "linear": LayerSpec("linear", 10, 7, rows=3),
}


class Formula(CostTable):
    """A table whose costs follow a rule instead of a clock."""

    def __init__(self, target, rule) -> None:
        super().__init__(target)
        self.rule = rule

    def cost_ms(self, spec, precision="fp32"):
        return self.rule(spec.outputs)

    take_ms = cost_ms


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_layer_models_run(target, tmp_path, kind, precision):
    spec = KINDS[kind]
    results = []
    for copies in (1, 2):
        path = tmp_path / f"{copies}.onnx"
        path.write_bytes(layer_model(spec, copies, precision).SerializeToString())
        (result,) = target.load(path)({"x": spec.example()})
        results.append(result)
    assert results[0].shape == results[1].shape
    assert results[0].shape[1] == spec.outputs
    assert np.ptp(results[0]) > 0
    assert not np.array_equal(*results)


def test_int8_layers_stand_for_the_same_layer(target, tmp_path):
    outputs = []
    for precision in ("fp32", "int8"):
        path = tmp_path / f"{precision}.onnx"
        path.write_bytes(layer_model(CONV, 1, precision).SerializeToString())
        outputs.append(target.load(path)({"x": CONV.example()})[0])
    assert np.mean((outputs[0] - outputs[1]) ** 2) < 0.01 * np.var(outputs[0])


def test_more_work_costs_more(target):
    small = LayerSpec("conv", 32, 32, (3, 3), padding=(1, 1), spatial=(16, 16))
    large = LayerSpec("conv", 64, 64, (3, 3), padding=(1, 1), spatial=(32, 32))
    assert measure_layer(target, large) > 4 * measure_layer(target, small) > 0


def test_a_layer_costs_about_what_it_takes_alone(target, tmp_path):
    """Less than a model of this one layer, which also changes layouts at its edges, but not by much."""
    large = LayerSpec("conv", 64, 64, (3, 3), padding=(1, 1), spatial=(32, 32))
    path = tmp_path / "layer.onnx"
    path.write_bytes(layer_model(large).SerializeToString())
    runner, feed = target.load(path), {"x": large.example()}
    alone = measure_latency(lambda: runner(feed), Timing(pairs=10, max_pairs=20)).cpu_ms.value
    assert 0.4 * alone < measure_layer(target, large) < 1.6 * alone


def test_a_spec_is_measured_once(target, monkeypatch):
    calls = []
    monkeypatch.setattr("paretoprune.targets.cost.measure_layer", lambda *given: calls.append(given) or 0.25)
    table = CostTable(target)
    assert conv_cost(table, CONV, [16, 32]) == {16: 0.25, 32: 0.25}
    assert table.cost_ms(replace(CONV, outputs=16)) == 0.25
    assert table.cost_ms(CONV, "int8") == 0.25
    assert len(calls) == len(table) == 3


def test_tables_survive_json(target, monkeypatch):
    monkeypatch.setattr("paretoprune.targets.cost.measure_layer", lambda _t, spec, _p: spec.outputs / 7)
    table = CostTable(target)
    conv_cost(table, CONV, [16, 32], "int8")
    table.cost_ms(KINDS["linear"])
    again = CostTable.from_json(json.loads(json.dumps(table.to_json())), target)
    monkeypatch.setattr("paretoprune.targets.cost.measure_layer", lambda *_: pytest.fail("measured again"))
    assert conv_cost(again, CONV, [16, 32], "int8") == {16: 16 / 7, 32: 32 / 7}
    assert again.to_json() == table.to_json()


def test_tables_of_another_machine_or_version_are_refused(target):
    data = CostTable(target).to_json()
    with pytest.raises(FileError, match="measure again"):
        CostTable.from_json(data, OnnxRuntime(threads=2))
    with pytest.raises(FileError, match="schema 99.*upgrade"):
        CostTable.from_json({**data, "schema": 99}, target)
    with pytest.raises(FileError, match="damaged"):
        CostTable.from_json({**data, "costs": [{"ms": 1}]}, target)


@pytest.mark.parametrize(
    "wrong",
    [
        {"outputs": 0},
        {"groups": 5},
        {"spatial": (16,)},
        {"kernel": ()},
        {"kind": "attention"},
    ],
)
def test_impossible_layers_are_refused(wrong):
    with pytest.raises(UsageError):
        replace(CONV, **wrong)


def test_an_unknown_precision_is_refused(target):
    with pytest.raises(UsageError, match="'fp8'.*fp32 or int8"):
        measure_layer(target, CONV, "fp8")


@pytest.mark.parametrize("step", [2, 4, 8, 16, 32])
def test_a_staircase_is_read_off_its_costs(target, step):
    assert staircase(Formula(target, lambda width: -(-width // step) * step * 0.001)).step == step


def test_a_straight_line_has_no_step(target):
    found = staircase(Formula(target, lambda width: 0.001 * width + 0.01))
    assert found.step == 1
    assert found.cost_ms[48] == pytest.approx(0.058)
    assert found.penalty[16] == pytest.approx(1.0)


def test_a_slow_path_off_the_grid_counts_as_a_step(target):
    """As where a kernel for multiples of 8 exists and everything else takes a general path."""
    assert staircase(Formula(target, lambda width: width * (0.001 if width % 8 == 0 else 0.0015))).step == 8


@pytest.mark.skipif("avx512f" not in cpu_facts()[1], reason="the width of this processor's kernels is not known here")
def test_this_target_computes_in_steps_of_sixteen(target):
    assert 16 in {staircase(CostTable(target)).step for _ in range(2)}

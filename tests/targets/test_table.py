from __future__ import annotations

import os
import re
import subprocess
import sys
from types import ModuleType

import onnxruntime
import pytest

from paretoprune.core.errors import UsageError
from paretoprune.pipeline.targets import find_target as with_graphs
from paretoprune.targets import TARGETS, OnnxRuntime, find_target, fingerprint_id
from paretoprune.targets.session import session_options
from paretoprune.targets.table import GRAPH_TARGETS
from paretoprune.targets.traits import describe


def test_by_name_reference_and_object():
    assert isinstance(find_target("onnxruntime"), OnnxRuntime)
    assert isinstance(find_target("paretoprune.targets.ort:OnnxRuntime"), OnnxRuntime)
    own = OnnxRuntime(threads=2)
    assert find_target(own) is own


def test_an_unknown_name_lists_what_is_offered():
    with pytest.raises(UsageError, match="unknown target 'tensorrt'; offered: onnxruntime, openvino"):
        find_target("tensorrt")


@pytest.mark.parametrize("reference", ["no.such.module:Thing", "paretoprune.targets.ort:Missing"])
def test_a_reference_that_cannot_be_imported_is_named(reference):
    with pytest.raises(UsageError, match=reference):
        find_target(reference)


def test_what_is_not_a_target_is_told_what_it_lacks(monkeypatch):
    module = ModuleType("half_target")
    module.Half = type("Half", (), {"name": "half", "load": lambda self, path: None})
    monkeypatch.setitem(sys.modules, "half_target", module)
    with pytest.raises(UsageError, match="no fingerprint, export, threads, precisions"):
        find_target("half_target:Half")


@pytest.mark.parametrize("name", [*TARGETS, *GRAPH_TARGETS])
def test_everything_in_the_table_is_made_or_says_what_is_missing(name):
    try:
        made, missing = with_graphs(name, 1).name, ""
    except UsageError as error:
        made, missing = "", str(error)
    if name in ("onnxruntime", "torch") or not missing:
        assert made == name, missing
    else:
        assert re.search(r"'paretoprune\[\w+\]'|CUDA build|NVIDIA GPU|onnxruntime-gpu|compiler", missing)


def test_fingerprints():
    one, two = OnnxRuntime(), OnnxRuntime(threads=2)
    facts = one.fingerprint()
    assert {"cpu", "instruction_sets", "onnxruntime", "onnx", "torch", "threads", "machine"} <= set(facts)
    assert all(isinstance(value, str) and value for value in facts.values())
    assert fingerprint_id(facts) == fingerprint_id(dict(reversed(facts.items())))
    assert fingerprint_id(facts) == fingerprint_id(OnnxRuntime().fingerprint())
    assert fingerprint_id(facts) != fingerprint_id(two.fingerprint())
    assert len(fingerprint_id(facts)) == 12


def test_sessions_run_with_the_threads_asked_for_and_everything_optimised():
    options = session_options(3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


def test_torch_is_not_needed_to_load_and_measure():
    program = "import sys, paretoprune.targets; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


def test_tpus_are_not_offered():
    with pytest.raises(UsageError, match="TPUs are not offered: .*offered: onnxruntime, .*torch-compile"):
        find_target("tpu")


def test_what_a_target_is_described_as_comes_from_itself_or_from_its_attributes():
    assert describe(OnnxRuntime(threads=2))["threads"] == "2"
    assert describe(OnnxRuntime())["files"] == ".onnx"
    assert describe(OnnxRuntime())["fingerprint"] == fingerprint_id(OnnxRuntime().fingerprint())
    told = type("Told", (OnnxRuntime,), {"describe": lambda self: {"batch": "1"}})()
    assert describe(told)["batch"] == "1"
